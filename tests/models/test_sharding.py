"""Weights lie on the mesh as their logical axes say, and the scores do not notice."""

import functools

import jax
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from robustjax.models import transformer, victim
from robustjax.runtime.mesh import AxisRules, MeshConfig, make_mesh, named_sharding
from tests.models.tiny import CONFIGS, define, jit, make_params, make_tokens, relative_error

MESHES = ((4, 1, 1), (2, 2, 1), (1, 2, 2))
FAMILIES = tuple(CONFIGS)
RULES = AxisRules()

apply = jit(transformer.apply)


@functools.cache
def single_device_scores(family):
    definition = define(family)
    return np.asarray(apply(definition, make_params(definition), *batch()))


@functools.cache
def batch():
    return make_tokens("sharding", (10, 7, 4, 9), 10)


@pytest.mark.parametrize("sizes", MESHES, ids=str)
@pytest.mark.parametrize("family", FAMILIES)
def test_scores_on_a_mesh_are_those_of_one_device(family, sizes):
    definition = define(family, scanned=sizes[1] == 2)
    mesh = make_mesh(MeshConfig(*sizes))
    params = victim.place_params(make_params(definition), definition, mesh, RULES)
    sharding = named_sharding(mesh, RULES, ("examples", None), batch()[0].shape)
    scores = apply(definition, params, *jax.device_put(batch(), sharding))
    assert relative_error(scores, single_device_scores(family)) < 1e-5


@pytest.mark.parametrize("scanned", [False, True])
def test_weights_are_split_as_their_axes_say(scanned):
    definition = define("neox", scanned=scanned)
    mesh = make_mesh(MeshConfig(1, 2, 2))
    makers = [lambda: victim.place_params(make_params(definition), definition, mesh, RULES)]
    if not scanned:  # compiling takes long enough once
        makers.append(lambda: victim.init_params(definition, 0, mesh, RULES))
    for make in makers:
        params = make()
        block = params["blocks"] if scanned else params["blocks"]["01"]
        layer = (None,) if scanned else ()

        def specs(tree):
            return jax.tree.map(lambda leaf: leaf.sharding.spec, tree)

        assert specs(block["qkv"]) == {
            "kernel": PartitionSpec(*layer, "fsdp", "tensor"),
            "bias": PartitionSpec(*layer, "tensor"),
        }
        assert specs(block["mlp_out"]) == {
            "kernel": PartitionSpec(*layer, "tensor", "fsdp"),
            "bias": PartitionSpec(*layer, "fsdp"),
        }
        assert specs(block["mlp_norm"]["scale"]) == PartitionSpec(*layer, "fsdp")
        assert specs(params["embed"]["embedding"]) == PartitionSpec("tensor", "fsdp")
        assert specs(params["head"]["kernel"]) == PartitionSpec("fsdp", None)
        shard = block["qkv"]["kernel"].addressable_shards[0].data
        assert shard.shape[-2:] == (definition.config.width // 2, 3 * definition.config.width // 2)


@pytest.mark.parametrize("head", ["classifier", "lm"])
@pytest.mark.parametrize("scanned", [False, True])
@pytest.mark.parametrize("family", FAMILIES)
def test_every_weight_has_its_axes(family, scanned, head):
    definition = define(family, scanned=scanned, head=head)
    shapes = transformer.abstract_params(definition)
    axes = transformer.logical_axes(definition)
    ranks = jax.tree.map(len, axes, is_leaf=lambda node: isinstance(node, tuple))
    assert ranks == jax.tree.map(lambda leaf: leaf.ndim, shapes)


def test_fresh_weights_do_not_depend_on_the_mesh():
    definition = define("neox")
    alone = transformer.init(definition, 5)
    spread = victim.init_params(definition, 5, make_mesh(MeshConfig(1, 2, 2)), RULES)
    for expected, got in zip(*map(jax.tree.leaves, (alone, spread)), strict=True):
        np.testing.assert_allclose(got, expected, rtol=0, atol=1e-7)


def test_fresh_weights_of_all_seeds_come_from_one_program():
    definition, mesh = define("qwen2"), make_mesh(MeshConfig())
    one, other = (victim.init_params(definition, seed, mesh, RULES) for seed in (0, 2**32 - 1))
    assert not np.array_equal(one["embed"]["embedding"], other["embed"]["embedding"])
    assert victim._maker(definition, mesh, RULES)._cache_size() == 1
