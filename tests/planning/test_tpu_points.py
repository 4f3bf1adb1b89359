"""Published scaling points, compiled for their default slices: they fit, and what they exchange."""

import dataclasses
import functools
import math

import jax
import pytest
from jax.sharding import PartitionSpec

from benchmarks.results import read_results
from configs import attack, finetune
from robustjax.commands.attack import AttackRunConfig
from robustjax.commands.finetune import FinetuneRunConfig
from robustjax.commands.plan_slice import plan_on, slice_of
from robustjax.errors import UserError
from robustjax.models import registry
from robustjax.models.layers import Numerics
from robustjax.models.transformer import Definition
from robustjax.planning import ahead_of_time
from robustjax.planning.chips import parse_slice
from robustjax.planning.environment import ENVIRONMENT
from robustjax.planning.work import Layout, answer_work
from robustjax.runtime.mesh import MeshConfig
from robustjax.settings import build

pytestmark = pytest.mark.slow

POINTS = ("pythia-70m", "pythia-12b", "qwen2.5-14b")
KINDS = {"attack": (attack, AttackRunConfig), "training": (finetune, FinetuneRunConfig)}


@pytest.fixture(scope="module", autouse=True)
def compiler():
    with pytest.MonkeyPatch.context() as patch:
        for name, value in ENVIRONMENT.items():
            patch.setenv(name, value)
        yield


@functools.cache
def plan(point, kind):
    """The plan of a point's attack or training, without what answers whole texts."""
    module, settings = KINDS[kind]
    config = build(settings, module.get_config(f"point={point},task=imdb").to_dict(), "config")
    return plan_on(config, slice_of(config), left_out=("answer",))


def program(plan, name):
    return next(one for one in plan.programs if one.work.name == name)


@pytest.mark.parametrize("point", POINTS)
@pytest.mark.parametrize("kind", KINDS)
def test_a_point_fits_its_slice_as_the_table_says(point, kind):
    found = plan(point, kind)
    assert found.fits and found.peak <= 0.9 * found.chosen.generation.hbm_bytes
    rows = {row["point"]: row for row in read_results("plans")["rows"]}
    kept = rows[point][kind]
    assert (kept["topology"], kept["mesh"]) == (found.chosen.name, dict(found.mesh))
    for one in found.programs:
        row = kept["programs"][one.work.name]
        assert one.compiled.peak == pytest.approx(row["peak"] - row["beside"], rel=0.05)
        assert one.compiled.costs.total_flops == pytest.approx(row["flops"], rel=0.01)


