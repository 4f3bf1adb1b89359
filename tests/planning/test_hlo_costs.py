"""Costs read from the text of compiled programs: of the CPU's compiler, and of written lines."""

import functools

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from robustjax.evaluation.flops import executed_flops
from robustjax.planning.hlo_costs import Collective, costs_of
from robustjax.planning.hlo_text import groups_of, parse
from robustjax.runtime.mesh import MeshConfig, make_mesh

WEIGHTS = jax.ShapeDtypeStruct((6, 16, 16), jnp.float32)
ROWS = jax.ShapeDtypeStruct((8, 16), jnp.float32)


def layers(weights, x, *, unroll):
    def layer(x, one):
        return jnp.tanh(jnp.dot(x, one, precision="highest")), None

    return jax.lax.scan(layer, x, weights, unroll=unroll)[0]


def text_of(function, *arguments):
    return jax.jit(function).lower(*arguments).compile().as_text()


def costs(function, *arguments, devices=1):
    return costs_of(parse(text_of(function, *arguments)), devices)


@pytest.mark.parametrize("unroll", [1, 6])
def test_layers_count_as_often_as_they_run(unroll):
    function = functools.partial(layers, unroll=unroll)
    found = costs(function, WEIGHTS, ROWS)
    assert found.total_flops == executed_flops(function, WEIGHTS, ROWS) == 6 * 2 * 8 * 16 * 16


def test_of_stacked_weights_a_round_reads_its_own_layer():
    found = costs(functools.partial(layers, unroll=1), WEIGHTS, ROWS)
    weights = 6 * 16 * 16 * 4
    assert weights <= found.bytes < 6 * weights


def test_two_more_layers_cost_as_much_as_any_two():
    function = functools.partial(layers, unroll=1)

    def of(count):
        return costs(function, jax.ShapeDtypeStruct((count, 16, 16), jnp.float32), ROWS)

    few, more, most = of(4), of(6), of(8)
    assert more.total_flops - few.total_flops == most.total_flops - more.total_flops > 0
    assert more.bytes - few.bytes == most.bytes - more.bytes > 0


def on_mesh(shape, *axes):
    mesh = make_mesh(MeshConfig(2, 1, 2))
    sharding = NamedSharding(mesh, PartitionSpec(*axes))
    return jax.ShapeDtypeStruct(shape, jnp.float32, sharding=sharding)


def test_a_product_over_a_split_axis_ends_in_an_all_reduce():
    left, right = on_mesh((8, 32), "data", "tensor"), on_mesh((32, 64), "tensor", None)
    found = costs(jnp.dot, left, right, devices=4)
    (one,) = found.collectives
    assert (one.kind, one.bytes, one.times, one.is_in_loop) == ("all-reduce", 4 * 64 * 4, 1, False)
    assert one.group == (0, 1)
    assert found.sent == {"all-reduce": 2 * one.bytes / 2}
    assert found.total_flops == 2 * 4 * 16 * 64


def test_collectives_of_layers_count_as_often_as_they_run():
    weights, rows = on_mesh((6, 16, 16), None, "tensor", None), on_mesh((8, 16), "data", None)
    found = costs(functools.partial(layers, unroll=1), weights, rows, devices=4)
    inside = [one for one in found.collectives if one.is_in_loop]
    assert {(one.kind, one.times) for one in inside} == {("all-reduce", 6)}


def test_what_goes_round_a_ring():
    def sent(kind):
        return Collective(kind, 1000, (0, 1, 2, 3), 3, "", True).sent

    assert sent("all-gather") == sent("reduce-scatter") == 3 * 750
    assert sent("all-reduce") == 3 * 1500
    assert sent("collective-permute") == 3 * 1000


