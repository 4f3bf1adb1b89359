"""A search that is interrupted after any iteration: the same bits, and nothing done twice."""

import dataclasses
import io

import jax
import numpy as np
import pytest

from robustjax.attacks.beam_search import BeamSearch
from robustjax.attacks.beast import BEAST
from robustjax.attacks.random_token import RandomToken
from robustjax.attacks.saved_search import SavedSearch, weight_sums
from robustjax.attacks.search import SearchConfig
from robustjax.evaluation.evaluate import attack_examples
from tests.attacks.tiny import ATTACK, INSERT, make_examples, make_victim
from tests.evaluation.interrupted import Interrupted

ATTACKS = {
    "gcg": ATTACK,
    "random_token": RandomToken(num_iterations=8, num_tokens=4, iterations_per_pass=3),
    "beam_search": BeamSearch(num_iterations=3, num_tokens=4, num_candidates=16, beam_width=3),
    "beast": BEAST(num_iterations=3, beam_width=3, branch_factor=4),
}
CONFIG = SearchConfig(batch_size=2, edges=(48, 96))
EACH_ATTACK = pytest.mark.parametrize("name", sorted(ATTACKS))


@pytest.fixture(scope="module")
def models(tiny_tokenizer):
    """A victim and a language model to sample from, with all of jax's own optimisations."""
    victim = make_victim(tiny_tokenizer, width=24)
    return victim, make_victim(tiny_tokenizer, width=24, head="lm")


@pytest.fixture(scope="module")
def examples(models):
    """Three in two batches of one shape; the last is half filler."""
    return make_examples(models[0])[1:4]


@pytest.fixture(scope="module")
def whole(models, examples, tmp_path_factory):
    """Records and file of the uninterrupted run of an attack."""
    known = {}

    def one(attack):
        if attack not in known:
            path = tmp_path_factory.mktemp("whole") / "attack_records.jsonl"
            known[attack] = run(models, examples, attack, path), path.read_bytes()
        return known[attack]

    return one


def run(models, examples, attack, path=None, seed=0):
    victim, companion = models
    companion = companion if attack.needs_companion else None
    return attack_examples(
        *(victim, examples, INSERT, attack),
        **{"config": CONFIG, "path": path, "seed": seed, "companion": companion},
        save_seconds=0.0,
    )[0]


@pytest.mark.parametrize("stop_at_success", [False, True], ids=["all", "stop"])
@EACH_ATTACK
def test_it_goes_on_at_the_iteration_and_ends_with_the_same_bits(
    models, examples, whole, monkeypatch, tmp_path, name, stop_at_success
):
    attack = dataclasses.replace(ATTACKS[name], stop_at_success=stop_at_success)
    records, expected = whole(attack)
    interrupted = Interrupted(monkeypatch, attack)
    run(models, examples, attack)
    steps, total = list(interrupted.steps), len(interrupted.steps)
    assert total > 2 and len({example for example, _ in steps}) == 2

    for count in range(1, total + 1):
        interrupted.steps.clear()
        path = tmp_path / str(count) / "attack_records.jsonl"
        path.parent.mkdir()
        interrupted.after(count, lambda path=path: run(models, examples, attack, path))
        state = path.with_name("attack_state.npz")
        with np.load(state, allow_pickle=False) as arrays:
            assert all(arrays[one].dtype != object for one in arrays)
        assert run(models, examples, attack, path) == records
        assert path.read_bytes() == expected
        assert interrupted.steps == steps, "an iteration was done twice, or not at all"
        assert not state.exists()
        left = {one.name for one in path.parent.iterdir()}
        assert left == {"attack_records.jsonl", "attack_records.search.json"}


