"""The attack on embeddings: what it moves, how far, and what the update then answers to."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from robustjax.data.prompts import ChunkKind, Example
from robustjax.errors import UserError
from robustjax.models import transformer
from robustjax.training.embedding import EmbeddingAttack, free_rows, worst_shift
from robustjax.training.objective import OBJECTIVES
from tests.training.conftest import same_bits
from tests.training.test_step import distance, make_batch, update_of

ATTACK = EmbeddingAttack(num_steps=3, epsilon=0.5, step_size=0.2)


@pytest.fixture(scope="module")
def victim(make_victim):
    return make_victim()


@pytest.fixture(scope="module")
def batch():
    whole = make_batch()
    free = np.zeros(whole.tokens.shape, bool)
    free[:, ::2, 1:4] = True  # of every other row, and of all of the shortest
    return whole._replace(free=free & whole.mask)


def scored(definition, params, batch, shift):
    tokens, mask, label = (x[0] for x in batch[:3])
    scores = transformer.apply(definition, params, tokens, mask, shift)
    return OBJECTIVES["classifier"].losses(scores, tokens, mask, label)


losses_of = jax.jit(scored, static_argnums=0)


@functools.partial(jax.jit, static_argnums=(0, 3))
def shift_of(definition, params, batch, attack=ATTACK):
    losses = functools.partial(scored, definition, params, batch)
    return worst_shift(attack, losses, params["embed"]["embedding"], jnp.asarray(batch.free[0]))


def unit(victim):
    return float(np.sqrt(np.mean(np.square(victim.params["embed"]["embedding"]))))


def test_free_embeddings_move_to_a_higher_loss_inside_their_box(victim, batch):
    model = victim.definition, victim.params
    shift = np.asarray(shift_of(*model, batch))
    free = batch.free[0]
    assert not shift[~free].any()
    most = 0.5 * unit(victim)
    assert np.abs(shift).max() == pytest.approx(most, rel=1e-6)  # 3 steps of 0.2 reach it
    before, after = losses_of(*model, batch, None), losses_of(*model, batch, shift)
    moved = free.any(-1)
    assert (after[moved] > before[moved] + 1e-3).all()
    np.testing.assert_allclose(after[~moved], before[~moved], atol=1e-6)


def test_a_step_goes_along_the_sign_of_the_gradient(victim, batch):
    one = EmbeddingAttack(num_steps=1, epsilon=1.0, step_size=0.3)
    zeros = jnp.zeros((*batch.free[0].shape, 16))
    model = victim.definition, victim.params
    gradient = jax.grad(lambda x: losses_of(*model, batch, x).sum())(zeros)
    clear = (np.abs(gradient) > 1e-6) & batch.free[0][..., None]
    expected = 0.3 * unit(victim) * np.sign(gradient)
    found = np.asarray(shift_of(*model, batch, one))
    assert clear.sum() > 100
    np.testing.assert_allclose(found[clear], expected[clear], rtol=1e-6)


def test_a_row_is_moved_by_itself(victim, batch):
    alone = batch._replace(free=np.where(np.arange(8)[:, None] == 2, batch.free, False))
    found, whole = (shift_of(victim.definition, victim.params, one) for one in (alone, batch))
    assert same_bits(found[2], whole[2]) and np.asarray(whole[4]).any()
    assert not np.asarray(found[4]).any()


def test_the_update_answers_to_the_moved_embeddings(victim, batch):
    definition, params = victim.definition, victim.params
    shift = shift_of(definition, params, batch)
    expected = jax.grad(lambda params: losses_of(definition, params, batch, shift).mean())(params)
    found, losses = update_of(definition, params, batch, ATTACK)
    assert distance(found, expected) < 2e-6
    np.testing.assert_allclose(losses[0], losses_of(definition, params, batch, shift), rtol=1e-5)
    still = batch._replace(free=np.zeros_like(batch.free))
    clean, _ = update_of(definition, params, still, ATTACK)
    assert distance(clean, found) > 1e-2


def test_nothing_free_is_training_without_an_attack(victim, batch):
    still = batch._replace(free=np.zeros_like(batch.free))
    found, _ = update_of(victim.definition, victim.params, still, ATTACK)
    expected, _ = update_of(victim.definition, victim.params, batch)
    assert distance(found, expected) < 2e-6


def example(number, content, kind=" of it"):
    return Example(number, "Read this.", (content, kind), "\n\nAnswer:", 0, 1, " yes", " no")


def rows_of(attack, victim, examples, seed):
    rows = victim.tokenizer.encode([one.text for one in examples])
    return free_rows(attack, victim, examples, rows, KINDS, seed)


KINDS = (ChunkKind.IMMUTABLE, ChunkKind.PERTURBABLE, ChunkKind.IMMUTABLE, ChunkKind.IMMUTABLE)


@pytest.mark.parametrize("position", [0.0, 0.9, 1.0])
def test_a_slot_of_random_tokens_is_free(victim, position):
    attack = EmbeddingAttack(num_tokens=4, position=position)
    examples = [example(i, f" some words of text {i}") for i in range(3)]
    decode = victim.tokenizer.decode
    rows = rows_of(attack, victim, examples, seed=1)
    for (ids, free), one in zip(rows, examples, strict=True):
        assert len(free) == 4
        before, slot, after = decode(
            [ids[: free.start], ids[free.start : free.stop], ids[free.stop :]]
        )
        assert before + after == one.text and slot
        assert decode([ids])[0] == before + slot + after
        cut = len("Read this.") + int(position * len(one.content[0]))
        assert len(before) == cut
    slots = [tuple(ids[free.start : free.stop]) for ids, free in rows]
    other = rows_of(attack, victim, examples, seed=2)
    assert len({*slots, *(tuple(ids[free.start : free.stop]) for ids, free in other)}) == 6
    assert rows_of(attack, victim, examples, seed=1) == rows


def test_the_content_itself_is_free_for_it(victim):
    attack = EmbeddingAttack(target="content")
    assert attack.added_tokens == 0 and EmbeddingAttack().added_tokens == 10
    one = example(0, " some words and more")
    ((ids, free),) = rows_of(attack, victim, [one], seed=0)
    assert victim.tokenizer.encode([one.text]) == [ids]
    (text,) = victim.tokenizer.decode([ids[free.start : free.stop]])
    assert text and text in one.content[0]
    # What is left out shares a token with a neighbour.
    assert len(text) > len(one.content[0]) - 6


def test_an_example_without_room_for_a_slot_stays_as_it_is(victim):
    one = example(0, " word" * 120)
    ((ids, free),) = rows_of(EmbeddingAttack(), victim, [one], seed=0)
    assert victim.tokenizer.encode([one.text]) == [ids] and not free


@pytest.mark.parametrize(
    "fields",
    [
        {"num_steps": 0},
        {"num_tokens": 0},
        {"epsilon": 0.0},
        {"epsilon": float("inf")},
        {"step_size": -1.0},
        {"step_size": float("nan")},
        {"position": 1.5},
    ],
)
def test_bad_settings(fields):
    (name,) = fields
    with pytest.raises(UserError, match=f"{name}="):
        EmbeddingAttack(**fields)
