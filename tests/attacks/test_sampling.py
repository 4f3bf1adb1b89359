"""Sampling without replacement: the right distribution, and as many samples as fit."""

import dataclasses

import jax
import numpy as np
import pytest

from robustjax.attacks import sampling
from robustjax.attacks.retokenize import SlotText
from robustjax.models import transformer
from robustjax.models.transformer import Definition
from tests.attacks.tiny import letters_tokenizer, make_victim
from tests.models.tiny import CONFIGS

LETTERS = 5
apply, encode = (jax.jit(f, static_argnums=0) for f in (transformer.apply, transformer.encode))
TEXT, BEAM = [3, 1], [2]


@pytest.fixture(scope="module")
def model():
    return make_victim(letters_tokenizer("abcde"), vocab=8, width=8, head="lm", weights=1.3)


def draw(model, tokens, rows, count=LETTERS, seed=0):
    """Samples after TEXT and beams [K, A], of which the first token counts."""
    definition, params = model.definition, model.params
    ids = np.tile(np.array(TEXT, np.int32), (rows, 1))
    prefix = encode(definition, params, ids[:, :-1], np.ones((rows, 1), bool))
    tokens = np.tile(np.array(tokens, np.int32), (rows, 1, 1))
    shape = sampling.pair_shape(definition, *tokens.shape)
    forbidden = ~np.isin(np.arange(8), model.tokenizer.allowed_attack_ids)
    pairs = sampling.both(definition, np.zeros(shape, np.float32))
    for now in range(len(BEAM) + 1):
        pairs, drawn, possible = sampling.extend(
            *(definition, params, prefix, jax.tree.map(jax.numpy.array, pairs), tokens),
            *(ids[:, -1], np.int32(now), forbidden, np.uint32(seed)),
            np.arange(rows, dtype=np.uint32),
            count=count,
        )
    return np.asarray(drawn), np.asarray(possible)


def chi_square(counts, expected):
    return float(((counts - expected) ** 2 / expected).sum())


def test_ordered_pairs_are_drawn_as_often_as_the_model_says(model):
    rows = 4000
    drawn, possible = draw(model, [[*BEAM, 0]], rows)

    assert possible.all() and (np.sort(drawn[:, 0], -1) == np.arange(1, 6)).all()
    text = np.array([[*TEXT, *BEAM]], np.int32)
    scores = apply(model.definition, model.params, text, np.ones((1, 3), bool))
    weight = np.exp(np.asarray(scores, np.float64)[0, -1, 1 : LETTERS + 1])
    p = weight / weight.sum()
    assert p.max() > 2 * p.min(), "a uniform distribution would not tell"
    expected = rows * p[:, None] * p[None] / (1 - p[:, None])
    counts = np.zeros((LETTERS, LETTERS))
    np.add.at(counts, tuple(drawn[:, 0, :2].T - 1), 1)
    off = ~np.eye(LETTERS, dtype=bool)
    assert chi_square(counts[off], expected[off]) < 43.8  # 0.999 quantile, 19 degrees of freedom
    uniform = np.full(off.sum(), rows / off.sum())
    assert chi_square(counts[off], uniform) > 43.8


def test_a_sample_depends_on_the_tokens_of_its_beam_and_not_on_its_rank(model):
    beams = [[1, 4], [2, 4], [5, 3], [2, 1]]
    drawn, _ = draw(model, beams, 64)
    turned, _ = draw(model, beams[::-1], 64)

    np.testing.assert_array_equal(turned, drawn[:, ::-1])
    # Only the first token counts, so two of them are the same beam; others have noise of their own.
    np.testing.assert_array_equal(drawn[:, 1], drawn[:, 3])
    others = ((0, 1), (1, 2), (0, 2))
    assert all((drawn[:, a, 0] != drawn[:, b, 0]).sum() > 16 for a, b in others)
    assert (draw(model, beams, 64, seed=1)[0] != drawn).any()


