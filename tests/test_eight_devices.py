"""On eight devices every array lies where it should; what an iteration of GCG sends is counted."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.compiling import QUICKLY

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[1]
BOTH = "data+fsdp"


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


OPTIMIZERS = pytest.mark.parametrize("optimizer", ["adafactor", "adamw"])


@OPTIMIZERS
def test_weights_keep_their_place(found, optimizer):
    """After they are made, loaded, trained and restored; layers are stacked under adamw."""
    stations = found[optimizer]
    assert all(leaves(stations["wanted"]))  # as the logical axes say
    layer, stacked = ("", "- ") if optimizer == "adamw" else (".01", "")
    expected = {
        f"blocks{layer}.qkv.kernel": f"{stacked}fsdp tensor",
        f"blocks{layer}.mlp_out.kernel": f"{stacked}tensor fsdp",
        f"blocks{layer}.mlp_in.bias": f"{stacked}tensor",
        f"blocks{layer}.mlp_norm.scale": f"{stacked}fsdp",
        "embed.embedding": "tensor fsdp",
        "head.kernel": "fsdp",
    }
    assert {name: stations["init"][name] for name in expected} == expected
    assert stations["load"] == stations["init"]
    for name in ("start", "step", "restore"):
        assert stations[name]["params"] == stations["init"], name


@OPTIMIZERS
def test_the_optimizer_lies_as_its_weights_do(found, optimizer):
    stations = found[optimizer]
    start = stations["start"]["optimizer"]
    assert stations["step"]["optimizer"] == stations["restore"]["optimizer"] == start
    seen = set()
    for name, spec in start.items():
        weight = name.split(".", 2)[-1]
        if weight in ("count", "step") or "." not in name[2:]:
            assert spec == "", name  # a counter
            continue
        owner, _, part = (weight, "", "") if weight in stations["init"] else weight.rpartition(".")
        axes = stations["init"][owner].split()
        if part:  # a mean over one of the two axes
            axes = [*axes, "-"][:2]
            del axes[{"row": 1, "column": 0}[part]]
        assert spec == " ".join(axes).rstrip(" -"), name
        seen.add(owner)
    assert seen == stations["init"].keys()


@OPTIMIZERS
def test_a_checkpoint_is_restored_on_another_mesh(found, optimizer):
    assert found[optimizer]["is_the_same_elsewhere"]
    assert found[optimizer]["elsewhere"] == [[8, 1, 1]]


def test_losses_of_a_step_are_everywhere(found):
    assert set(found["adafactor"]["report"].values()) == {""}


@pytest.mark.parametrize(
    ("mesh", "rows", "heads"), [("split", "data", ""), ("mixed", BOTH, " tensor")]
)
def test_a_search_is_split_over_examples_and_its_cache_over_heads(found, mesh, rows, heads):
    prefix = found[mesh]["prefix"]
    assert prefix.pop("mask") == rows
    assert set(prefix.values()) == {rows + heads}
    assert found[mesh]["batch"] == found[mesh]["rows"] == [rows]


def test_examples_that_are_split_send_nothing(found):
    """Each device has the whole model and its own examples, which need nobody else's."""
    assert found["split"]["collectives"] == {
        "encode_prefix": {},
        "propose": {},
        "score_replacements": {},
        "score_one_by_one": {},
        "select": {},
    }


@pytest.mark.parametrize("layout", ["split", "mixed"])
def test_passes_of_one_example_a_device_score_as_a_whole_pass_does(layout, found):
    whole, one_by_one = found[layout]["losses"]
    assert found[layout]["groups"] == 2
    np.testing.assert_allclose(one_by_one, whole, rtol=1e-5, atol=1e-5)


def test_what_split_weights_cost_an_iteration(found):
    """Two layers, unrolled; what one pass of scoring takes, of four in a loop.

    All-gathers bring together what of a weight, a norm or a bias is split over `fsdp`, each where
    it is used (in `propose` once more for the gradient); all-reduces add up products, and the sums
    of norms, over `tensor` and `fsdp`; all-to-alls and permutes are the compiler's way of moving
    rows between devices that share weights. Choosing the best candidate needs none.
    """
    counts = found["mixed"]["collectives"]
    assert counts["encode_prefix"] == {"all-gather": 2, "all-reduce": 11, "collective-permute": 1}
    assert counts["propose"] == {
        "all-gather": 28,
        "all-reduce": 12,
        "all-to-all": 12,
        "collective-permute": 4,
    }
    assert counts["score_replacements"] == {
        "all-gather": 18,
        "all-reduce": 13,
        "all-to-all": 5,
        "collective-permute": 4,
    }
    assert counts["select"] == {}
