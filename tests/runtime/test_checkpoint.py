"""What is restored is what was saved, bit for bit, or it is not restored at all."""

import json
import logging
import os
import pathlib
import threading
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from absl import logging as absl_logging
from etils import epath
from jax.sharding import PartitionSpec as P

from robustjax.errors import UserError
from robustjax.runtime import checkpoint as checkpoint_module
from robustjax.runtime.checkpoint import (
    Checkpoints,
    iterate_params,
    load_metadata,
    load_params,
    save_params,
)
from robustjax.runtime.mesh import MeshConfig, make_mesh


def _tree():
    # Bit patterns that a detour through another type, or through text, would not bring back.
    params = {
        "embed": jnp.asarray([[0.1, -0.0, jnp.inf], [1e-42, jnp.nan, 3.0]], jnp.float32),
        "layers": {"mlp": {"kernel": jnp.arange(24, dtype=jnp.bfloat16).reshape(2, 3, 4) / 7}},
    }
    return {
        "params": params,
        "optimizer": optax.adamw(1e-3).init(params),
        "key": jax.random.key_data(jax.random.key(7)),
        "position": jnp.asarray(-(2**31), jnp.int32),
        "mask": jnp.asarray([True, False]),
        "empty": jnp.zeros((0, 3)),
        "losses": np.asarray([1.5, np.inf], np.float64),
        "age": np.int64(2**40),
        "mixed": np.asarray([0.1], jnp.bfloat16),
    }


def _save(folder, step, arrays, metadata, keep=1):
    """Saves and waits for it."""
    checkpoints = Checkpoints(folder, keep)
    checkpoints.save(step, arrays, metadata)
    checkpoints.wait()


def _zeros(leaf):
    """Zeros of the same kind: JAX array, NumPy array or NumPy scalar."""
    return jnp.zeros_like(leaf) if isinstance(leaf, jax.Array) else np.zeros_like(leaf)[()]


def _assert_same(got, want):
    assert jax.tree.structure(got) == jax.tree.structure(want)
    named = jax.tree_util.tree_leaves_with_path(want)
    for (path, a), b in zip(named, jax.tree.leaves(got), strict=True):
        assert isinstance(b, jax.Array) == isinstance(a, jax.Array), path
        assert (a.dtype, a.shape) == (b.dtype, b.shape), path
        assert np.asarray(a).tobytes() == np.asarray(b).tobytes(), path


