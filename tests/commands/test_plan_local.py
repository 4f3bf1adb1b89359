"""`robustjax plan --local`: what it says, that the attack takes it, and what it refuses."""

import functools
import shlex

import pytest

from robustjax.planning import local
from robustjax.planning.local import DeviceMemory
from tests.commands.conftest import read
from tests.commands.short import ATTACK, GCG, ROOT, TASK

PLAN = ("plan", "--local")
NANO = f"{ATTACK}:point=nano-27k,task=word_length,attack=gcg"
RANDOM = NANO.replace("gcg", "random_token")
MANY = (
    *(*TASK, "--config.attack.num_tokens=2"),
    *("--config.attack.num_iterations=512", "--config.attack.iterations_per_pass=512"),
)


@pytest.fixture
def memory(monkeypatch):
    """memory(bytes): so many may be used."""

    def set_to(budget):
        monkeypatch.setattr(local, "device_memory", lambda: DeviceMemory("cpu", 2 * budget, budget))

    return set_to


def test_the_attack_takes_what_it_proposes(run, trained, memory, tmp_path):
    given = f"--config.model.path={trained}"
    memory(1 << 34)
    status, out, err = run(*PLAN, NANO, *GCG, given, f"--workdir={tmp_path}")
    assert status == 0, err
    *_, flags, path = out.splitlines()
    assert path == str(tmp_path / "plan.json")
    plan = read(tmp_path / "plan.json")
    assert (plan["batch_size"], plan["candidate_chunk"]) == (8, 16)  # there are eight examples
    assert shlex.split(flags) == plan["flags"] == ["--config.search.batch_size=8"]
    assert plan["bucket"]["before"] == 64
    assert plan["bytes"]["peak"] < plan["device"]["budget"]
    assert "plan: compiling for 8 at once, candidate_chunk=16" in err
    status, _, err = run("attack", NANO, *GCG, given, *plan["flags"], f"--workdir={tmp_path / 'a'}")
    assert status == 0, err
    assert read(tmp_path / "a" / "manifest.json")["config"]["search"]["batch_size"] == 8


def test_short_of_memory_it_proposes_less(run, memory, tmp_path, monkeypatch):
    monkeypatch.setattr(local, "need", functools.cache(local.need))  # compiles each case once

    def planned(budget, *flags):
        memory(budget)
        folder = tmp_path / str(budget)
        status, _, err = run(*PLAN, RANDOM, *MANY, *flags, f"--workdir={folder}")
        assert status == 0, err
        return read(folder / "plan.json")

    roomy = planned(1 << 40)
    assert roomy["batch_size"] == 64
    one = planned(1 << 39, "--config.num_examples=1")["bytes"]["peak"]
    assert planned(one + 20 * roomy["bytes"]["one_more_example"])["batch_size"] == 16
    assert planned(one - 1)["flags"] == [
        "--config.search.batch_size=1",
        "--config.attack.iterations_per_pass=256",
    ]


def test_several_devices_share_the_examples(run, memory, tmp_path):
    memory(1 << 34)
    flags = *GCG, "--config.mesh.data=4"
    status, out, err = run(*PLAN, NANO, *flags, f"--workdir={tmp_path}")
    assert status == 0, err
    assert "8 examples at once, 2 on each of 4 devices" in out
    assert read(tmp_path / "plan.json")["flags"] == ["--config.search.batch_size=8"]


def test_a_point_is_enough_and_nothing_is_downloaded(run, memory, tmp_path):
    memory(1 << 40)
    config = f"{ATTACK}:point=nano-80k,task=word_length,attack=beast"
    flags = (
        *("--config.companion.point=nano-27k", "--config.num_examples=2"),
        *("--config.attack.beam_width=2", "--config.attack.branch_factor=2"),
        *("--config.attack.num_iterations=2", "--config.attack.position=0.0"),
    )
    status, out, err = run(*PLAN, config, *flags, f"--workdir={tmp_path}")
    assert status == 0, err
    assert "any that fit its context of 1024" in out
    assert read(tmp_path / "plan.json")["bucket"] == {"before": 128, "after": 1024, "goal": 0}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["plan", NANO], "nano-27k has no default slice; give --topology=v5e:4x4, or --local"),
        ([*PLAN, ATTACK], "config.model.point and config.model.path are both empty"),
        ([*PLAN, NANO, "--config.mesh.fsdp=2"], "config.mesh: fsdp=2 and tensor=1 split weights"),
        ([*PLAN, NANO.replace("gcg", "beast")], "config.companion.path is empty"),
        (
            [*PLAN, NANO.replace("gcg", "beast"), f"--config.companion.path={ROOT}"],
            "config.companion.path is set, but config.model.path is not",
        ),
        (
            [*PLAN, NANO, "--config.num_examples=0"],
            "config.num_examples=0 takes all examples, which",
        ),
        ([*PLAN, NANO, "--config.attack.num_tokens=1024"], "leaves no room in a context of 1024"),
    ],
    ids=lambda value: value[-1] if isinstance(value, list) else "",
)
def test_mistakes(refused, arguments, message):
    assert message in refused(*arguments)
