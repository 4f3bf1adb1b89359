"""On eight devices every array lies where it should; what an iteration of GCG sends is counted."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.compiling import QUICKLY

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[1]
EXAMPLES = "('data', 'fsdp')"


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    done = subprocess.run(
        [sys.executable, "-m", "tests.on_eight_devices", tmp_path_factory.mktemp("eight")],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu", "XLA_FLAGS": QUICKLY},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def leaves(tree):
    if isinstance(tree, dict):
        return [leaf for one in tree.values() for leaf in leaves(one)]
    return [tree]


@pytest.mark.parametrize("optimizer", ["adafactor", "adamw"])
def test_weights_keep_their_place(found, optimizer):
    """After they are made, loaded, trained and restored; as the logical axes say."""
    stations = found[optimizer]
    assert all(leaves(stations["wanted"]))
    split = set(stations["init"].values())
    assert split >= {"['fsdp']", "['tensor', 'fsdp']", "['fsdp', 'tensor']"} or split >= {
        "[None, 'fsdp']",
        "[None, 'fsdp', 'tensor']",
    }
    assert stations["load"] == stations["init"]
    for name in ("start", "step", "restore"):
        assert stations[name]["params"] == stations["init"], name


@pytest.mark.parametrize("optimizer", ["adafactor", "adamw"])
def test_the_optimizer_lies_as_its_weights_do(found, optimizer):
    stations = found[optimizer]
    start = stations["start"]["optimizer"]
    assert stations["step"]["optimizer"] == stations["restore"]["optimizer"] == start
    counters = {name for name in start if name.endswith("count")}
    assert counters and all(start[name] == "[]" for name in counters)
    checked = 0
    for weight, spec in stations["init"].items():
        moments = [name for name in start if name.split(".", 2)[-1].startswith(weight)]
        for name in moments:
            if name.endswith(weight):
                assert start[name] == spec, name
                checked += 1
    assert checked


@pytest.mark.parametrize("optimizer", ["adafactor", "adamw"])
def test_a_checkpoint_is_restored_on_another_mesh(found, optimizer):
    assert found[optimizer]["is_the_same_elsewhere"]
    (elsewhere,) = found[optimizer]["elsewhere"]
    assert "'data', 8" in elsewhere or "'data': 8" in elsewhere


def test_losses_of_a_step_are_everywhere(found):
    assert set(found["adafactor"]["report"].values()) == {"[]"}


@pytest.mark.parametrize("mesh", ["split", "mixed"])
def test_a_search_is_split_over_examples_and_its_cache_over_heads(found, mesh):
    prefix = found[mesh]["prefix"]
    pairs = {spec for name, spec in prefix.items() if name != "mask"}
    assert pairs == {f"[{EXAMPLES}, None, 'tensor']"} and prefix["mask"] == f"[{EXAMPLES}]"
    assert found[mesh]["batch"] == [f"[{EXAMPLES}]"]
    split = ("['data']", f"[{EXAMPLES}]")
    assert set(found[mesh]["rows"]) <= {*split, "[]"}


def test_examples_that_are_split_send_nothing(found):
    """Each device has the whole model and its own examples, which need nobody else's."""
    assert found["split"]["collectives"] == {
        "encode_prefix": {},
        "propose": {},
        "score_replacements": {},
        "select": {},
    }
