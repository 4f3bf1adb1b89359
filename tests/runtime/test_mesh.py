"""The mesh takes the devices asked for, and the rules lay arrays out on it."""

from unittest import mock

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from robustjax.errors import UserError
from robustjax.runtime.mesh import (
    AXES,
    AxisRules,
    MeshConfig,
    make_mesh,
    named_sharding,
    replicated,
    tree_shardings,
)

FOUR = jax.devices()[:4]
RULES = AxisRules()


def test_there_are_four_devices_to_test_on():
    assert len(FOUR) == 4


def test_default_is_one_device_with_auto_axes():
    mesh = make_mesh(MeshConfig())
    assert mesh.axis_names == AXES == ("data", "fsdp", "tensor")
    assert mesh.devices.shape == (1, 1, 1)
    assert mesh.devices.item() == jax.devices()[0]
    assert mesh.axis_types == (AxisType.Auto,) * 3


def test_minus_one_takes_the_rest():
    assert make_mesh(MeshConfig(data=-1, tensor=2), FOUR).devices.shape == (2, 1, 2)
    assert make_mesh(MeshConfig(fsdp=-1), FOUR).devices.shape == (1, 4, 1)


def test_a_smaller_mesh_takes_the_first_devices():
    mesh = make_mesh(MeshConfig(data=2), FOUR)
    assert list(mesh.devices.flat) == FOUR[:2]


def test_too_many_devices_is_one_line_with_the_device_table():
    with pytest.raises(UserError, match=r"data 2 x fsdp 1 x tensor 4 = 8 devices, more than the 4"):
        make_mesh(MeshConfig(data=2, tensor=4), FOUR)
    with pytest.raises(UserError, match=r"process 0: 4 x cpu 'cpu'") as caught:
        make_mesh(MeshConfig(data=8), FOUR)
    assert "\n" not in str(caught.value)


def test_minus_one_that_does_not_divide_is_an_error():
    with pytest.raises(UserError, match="leaves no whole number for -1"):
        make_mesh(MeshConfig(data=-1, tensor=3), FOUR)
    with pytest.raises(UserError, match="leaves no whole number for -1"):
        make_mesh(MeshConfig(data=-1, tensor=8), FOUR)


def test_several_processes_have_to_be_covered():
    elsewhere = mock.Mock(spec=jax.Device, process_index=1, platform="cpu", device_kind="cpu")
    with pytest.raises(UserError, match="not all of the 5 there are"):
        make_mesh(MeshConfig(data=4), [*FOUR, elsewhere])


@pytest.mark.parametrize("size", [0, -2, True])
def test_a_size_is_a_positive_integer_or_minus_one(size):
    with pytest.raises(UserError, match="mesh.fsdp: "):
        MeshConfig(fsdp=size)


def test_minus_one_only_once():
    with pytest.raises(UserError, match="more than one axis"):
        MeshConfig(data=-1, fsdp=-1)


def test_specs_of_the_default_rules():
    assert RULES.spec(("batch", None)) == P(("data", "fsdp"), None)
    assert RULES.spec(("examples", "candidates", None)) == P(("data", "fsdp"), None, None)
    assert RULES.spec(("vocab", "embed")) == P("tensor", "fsdp")
    assert RULES.spec(("layers", "embed", "heads")) == P(None, "fsdp", "tensor")
    assert RULES.spec(("embed", "mlp")) == P("fsdp", "tensor")
    assert RULES.spec(("embed", "classes")) == P("fsdp", None)


def test_a_mesh_axis_is_used_once():
    with pytest.raises(ValueError, match="'tensor' twice"):
        RULES.spec(("heads", "mlp"))
    with pytest.raises(ValueError, match="'fsdp' twice"):
        RULES.spec(("batch", "embed"))


def test_unknown_names_are_errors():
    with pytest.raises(ValueError, match="'headz' has no rule"):
        RULES.spec(("headz",))
    with pytest.raises(ValueError, match="rule mlp"):
        AxisRules(mlp=("model",))


def test_rules_can_be_changed():
    assert AxisRules(candidates=("tensor",)).spec(("candidates",)) == P("tensor")


def test_axes_that_do_not_divide_are_split_less():
    mesh = make_mesh(MeshConfig(data=2, fsdp=2), FOUR)
    assert RULES.spec_for_shape(mesh, ("batch", None), (8, 3)) == P(("data", "fsdp"), None)
    assert RULES.spec_for_shape(mesh, ("batch", None), (6, 3)) == P("data", None)
    assert RULES.spec_for_shape(mesh, ("batch", None), (5, 3)) == P(None, None)
    with pytest.raises(ValueError, match="name 2 axes, the shape"):
        RULES.spec_for_shape(mesh, ("batch", None), (8,))


def test_falling_back_does_not_hide_a_clash():
    mesh = make_mesh(MeshConfig(tensor=4), FOUR)
    with pytest.raises(ValueError, match="twice"):
        RULES.spec_for_shape(mesh, ("heads", "mlp"), (4, 3))


def test_tree_shardings_place_arrays():
    mesh = make_mesh(MeshConfig(fsdp=2, tensor=2), FOUR)
    logical = {"embedding": ("vocab", "embed"), "head": {"kernel": ("embed", "vocab"), "bias": ()}}
    arrays = {
        "embedding": jnp.zeros((4, 6)),
        "head": {"kernel": jnp.zeros((6, 3)), "bias": jnp.zeros(())},
    }
    specs = jax.tree.map(lambda sharding: sharding.spec, tree_shardings(mesh, RULES, logical))
    assert specs["head"] == {"kernel": P("fsdp", "tensor"), "bias": P()}
    placed = jax.device_put(arrays, tree_shardings(mesh, RULES, logical, like=arrays))
    assert placed["embedding"].sharding.spec == P("tensor", "fsdp")
    assert placed["embedding"].addressable_shards[0].data.shape == (2, 3)
    assert placed["head"]["kernel"].addressable_shards[0].data.shape == (3, 3)


def test_single_shardings():
    mesh = make_mesh(MeshConfig(data=4), FOUR)
    assert replicated(mesh) == NamedSharding(mesh, P())
    assert named_sharding(mesh, RULES, ("batch",)).spec == P(("data", "fsdp"))
    assert named_sharding(mesh, RULES, ("batch",), (6,)).spec == P(None)