def test_round_trip_is_bit_exact(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    metadata = {"epoch": 3, "flops": 1e20, "names": ["ü", None], "nested": {"a": 0.1}}
    checkpoints.save(12, _tree(), metadata)
    like = jax.tree.map(_zeros, _tree())
    step, arrays, restored_metadata = checkpoints.restore(like)
    assert (step, restored_metadata) == (12, metadata)
    _assert_same(arrays, _tree())


def test_a_folder_may_be_relative_to_the_current_one(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    tree = _tree()
    _save("runs/checkpoints", 3, tree, {})
    save_params(pathlib.Path("runs/model"), tree["params"], {"name": "x"})
    _, got, _ = Checkpoints("runs/checkpoints").restore(jax.tree.map(_zeros, tree))
    _assert_same(got, tree)
    params, metadata = load_params("runs/model", jax.tree.map(_zeros, tree["params"]))
    _assert_same(params, tree["params"])
    assert metadata == {"name": "x"}
    assert (tmp_path / "runs" / "model" / "COMPLETE.json").exists()


def test_restored_arrays_have_the_shardings_of_like(tmp_path):
    values = np.arange(32, dtype=np.float32).reshape(8, 4)
    four = make_mesh(MeshConfig(data=4), jax.devices()[:4])
    two = make_mesh(MeshConfig(data=2, tensor=2), jax.devices()[:4])
    sharded = jax.NamedSharding(four, P("data"))
    other = jax.NamedSharding(two, P("tensor", "data"))
    _save(tmp_path, 0, {"w": jax.device_put(values, sharded)}, {})
    for sharding in (sharded, other, jax.NamedSharding(two, P())):
        like = {"w": jax.ShapeDtypeStruct((8, 4), jnp.float32, sharding=sharding)}
        _, arrays, _ = Checkpoints(tmp_path).restore(like)
        assert arrays["w"].sharding == sharding
        np.testing.assert_array_equal(arrays["w"], values)
    _, arrays, _ = Checkpoints(tmp_path).restore({"w": jax.ShapeDtypeStruct((8, 4), jnp.float32)})
    assert arrays["w"].devices() == {jax.devices()[0]}


def test_keeps_the_newest(tmp_path):
    checkpoints = Checkpoints(tmp_path / "new", keep=2)
    assert checkpoints.latest_step() is None
    for step in (1, 5, 20, 100):
        checkpoints.save(step, {"x": np.arange(step)}, {})
    checkpoints.wait()
    assert sorted(os.listdir(tmp_path / "new")) == ["00000020", "00000100"]
    assert checkpoints.latest_step() == 100
    assert checkpoints.restore({"x": np.zeros(20, int)}, step=20)[0] == 20


@pytest.mark.parametrize("is_torn", [True, False])
def test_what_a_kill_while_deleting_left_is_tidied_away(tmp_path, is_torn):
    for step in (1, 2):
        _save(tmp_path, step, {"a": np.full(2, step)}, {}, keep=2)
    if is_torn:
        (tmp_path / "00000001" / "COMPLETE.json").unlink()
    with pytest.raises(ValueError, match="stopped"), Checkpoints(tmp_path):
        raise ValueError("stopped")
    assert len(os.listdir(tmp_path)) == 2
    with Checkpoints(tmp_path):
        pass
    assert os.listdir(tmp_path) == ["00000002"]
    assert Checkpoints(tmp_path).restore({"a": np.zeros(2, int)})[0] == 2
    with Checkpoints(tmp_path / "none"):
        pass
    assert not (tmp_path / "none").exists()


def test_an_old_step_that_is_half_deleted_does_not_look_whole(tmp_path, monkeypatch):
    _save(tmp_path, 1, {"a": np.zeros(2)}, {})

    def killed(folder):
        raise KeyboardInterrupt

    monkeypatch.setattr(type(epath.Path(tmp_path)), "rmtree", killed)
    with pytest.raises(KeyboardInterrupt):
        _save(tmp_path, 2, {"a": np.zeros(2)}, {})
    assert not (tmp_path / "00000001" / "COMPLETE.json").exists()
    assert Checkpoints(tmp_path).latest_step() == 2


def test_a_step_can_be_saved_again(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(1, {"old": np.arange(3)}, {"a": 1})
    checkpoints.save(1, {"x": np.arange(4)}, {"a": 2})
    _, arrays, metadata = checkpoints.restore({"x": np.zeros(4, int)})
    assert metadata == {"a": 2} and arrays["x"].tolist() == [0, 1, 2, 3]


def test_no_arrays_are_fine(tmp_path):
    _save(tmp_path, 0, {}, {"a": 1})
    assert Checkpoints(tmp_path).restore({}) == (0, {}, {"a": 1})


def _garble(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def _files(folder):
    return sorted(path for path in folder.rglob("*") if path.is_file())


def test_garbage_in_any_file_of_the_newest_falls_back(tmp_path, caplog):
    like = {"x": np.zeros(5000)}
    names = []
    for number in range(100):
        folder = tmp_path / str(number)
        checkpoints = Checkpoints(folder, keep=2)
        checkpoints.save(3, {"x": np.arange(5000.0)}, {"step": 3})
        checkpoints.save(4, {"x": np.ones(5000)}, {"step": 4})
        checkpoints.wait()
        files = _files(folder / "00000004")
        if number == len(files):
            break
        names.append(files[number].name)
        if number % 3 == 0:
            _garble(files[number])
        elif number % 3 == 1:
            files[number].write_bytes(files[number].read_bytes()[:-1])
        else:
            files[number].unlink()
        caplog.clear()
        step, arrays, metadata = checkpoints.restore(like)
        assert (step, metadata["step"], arrays["x"][-1]) == (3, 3, 4999.0), names[-1]
        if files[number].exists() or names[-1] != "COMPLETE.json":
            assert "00000004" in caplog.text and names[-1] in caplog.text
        assert checkpoints.latest_step() == (3 if names[-1] == "COMPLETE.json" else 4)
        with pytest.raises(UserError, match="choose another step"):
            checkpoints.restore(like, step=4)
    assert {"COMPLETE.json", "metadata.json", "manifest.ocdbt"} <= set(names)


def test_after_a_fall_back_the_good_one_is_kept_and_the_damaged_goes(tmp_path):
    like = {"x": np.zeros(3)}
    checkpoints = Checkpoints(tmp_path, keep=1)
    _save(tmp_path, 3, {"x": np.zeros(3)}, {}, keep=2)
    _save(tmp_path, 9, {"x": np.ones(3)}, {}, keep=2)
    _garble(tmp_path / "00000009" / "metadata.json")
    assert checkpoints.restore(like)[0] == 3
    checkpoints.save(4, {"x": np.zeros(3)}, {})
    checkpoints.wait()
    assert os.listdir(tmp_path) == ["00000004"]
    assert checkpoints.restore(like)[0] == 4


def test_nothing_to_restore(tmp_path):
    checkpoints = Checkpoints(tmp_path / "none")
    with pytest.raises(UserError, match="no checkpoint"):
        checkpoints.restore({})
    checkpoints.save(0, {"x": np.zeros(1)}, {})
    checkpoints.wait()
    with pytest.raises(UserError, match="not saved to the end"):
        checkpoints.restore({"x": np.zeros(1)}, step=1)
    _garble(tmp_path / "none" / "00000000" / "metadata.json")
    with pytest.raises(UserError, match="every checkpoint is damaged"):
        checkpoints.restore({"x": np.zeros(1)})
    with pytest.raises(ValueError, match="keep=0 is below 1"):
        Checkpoints(tmp_path, keep=0)
    with pytest.raises(UserError, match="keep_checkpoints=0 must be at least 1"):
        checkpoint_module.check_kept(0)


@pytest.mark.parametrize(
    ("like", "message"),
    [
        ({"a": {"w": np.zeros((2, 4), "f4")}}, r"a.w is float32\[2,3\] there, float32\[2,4\] here"),
        ({"a": {"w": np.zeros((2, 3), "i4")}}, r"a.w is float32\[2,3\] there, int32\[2,3\] here"),
        ({"a": {}}, r"a.w is float32\[2,3\] there, absent here"),
        (
            {"a": {"w": np.zeros((2, 3), "f4"), "b": np.zeros(())}},
            r"a.b is absent there, float64\[\] here",
        ),
    ],
)
def test_arrays_that_differ_from_like_are_named(tmp_path, like, message):
    checkpoints = Checkpoints(tmp_path, keep=2)
    for step in range(2):  # a mistake of the caller's is no reason to fall back
        checkpoints.save(step, {"a": {"w": np.zeros((2, 3), np.float32)}}, {})
    with pytest.raises(UserError, match=message):
        checkpoints.restore(like)


@pytest.fixture
def slow_disk(monkeypatch):
    """Writing the last file waits for this event."""
    go = threading.Event()
    fingerprints = checkpoint_module.fingerprints

    def slow(*files):
        assert go.wait(60)
        return fingerprints(*files)

    monkeypatch.setattr(checkpoint_module, "fingerprints", slow)
    yield go
    go.set()


def test_what_changes_after_a_save_does_not_reach_the_disk(tmp_path):
    """Be it donated, overwritten or deleted."""
    step = jax.jit(lambda x: x + 1, donate_argnums=0)
    mesh = make_mesh(MeshConfig(data=4), jax.devices()[:4])
    shape = (300, 10_000)  # takes long enough to write to lose the race if nothing was copied
    for number in range(3):
        one, deleted = (jnp.full(shape, number, jnp.float32) for _ in range(2))
        many = jax.device_put(one, jax.NamedSharding(mesh, P("data")))
        tree = {"one": one, "many": many, "host": np.full(shape, number), "deleted": deleted}
        like = jax.tree.map(_zeros, tree)
        with Checkpoints(tmp_path / str(number)) as checkpoints:
            checkpoints.save(1, tree, {"rounds": (rounds := [1])})
            rounds.append(2)
            later = [step(one), step(many)]
            tree["host"][:] = -1
            deleted.delete()
            assert one.is_deleted() and many.is_deleted()  # or this would prove nothing
        _, arrays, metadata = checkpoints.restore(like)
        assert metadata == {"rounds": [1]}
        for name, array in arrays.items():
            assert (np.asarray(array) == number).all(), name
        assert all((np.asarray(array) == number + 1).all() for array in later)


def test_work_goes_on_while_a_step_is_written(tmp_path, slow_disk):
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(1, {"x": np.zeros(3)}, {})
    assert Checkpoints(tmp_path).latest_step() is None
    slow_disk.set()
    assert checkpoints.latest_step() == 1


def test_one_step_is_written_at_a_time(tmp_path, slow_disk):
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(1, {"x": np.zeros(3)}, {})
    second = threading.Thread(target=checkpoints.save, args=(2, {"x": np.ones(3)}, {}))
    second.start()
    time.sleep(0.2)
    assert os.listdir(tmp_path) == ["00000001"]
    slow_disk.set()
    second.join()
    assert checkpoints.restore({"x": np.zeros(3)})[0] == 2


@pytest.mark.parametrize("stop", [KeyboardInterrupt, None])
def test_the_step_being_written_is_finished_however_the_run_ends(tmp_path, slow_disk, stop):
    def run():
        with Checkpoints(tmp_path) as checkpoints:
            checkpoints.save(1, {"x": np.zeros(3)}, {})
            threading.Timer(0.2, slow_disk.set).start()
            if stop is not None:
                raise stop

    if stop is None:
        run()
    else:
        with pytest.raises(stop):
            run()
    assert Checkpoints(tmp_path).latest_step() == 1


def test_a_failed_save_is_raised_at_the_next_and_costs_nothing_else(tmp_path, monkeypatch):
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(1, {"x": np.zeros(3)}, {})
    checkpoints.wait()

    def full(*_):
        raise OSError("no space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint_module, "write_json", full)
        checkpoints.save(2, {"x": np.ones(3)}, {})
        with pytest.raises(OSError, match="no space left"):
            checkpoints.save(3, {"x": np.ones(3)}, {})
    assert checkpoints.latest_step() == 1
    checkpoints.save(3, {"x": np.ones(3)}, {})
    assert checkpoints.latest_step() == 3
    assert os.listdir(tmp_path) == ["00000003"]


def test_what_cannot_be_saved_is_refused_before_anything_is_deleted(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    good = {"x": np.zeros(1)}
    checkpoints.save(1, good, {})
    bad_trees = [
        ({"x": 1.0}, "x is a float, not an array"),
        ({"x": jax.random.key(0)}, "x is a typed key"),
        ({"a.b": np.zeros(1), "a": {"b": np.zeros(1)}}, "two arrays are called a.b"),
    ]
    for tree, message in bad_trees:
        with pytest.raises(ValueError, match=message):
            checkpoints.save(1, tree, {})
    for metadata in ({"loss": float("inf")}, {"loss": np.float32(1)}):
        with pytest.raises(ValueError, match="checkpoint metadata"):
            checkpoints.save(1, good, metadata)
    with pytest.raises(ValueError, match="negative"):
        checkpoints.save(-1, good, {})
    assert checkpoints.restore(good)[0] == 1


def test_a_model_folder(tmp_path):
    (tmp_path / "tokenizer.json").write_text("{}")
    params = {"w": jnp.ones((2, 3), jnp.bfloat16)}
    with pytest.raises(UserError, match="not saved to the end"):
        load_params(tmp_path, params)
    save_params(tmp_path, {"old": jnp.zeros(3)}, {})
    save_params(tmp_path, params, {"num_classes": 2})
    assert load_metadata(tmp_path) == {"num_classes": 2}
    loaded, metadata = load_params(tmp_path, jax.tree.map(jnp.zeros_like, params))
    _assert_same(loaded, params)
    assert metadata == {"num_classes": 2}
    assert (tmp_path / "tokenizer.json").exists()
    _garble(tmp_path / "metadata.json")
    for load in (lambda: load_params(tmp_path, params), lambda: load_metadata(tmp_path)):
        with pytest.raises(UserError, match="metadata.json is not what was written"):
            load()


def test_a_model_is_read_array_by_array(tmp_path):
    params = {"a": {"w": jnp.arange(6.0).reshape(2, 3)}, "b": np.zeros((0, 2)), "c": jnp.ones(4)}
    save_params(tmp_path, params, {})
    arrays = iterate_params(tmp_path, params)

    name, first = next(arrays)
    assert name == "a.w"
    np.testing.assert_array_equal(first, params["a"]["w"])
    rest = dict(arrays)
    assert list(rest) == ["b", "c"]
    _assert_same(rest, {"b": params["b"], "c": params["c"]})

    with pytest.raises(UserError, match=r"array c is float32\[4\] there, float32\[5\] here"):
        next(iterate_params(tmp_path, params | {"c": jnp.ones(5)}))
    (tmp_path / "COMPLETE.json").unlink()
    with pytest.raises(UserError, match="not saved to the end"):
        next(iterate_params(tmp_path, params))


def test_a_torn_save_of_a_model_is_not_a_mix_of_two(tmp_path, monkeypatch):
    save_params(tmp_path, {"w": np.zeros(3)}, {})

    def killed(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("robustjax.runtime.checkpoint.fingerprints", killed)
    with pytest.raises(KeyboardInterrupt):
        save_params(tmp_path, {"w": np.ones(3)}, {})
    with pytest.raises(UserError, match="not saved to the end"):
        load_params(tmp_path, {"w": np.ones(3)})


def test_orbax_is_quiet(tmp_path, capfd, recwarn):
    before = absl_logging.get_verbosity()
    absl_logging.set_verbosity(absl_logging.INFO)
    logging.getLogger().addHandler(handler := logging.StreamHandler())
    try:
        _save(tmp_path, 0, _tree(), {})
        Checkpoints(tmp_path).restore(_tree())
        assert absl_logging.get_verbosity() == absl_logging.INFO
    finally:
        logging.getLogger().removeHandler(handler)
        absl_logging.set_verbosity(before)
    assert capfd.readouterr() == ("", "")
    assert not recwarn.list


def test_the_marker_lists_every_file(tmp_path):
    _save(tmp_path, 0, _tree(), {})
    folder = tmp_path / "00000000"
    marker = json.loads((folder / "COMPLETE.json").read_text())
    there = {path.relative_to(folder).as_posix() for path in _files(folder)}
    assert marker["files"].keys() == there - {"COMPLETE.json"}
    assert marker["arrays"]["params.layers.mlp.kernel"] == ["bfloat16", [2, 3, 4]]