@pytest.mark.parametrize("name", ["propose", "score_replacements"])
def test_no_weight_and_no_cache_is_gathered_in_an_attack_on_pythia_12b(name):
    shape = registry.scaling_point("pythia-12b").config
    found = plan("pythia-12b", "attack")
    tensor = found.mesh["tensor"]
    collectives = program(found, name).compiled.costs.collectives
    # Within layers only sums of activations, over the chips that share the weights.
    inside = [one for one in collectives if one.times >= shape.layers - 1]
    assert {(one.kind, len(one.group)) for one in inside} == {("all-reduce", tensor)}
    # Of all else nothing is as large as a chip's part of a layer's least matrix, or of its cache.
    rows = 16 // found.mesh["data"]
    least = min(shape.width**2 * 2 // tensor, rows * 1024 * shape.width * 2 // tensor)
    others = [one for one in collectives if one.kind != "all-reduce"]
    assert all(one.bytes < least for one in others)
    if name == "score_replacements":
        assert not others
        # The embeddings of its tokens, once a pass.
        once = [one.sent for one in collectives if len(one.group) != tensor]
        assert 0 < sum(once) < 0.01 * sum(one.sent for one in collectives)


def test_gradients_of_tokens_are_compared_where_they_are():
    """Of the scores of a vocabulary no chip gets more than its own part, once."""
    shape = registry.scaling_point("pythia-12b").config
    found = plan("pythia-12b", "attack")
    costs = program(found, "propose").compiled.costs
    whole = 16 // found.mesh["data"] * 10 * shape.vocab * 4  # of the examples of one chip
    assert sum(one.sent for one in costs.collectives if not one.is_in_loop) < 2 * whole


def test_a_prefix_is_cached_by_examples_and_heads():
    found = plan("pythia-12b", "attack")
    cache = program(found, "encode_prefix").compiled.results_layout
    wanted = PartitionSpec(None, "data", "tensor")
    assert cache.keys.spec == cache.values.spec == wanted
    kept = program(found, "propose").compiled.results_layout[1]
    assert kept.keys.spec == kept.values.spec == wanted


def test_bytes_of_collectives_a_candidate_are_those_of_two_sums_a_layer():
    shape = registry.scaling_point("pythia-12b").config
    found = plan("pythia-12b", "attack")
    candidates = 16 // found.mesh["data"] * 128  # of the examples of one chip
    sent = sum(program(found, "score_replacements").compiled.costs.sent.values()) / candidates
    tensor, tail = found.mesh["tensor"], 18  # slot, and room for what follows
    ring = 2 * (tensor - 1) / tensor
    least, most = (
        2 * shape.layers * tokens * shape.width * 4 * ring for tokens in (tail - 9, tail)
    )
    assert least < sent < most


@functools.cache
def asked(layers, scanned):
    """What answers texts, for a model of so many layers."""
    shape = dataclasses.replace(registry.scaling_point("pythia-410m").config, layers=layers)
    numerics = Numerics("bfloat16", "bfloat16", "float32", "default")
    definition = Definition(shape, numerics=numerics, scanned=scanned)
    chosen = parse_slice("v5e:2x2")
    mesh = ahead_of_time.mesh_of(MeshConfig(1, 1, 4), chosen)
    work = answer_work(definition, 4, 128, Layout(mesh))
    lowered = jax.jit(work.program.function).lower(*work.program.arguments)
    flops = lowered.compile().cost_analysis()["flops"] if not scanned else math.nan
    return ahead_of_time.compile_for(work.program, mesh, chosen), flops


def test_a_scan_costs_what_the_difference_of_two_layers_tells():
    """XLA counts a scanned layer once, and layers written out each: their difference is one."""
    (one, flops_of_one), (two, flops_of_two) = asked(1, False), asked(2, False)
    whole, _ = asked(8, True)
    xla = flops_of_one + 7 * (flops_of_two - flops_of_one)
    assert whole.costs.total_flops == pytest.approx(xla, rel=0.02)
    ours = one.costs.total_flops + 7 * (two.costs.total_flops - one.costs.total_flops)
    assert whole.costs.total_flops == pytest.approx(ours, rel=1e-6)

    def sent(compiled):
        return sum(compiled.costs.sent.values())

    assert sent(whole) == pytest.approx(sent(one) + 7 * (sent(two) - sent(one)), rel=0.01)


@pytest.mark.parametrize(
    ("name", "sizes"),
    [
        ("v4:2x2x1", (-1, 1, 1)),
        ("v4:4x4x4", (-1, 1, 4)),
        ("v5p:4x4x8", (-1, 4, 4)),
        ("v5e:1x1", (1, 1, 1)),
        ("v5e:4x4", (2, 1, 8)),  # half an axis of the torus joined to a whole one
        ("v6e:16x16", (-1, 1, 16)),
    ],
)
def test_the_compiler_knows_the_slices(name, sizes):
    chosen = parse_slice(name)
    mesh = ahead_of_time.mesh_of(MeshConfig(*sizes), chosen)
    places = ahead_of_time.places_of(mesh)
    assert len(set(places)) == mesh.size == chosen.chips
    extents = [len({place[axis] for place in places}) for axis in range(len(chosen.shape))]
    assert tuple(extents) == chosen.shape


def test_a_mesh_that_does_not_fit_the_torus():
    with pytest.raises(UserError, match=r"\(2, 1, 8\) is not made of whole axes of v6e:4x4"):
        ahead_of_time.mesh_of(MeshConfig(2, 1, 8), parse_slice("v6e:4x4"))
    with pytest.raises(UserError, match="mesh: .* = 8 devices, not all of the 16 there are"):
        ahead_of_time.mesh_of(MeshConfig(2, 1, 4), parse_slice("v5e:4x4"))
