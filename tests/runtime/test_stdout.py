"""What a command prints is apart from what libraries write to the same file descriptor."""

import subprocess
import sys

CHATTER = """
import os, subprocess, sys
from robustjax.runtime import stdout
print("before")
stdout.keep_for_results()
os.write(1, b"a library\\n")
subprocess.run(["echo", "a child"])
print("résult")
"""


def test_only_what_is_printed_is_on_stdout():
    done = subprocess.run([sys.executable, "-c", CHATTER], capture_output=True, check=True)
    assert done.stdout.decode() == "before\nrésult\n"
    assert sorted(done.stderr.decode().splitlines()) == ["a child", "a library"]


def test_a_replaced_stdout_is_left_alone(capsys):
    from robustjax.runtime import stdout

    replaced = sys.stdout
    stdout.keep_for_results()
    assert sys.stdout is replaced
    print("still here")
    assert capsys.readouterr().out == "still here\n"
