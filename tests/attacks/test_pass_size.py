"""How many candidates a pass scores where the settings leave it open."""

import pytest

from robustjax.attacks.beam_search import BeamSearch
from robustjax.attacks.beast import BEAST
from robustjax.attacks.frame import abstract_inputs, pass_size
from robustjax.attacks.gcg import GCG
from robustjax.attacks.search import module_of
from robustjax.models.transformer import Definition
from tests.models.tiny import CONFIGS

DEFINITION = Definition(CONFIGS["neox"], head="lm")


@pytest.mark.parametrize(
    ("rows", "after", "goal", "expected"),
    [
        (1, 4, 0, 128),  # 1,792 tokens
        (8, 4, 1, 128),  # the one token of the text is predicted, not run
        (8, 4, 4, 64),
        (16, 4, 0, 64),
        (4, 900, 0, 4),
        (64, 900, 0, 1),  # at least one
    ],
)
def test_a_pass_has_at_most_16384_tokens_of_all_examples(rows, after, goal, expected):
    inputs = abstract_inputs(DEFINITION, (200, after, goal), rows)
    assert pass_size(GCG(), 10, inputs) == expected
    assert pass_size(GCG(candidate_chunk=32), 10, inputs) == 32


@pytest.mark.parametrize(
    ("attack", "expected"),
    [
        (GCG(num_candidates=96), 32),
        (BeamSearch(num_candidates=96), 32),
        (BEAST(num_iterations=10, beam_width=12, branch_factor=8), 24),
    ],
    ids=lambda value: getattr(value, "name", ""),
)
def test_programs_score_that_many(attack, expected):
    inputs = abstract_inputs(DEFINITION, (20, 500, 0), 1)
    program = module_of(attack).programs(attack, inputs)["score"]
    assert program.function.keywords["chunk"] == expected