def test_what_is_forbidden_is_never_possible(model):
    drawn, possible = draw(model, [[*BEAM, 0]], 64, count=8)

    assert possible.sum(-1).tolist() == [[LETTERS]] * 64
    assert (np.sort(drawn[possible].reshape(64, -1), -1) == np.arange(1, LETTERS + 1)).all()


def test_the_first_that_fit_are_taken_in_order(monkeypatch):
    """Six samples, of which three are wanted; what ends in an odd id does not fit."""
    asked = []

    def retokenise(tokenizer, surroundings, slots, width):
        names = [one.before for one in surroundings]
        asked.extend(zip(names, *slots[:, 0].T.tolist(), strict=True))
        padded = np.pad(slots, ((0, 0), (0, 0), (0, width - slots.shape[-1])))
        return padded, padded > 0, slots[..., -1] % 2 == 0

    monkeypatch.setattr("robustjax.attacks.retokenize.retokenise", retokenise)
    tokenizer = letters_tokenizer()
    around = [dataclasses.replace(SlotText.of_ids((), ()), before=name) for name in "xy"]
    beams = np.array([[[10], [20]], [[30], [40]]], np.int32)
    drawn = np.array(
        [[[1, 2, 3, 4, 6, 8], [2, 4, 6, 8, 1, 3]], [[1, 3, 5, 7, 2, 9], [2, 2, 2, 2, 2, 2]]],
        np.int32,
    )
    possible = np.ones(drawn.shape, bool)
    possible[1, 1] = False  # not alive
    possible[1, 0, 5] = False

    grown = sampling.fitting(tokenizer, around, beams, drawn, possible, branch=3, width=4)

    assert grown.tokens[grown.valid].tolist() == [2, 4, 6, 2, 4, 6, 2]
    assert grown.valid.tolist() == [[True] * 6, [True] + [False] * 5]
    assert grown.slots[0, 3].tolist() == [20, 2, 0, 0]
    assert grown.mask[0, 3].tolist() == [True, True, False, False]
    assert grown.passed_over.tolist() == [2, 4]
    assert len(set(asked)) == len(asked) == 5 + 3 + 5, "nothing is tried that is not needed"
    assert {name for name, first, _ in asked if first < 30} == {"x"}


def test_fewer_samples_are_the_first_of_more(model):
    few, _ = draw(model, [[*BEAM, 0]], 64, count=2)
    many, _ = draw(model, [[*BEAM, 0]], 64)

    np.testing.assert_array_equal(few, many[..., :2])


def test_many_tokens_are_looked_at_however_few_are_wanted():
    def count(wanted, *vocabularies):
        victim, sampler = (
            Definition(dataclasses.replace(CONFIGS["neox"], vocab=vocab)) for vocab in vocabularies
        )
        return sampling.num_samples(wanted, victim, sampler)

    assert [count(wanted, 50_304, 50_304) for wanted in (1, 15, 85, 86, 200)] == [
        *(256, 256, 256, 258, 600)
    ]
    assert (count(1, 100, 300), count(1, 300, 100), count(200, 400, 500)) == (100, 100, 400)


def test_fewer_samples_than_are_wanted_leave_room(monkeypatch):
    monkeypatch.setattr(
        "robustjax.attacks.retokenize.retokenise",
        lambda tokenizer, around, slots, width: (
            slots,
            np.ones(slots.shape, bool),
            np.ones(slots.shape[:2], bool),
        ),
    )
    around = [SlotText.of_ids((), ())]
    drawn = np.array([[[3, 4]]], np.int32)
    beams = np.zeros((1, 1, 0), np.int32)

    grown = sampling.fitting(
        letters_tokenizer(), around, beams, drawn, np.ones(drawn.shape, bool), branch=4, width=1
    )

    assert grown.valid.tolist() == [[True, True, False, False]]
    assert grown.tokens[grown.valid].tolist() == [3, 4]
