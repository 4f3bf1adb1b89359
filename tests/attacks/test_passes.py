"""How much of a batch is scored at once, and that each example's result comes back to it."""

import jax.numpy as jnp
import numpy as np
import pytest

from robustjax.attacks import passes
from robustjax.attacks.beam_search import BeamSearch
from robustjax.attacks.beast import BEAST
from robustjax.attacks.frame import abstract_inputs, pass_of
from robustjax.attacks.gcg import GCG
from robustjax.attacks.passes import Pass, by_examples, fitting
from robustjax.attacks.random_token import RandomToken
from robustjax.attacks.search import module_of
from robustjax.models.transformer import Cache, Definition
from tests.models.tiny import CONFIGS

DEFINITION = Definition(CONFIGS["neox"], head="lm")


@pytest.mark.parametrize(
    ("rows", "after", "goal", "expected"),
    [
        (1, 4, 0, (1, 128)),  # 1,792 tokens
        (8, 4, 1, (2, 128)),  # the one token of the text is predicted, not run
        (8, 20, 4, (1, 64)),  # 33 tokens a candidate: 128 of an example are too many
        (7, 4, 0, (1, 128)),
        (16, 0, 0, (2, 128)),  # 3 would fit, but do not divide them
        (4, 900, 0, (1, 4)),
        (64, 9000, 0, (1, 1)),  # at least one
    ],
)
def test_a_pass_has_at_most_4096_tokens(rows, after, goal, expected):
    inputs = abstract_inputs(DEFINITION, (200, after, goal), rows)
    assert pass_of(GCG(), 10, inputs) == Pass(*expected)
    assert pass_of(GCG(candidate_chunk=32), 10, inputs) == Pass(rows, 32)


def test_each_shard_may_have_as_many():
    assert fitting(16, 128, 14, shards=4) == Pass(8, 128, 4)
    assert fitting(4, 128, 14, shards=4) == Pass(4, 128, 4)


@pytest.mark.parametrize(
    ("attack", "expected"),
    [
        (GCG(num_candidates=96), (1, 8)),
        (BeamSearch(num_candidates=96), (1, 8)),
        (BEAST(num_iterations=10, beam_width=12, branch_factor=8), (1, 6)),
        (RandomToken(), (1, 4)),
    ],
    ids=lambda value: getattr(value, "name", ""),
)
def test_programs_score_that_much(attack, expected):
    inputs = abstract_inputs(DEFINITION, (20, 500, 0), 4)
    programs = module_of(attack).programs(attack, inputs)
    program = programs.get("score") or programs["score_replacements"]
    assert program.function.keywords["at_once"] == Pass(*expected)


@pytest.mark.parametrize("at_once", [Pass(6, 1), Pass(2, 1), Pass(1, 1), Pass(4, 1, 2)], ids=str)
@pytest.mark.parametrize("scanned", [False, True])
def test_each_example_gets_its_own_result(at_once, scanned):
    """Keys of an example count up from its number."""
    size = 8 if at_once.shards == 2 else 6
    number = jnp.arange(size)
    of_layer = jnp.broadcast_to(number[:, None, None, None], (size, 2, 3, 4))
    keys = jnp.stack([of_layer, of_layer + 10]) if scanned else (of_layer, of_layer + 10)
    cache = Cache(keys, keys, jnp.broadcast_to(number[:, None] % 2 == 0, (size, 3)))
    seen = []

    def function(cache, x):
        seen.append(x.shape[0])
        second = cache.layer(1)
        assert second.keys.shape == (at_once.examples, 2, 3, 4)
        return jnp.stack([x, second.keys[:, 1, 2, 3], cache.mask[:, 0]], axis=1)

    found = by_examples(function, at_once, cache, number)
    np.testing.assert_array_equal(found, np.stack([number, number + 10, number % 2 == 0], axis=1))
    assert set(seen) == {at_once.examples}


def test_a_pass_takes_examples_of_every_shard():
    """So that none moves to another device."""
    taken = passes._group(jnp.arange(8), 0, number=jnp.array(1), groups=2, shards=2)
    np.testing.assert_array_equal(taken, [2, 3, 6, 7])
