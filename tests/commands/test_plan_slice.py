"""`robustjax plan --topology` and `--suggest`: what they leave, and what they refuse."""

import importlib.util
import os
import subprocess
import sys

import pytest

from robustjax.planning.environment import ENVIRONMENT
from tests.commands.conftest import read
from tests.commands.short import ADVTRAIN, ATTACK, FINETUNE, ROOT

NANO = f"{ATTACK}:point=nano-27k,task=word_length,attack=gcg"
ONE_CHIP = "--topology=v5e:1x1"


@pytest.fixture(autouse=True)
def as_it_was(monkeypatch):
    """The command makes its process one for the compiler; the tests' is others' as well."""
    for name in ENVIRONMENT:
        monkeypatch.setenv(name, os.environ.get(name, ""))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([NANO], "config.topology is empty: nano-27k has no default slice"),
        ([NANO, "--topology=v5e"], "topology 'v5e' is no TPU slice"),
        ([NANO, "--config.topology=v5e:2"], "stand in 2 dimensions"),
        ([NANO, ONE_CHIP, "--price=-1"], "--price=-1.0 must be a number of at least 0"),
        ([NANO, ONE_CHIP, "--prompt_tokens=0"], "--prompt_tokens=0 must be at least 1"),
        (
            [f"{FINETUNE}:point=pythia-70m,task=imdb", ONE_CHIP, "--suggest"],
            "--suggest plans attacks",
        ),
    ],
    ids=lambda value: value[-1] if isinstance(value, list) else "",
)
def test_mistakes(refused, arguments, message):
    assert message in refused("plan", *arguments)


def test_without_the_compiler_one_line_says_what_to_install(refused, monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util,
        "find_spec",
        lambda name, *rest: None if name == "libtpu" else find(name, *rest),
    )
    line = refused("plan", NANO, ONE_CHIP)
    assert "libtpu, which is not installed: pip install 'robustjax[tpu]'" in line


def planned(folder, *arguments):
    """What the command prints, and the plan that it leaves; in a process of its own."""
    command = [sys.executable, "-m", "robustjax", "plan", *arguments, f"--workdir={folder}"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == str(folder / "plan.json")
    return done.stdout, read(folder / "plan.json")


@pytest.mark.slow
def test_hardening_of_a_small_model(tmp_path):
    """Training step, attack and answers, with the runs of all rounds."""
    config = f"{ADVTRAIN}:point=nano-27k,task=word_length,attack=gcg"
    out, plan = planned(tmp_path, config, ONE_CHIP, "--price=2", "--config.advtrain.num_rounds=2")
    programs = plan["programs"]
    assert set(programs) == {
        *("train_step", "answer"),
        *(
            f"{name} {program}"
            for name in ("gcg", "held-out gcg")
            for program in ("encode_prefix", "propose", "score_replacements")
        ),
    }
    batches = -(-1500 // 16)
    assert programs["gcg encode_prefix"]["runs"] == 2 * batches
    assert programs["gcg propose"]["runs"] == (1 + 3) * batches  # iterations grow with the rounds
    assert programs["held-out gcg propose"]["runs"] == 3 * 4 * 10  # before, after each; 64 examples
    assert programs["train_step"]["runs"] == 2 * 3 * 3000 // 8  # rounds, passes, batches
    assert programs["train_step"]["beside"] > 0
    assert plan["fits"] and plan["cost"] == pytest.approx(2 * plan["chip_hours"])
    assert "slice    v5e:1x1: 1 chips; mesh data 1, fsdp 1, tensor 1" in out
    assert f"at least {plan['chip_hours']:,.2f} chip-hours" in out


@pytest.mark.slow
def test_a_suggestion_is_what_the_attack_takes(tmp_path):
    flags = "--config.num_examples=2", "--config.attack.num_candidates=16"
    out, plan = planned(tmp_path, NANO, ONE_CHIP, "--suggest", *flags)
    suggested = plan["suggested"]
    assert suggested["compiled"] == 1
    assert suggested["flags"] == out.splitlines()[-2].split()
    assert "--config.search.batch_size=2" in suggested["flags"]
    assert set(plan["programs"]) == {"propose", "score_replacements"}
    seconds = sum(one["seconds"]["bound"] for one in plan["programs"].values())
    assert suggested["chip_seconds_an_example_iteration"] == pytest.approx(seconds / 2)