TPU_TEXT = """\
HloModule jit_f

%fused (p.0: f32[4,15,512], p.1: f32[9,512,64]) -> f32[4,15,64] {
  %p.0 = f32[4,15,512]{2,1,0:T(8,128)S(1)} parameter(0)
  %p.1 = f32[9,512,64]{2,1,0:T(8,128)} parameter(1)
  %i = s32[] constant(3)
  %part = f32[1,512,64]{2,1,0} dynamic-slice(%p.1, %i, %i, %i), dynamic_slice_sizes={1,512,64}
  %flat = f32[512,64,1]{2,1,0} bitcast(%part)
  ROOT %c = f32[4,15,64]{2,1,0} convolution(%p.0, %flat), window={size=1}, \
dim_labels=0bf_io0->0bf, operand_precision={highest,highest}
}

%gather (p.0: f32[2,8]) -> f32[8,8] {
  %p.0 = f32[2,8]{1,0} parameter(0)
  ROOT %g = f32[8,8]{1,0} all-gather(%p.0), replica_groups=[2,4]<=[4,2]T(1,0), dimensions={0}
}

ENTRY %main (a: f32[4,15,512], b: f32[9,512,64], s: f32[2,8]) -> (f32[4,15,64], f32[8,8]) {
  %a = f32[4,15,512]{2,1,0:T(8,128)} parameter(0)
  %b = f32[9,512,64]{2,1,0:T(8,128)} parameter(1)
  %s = f32[2,8]{1,0} parameter(2)
  %near = (f32[4,15,512]{2,1,0:T(8,128)S(1)}, f32[4,15,512]{2,1,0:T(8,128)}, u32[]{:S(2)}) \
copy-start(%a), cross_program_prefetch_index=0
  %done = f32[4,15,512]{2,1,0:T(8,128)S(1)} copy-done(%near)
  %f = f32[4,15,64]{2,1,0:T(8,128)} fusion(%done, %b), kind=kOutput, calls=%fused
  %g = f32[8,8]{1,0} call(%s), to_apply=%gather
  ROOT %out = (f32[4,15,64], /*index=1*/f32[8,8]) tuple(%f, /*index=1*/%g)
}
"""


def test_lines_of_a_tpus_program():
    found = costs_of(parse(TPU_TEXT), 8)
    # A product of float32 at the highest precision takes six passes.
    assert found.flops == {6: 2.0 * 4 * 15 * 512 * 64}
    given, part, result = 4 * 15 * 512 * 4, 512 * 64 * 4, 4 * 15 * 64 * 4
    gather = (2 * 8 + 8 * 8) * 4
    # Once into the chip's own memory; of the stack one layer; the result back.
    assert found.bytes == given + part + result + gather
    (one,) = found.collectives
    assert (one.kind, one.bytes, one.group) == ("all-gather", 8 * 8 * 4, (0, 2, 4, 6))


def test_a_batched_product_is_a_convolution_with_gaps():
    """Window and gaps leave one place of the window for each of the 4 x 8 batch places."""
    line = (
        "  ROOT %c = f32[4,8,15,15]{3,2,1,0} convolution(%a, %b), window={size=4x8 stride=3x7 "
        "lhs_dilate=4x8}, dim_labels=0b1f_0o1i->01bf"
    )
    text = (
        "ENTRY %main (a: bf16[4,15,8,64], b: bf16[4,15,8,64]) -> f32[4,8,15,15] {\n"
        "  %a = bf16[4,15,8,64]{3,2,1,0} parameter(0)\n"
        "  %b = bf16[4,15,8,64]{3,2,1,0} parameter(1)\n"
        f"{line}\n}}\n"
    )
    assert costs_of(parse(text), 1).flops == {1: 2.0 * 4 * 8 * 15 * 15 * 64}


def test_groups_as_they_are_written():
    def groups(attributes):
        text = (
            "ENTRY %m (a: f32[2]) -> f32[2] {\n  %a = f32[2]{0} parameter(0)\n"
            f"  ROOT %r = f32[2]{{0}} all-reduce(%a), {attributes}, to_apply=%sum\n}}\n"
        )
        return groups_of(parse(text).computations["m"][1], 4)

    assert groups("replica_groups={{0,2},{1,3}}") == [[0, 2], [1, 3]]
    assert groups("replica_groups=[2,2]<=[4]") == [[0, 1], [2, 3]]
    assert groups("replica_groups=[2,2]<=[2,2]T(1,0)") == [[0, 2], [1, 3]]
    assert groups("channel_id=1") == [[0, 1, 2, 3]]
    assert groups("source_target_pairs={{0,0},{1,2},{2,1}}") == [[1, 2], [2, 1]]
    assert groups("source_target_pairs={{0,0}}") == [[0]]


def test_a_loop_whose_rounds_are_not_told():
    def until(x):
        return jax.lax.while_loop(lambda x: (x < 1.0).all(), lambda x: x * 1.5, x)

    with pytest.raises(ValueError, match="number of rounds"):
        costs(until, ROWS)
    with pytest.raises(ValueError, match="not the text"):
        parse("nothing")