@EACH_ATTACK
def test_interrupted_after_every_iteration_it_still_ends_with_the_same_bits(
    models, examples, whole, monkeypatch, tmp_path, name
):
    attack = ATTACKS[name]
    records, expected = whole(attack)
    interrupted = Interrupted(monkeypatch, attack)
    path = tmp_path / "attack_records.jsonl"
    steps_of_batch = -(-attack.num_iterations // getattr(attack, "iterations_per_pass", 1))
    total = 2 * steps_of_batch

    for _ in range(total):
        interrupted.after(1, lambda: run(models, examples, attack, path))

    assert run(models, examples, attack, path) == records
    assert path.read_bytes() == expected
    assert len(interrupted.steps) == total


@pytest.fixture
def left(models, examples, monkeypatch, tmp_path):
    """left(attack) -> the path of a run that was interrupted after its first step."""

    def one(attack):
        path = tmp_path / "attack_records.jsonl"
        with monkeypatch.context() as patch:
            interrupted = Interrupted(patch, attack)
            interrupted.after(1, lambda: run(models, examples, attack, path))
        return path

    return one


def first_steps(monkeypatch, models, examples, attack, path, seed=0):
    """The records of a run, and the iteration that it began with."""
    with monkeypatch.context() as patch:
        interrupted = Interrupted(patch, attack)
        records = run(models, examples, attack, path, seed)
    assert not path.with_name("attack_state.npz").exists()
    return records, interrupted.steps[0][1]


def test_what_was_saved_of_another_search_is_left_alone(models, examples, whole, left, monkeypatch):
    attack = ATTACKS["beast"]
    path = left(attack)
    saved = path.with_name("attack_state.npz").read_bytes()
    victim, companion = models

    def changed(model, name):
        """A model with one weight that is slightly another one."""

        def one(path, leaf):
            is_it = jax.tree_util.keystr(path, simple=True, separator=".") == name
            return leaf.at[(0,) * leaf.ndim].add(1e-3) if is_it else leaf

        params = jax.tree_util.tree_map_with_path(one, model.params)
        assert not jax.tree.all(jax.tree.map(np.array_equal, params, model.params))
        return model.with_params(params)

    others = {
        "another seed": (models, attack, 1),
        "other settings": (models, dataclasses.replace(attack, branch_factor=2), 0),
        "another position": (models, dataclasses.replace(attack, position=0.5), 0),
        "another head": ((changed(victim, "head.kernel"), companion), attack, 0),
        "another sampler": (
            (victim, changed(companion, "blocks.01.mlp_out.bias")),
            attack,
            0,
        ),
        "another attack": (models, ATTACKS["beam_search"], 0),
        "the same": (models, attack, 0),
    }
    for name, (pair, other, seed) in others.items():
        path.unlink(missing_ok=True)
        path.with_name("attack_state.npz").write_bytes(saved)
        records, first = first_steps(monkeypatch, pair, examples, other, path, seed)
        assert first == (2 if name == "the same" else 1), name
        if name == "the same":
            assert records == whole(attack)[0]
        else:
            assert records == run(pair, examples, other, seed=seed), name


def test_any_bit_of_any_weight_and_their_order_changes_the_sums(models):
    params = models[0].params
    before = np.asarray(weight_sums(params))
    leaves, tree = jax.tree.flatten(params)
    assert len(before) == len(leaves)
    for index, leaf in enumerate(leaves):
        host = np.array(leaf)
        flipped = host.view(np.uint32).copy()
        flipped.flat[-1] ^= 1
        rolled = np.roll(host, 1)
        for other in (flipped.view(np.float32), rolled):
            some = [*leaves[:index], jax.numpy.asarray(other), *leaves[index + 1 :]]
            after = np.asarray(weight_sums(jax.tree.unflatten(tree, some)))
            differs = np.flatnonzero(after != before).tolist()
            assert differs == ([] if np.array_equal(other, host) else [index])


def test_a_damaged_file_is_ignored_with_a_warning(
    models, examples, whole, left, monkeypatch, caplog
):
    attack = ATTACKS["beam_search"]
    path = left(attack)
    state = path.with_name("attack_state.npz")
    saved = state.read_bytes()
    for damaged in (saved[: len(saved) // 2], b"", saved[9:]):
        state.write_bytes(damaged)
        path.unlink(missing_ok=True)
        caplog.clear()
        records, first = first_steps(monkeypatch, models, examples, attack, path)
        assert (records, first) == (whole(attack)[0], 1)
        assert "attack_state.npz cannot be read" in caplog.text
        assert "starts again" in caplog.text


def test_no_damage_goes_unseen(left, tmp_path, caplog):
    """Cut off anywhere, or one byte another: what is read is what was written, or nothing."""
    state = left(ATTACKS["beam_search"]).with_name("attack_state.npz")
    data = state.read_bytes()
    with np.load(io.BytesIO(data), allow_pickle=False) as arrays:
        expected = dict(arrays)
    key = str(expected.pop("key"))
    expected.pop("digest")
    count = sum(name.startswith("leaf") for name in expected) - 9  # fields of Seen but `calls`
    like = tuple(range(count))
    saved = SavedSearch(tmp_path / "state.npz")

    def loaded(some):
        (tmp_path / "state.npz").write_bytes(some)
        return saved.load(key, like)

    whole = loaded(data)
    assert len(whole.state) == count and whole.seen.loss.shape == (1, 2)
    rng = np.random.default_rng(0)
    for place in rng.integers(0, len(data), 150):
        assert loaded(data[:place]) is None
        other = bytearray(data)
        other[place] ^= 1 << int(rng.integers(8))
        found = loaded(bytes(other))
        assert found is None or jax.tree.all(jax.tree.map(np.array_equal, found, whole))
