"""What is done before the C++ runtime aborts a process."""

import subprocess
import sys

PROGRAM = """
import ctypes, os, sys, threading
from robustjax.runtime.aborts import before_abort

def act():
    print("a last word", flush=True)
    if sys.argv[1] == "end":
        os._exit(75)
    if sys.argv[1] == "fail":
        raise ValueError

before_abort(act)
thread = threading.Thread(target=ctypes.CDLL(None).abort)
thread.start()
thread.join()
"""


def run(how):
    done = subprocess.run([sys.executable, "-c", PROGRAM, how], capture_output=True, text=True)
    return done.returncode, done.stdout


def test_it_may_end_the_process():
    assert run("end") == (75, "a last word\n")


def test_or_let_it_abort():
    assert run("return") == (-6, "a last word\n")
    assert run("fail") == (-6, "a last word\n")
