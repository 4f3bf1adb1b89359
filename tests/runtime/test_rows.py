"""Arrays in and out: what a process puts and fetches of a batch that it shares with others."""

import jax
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from robustjax.runtime import distributed, rows
from robustjax.runtime.mesh import AxisRules, MeshConfig, make_mesh
from robustjax.runtime.rows import Heard, Rows, anywhere, fetch, put

RULES = AxisRules()


@pytest.fixture(params=[(4, 1, 1), (2, 2, 1), (1, 1, 4)], ids=str)
def mesh(request):
    return make_mesh(MeshConfig(*request.param))


def test_alone_all_rows_are_ones_own(mesh):
    batch = Rows(mesh, RULES, 8)
    assert batch.mine.tolist() == list(range(8)) and not batch.are_split
    values = np.random.default_rng(0).normal(size=(8, 3))
    tree = {"a": values.astype(np.float32), "b": np.arange(8)[:, None]}
    placed = batch.put(tree)
    assert len(placed["a"].addressable_shards) == 4
    for back in (batch.fetch(placed), batch.gather(placed), batch.own(tree)):
        jax.tree.map(np.testing.assert_array_equal, back, tree)


def test_rows_lie_where_the_rules_say(mesh):
    split = mesh.shape["data"] * mesh.shape["fsdp"]
    for axis, shape in ((0, (8, 6)), (1, (6, 8))):
        placed = Rows(mesh, RULES, 8).put(np.zeros(shape, np.float32), axis)
        sizes = {shard.data.shape[axis] for shard in placed.addressable_shards}
        assert sizes == {8 // split}


def test_rows_that_cannot_be_split_are_everywhere(mesh):
    placed = Rows(mesh, RULES, 7).put(np.arange(7))
    assert placed.is_fully_replicated


def test_numbers_of_64_bits_survive_a_gathering(mesh, monkeypatch):
    """As if rows were split: through devices that have no such numbers."""
    batch = Rows(mesh, RULES, 8)
    monkeypatch.setattr(Rows, "are_split", True)
    for values in (np.arange(8) + 2**40, np.linspace(0, 1, 8) / 3, np.arange(16).reshape(2, 8)):
        back = batch.gather(values, axis=values.ndim - 1)
        assert back.dtype == values.dtype
        np.testing.assert_array_equal(back, values)
    assert batch.gather(np.int64(2**40)) == 2**40  # it has no rows


def test_a_scalar_has_no_rows(mesh):
    tree = (np.array(3), np.arange(8))
    assert Rows(mesh, RULES, 8).own(tree)[0] == 3


def test_put_and_fetch_are_copies_of_the_same(mesh):
    sharding = NamedSharding(mesh, PartitionSpec("data"))
    values = np.arange(8, dtype=np.float32)
    placed = put(values, sharding)
    assert placed.sharding == sharding
    np.testing.assert_array_equal(fetch({"x": placed})["x"], values)


def test_one_process_hears_itself_at_once():
    heard = Heard()
    assert heard(True, False).tolist() == [True, False]
    assert heard(False, True).tolist() == [False, True]
    assert anywhere(False, True).tolist() == [False, True]


def test_of_several_processes_each_hears_all_a_call_later(monkeypatch):
    monkeypatch.setattr(distributed, "count", lambda: 2)
    heard = Heard()
    assert heard(True, False).tolist() == [False, False]
    assert heard(False, False).tolist() == [True, False]
    assert heard(False, True).tolist() == [False, False]
    assert anywhere(False, True).tolist() == [False, True]  # waits, and is not late


def test_what_is_asked_is_asked_of_every_device():
    every, _, _ = rows._panel()
    assert every.mesh.size == jax.device_count()
