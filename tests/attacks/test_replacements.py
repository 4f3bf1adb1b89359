"""Running only what follows a replaced token changes no score, whatever was drawn."""

import dataclasses

import numpy as np
import pytest
from scipy.stats import hypergeom

from robustjax.attacks import gcg, ranking, replacements
from robustjax.attacks.objective import score
from robustjax.attacks.replacements import (
    choose,
    defies_the_odds,
    most_parts,
    part_starts,
    score_replacements,
)
from tests.attacks.reference import assert_follows_gcg
from tests.attacks.tiny import ATTACK, INSERT, attack_all, make_examples, make_run, make_victim
from tests.models.tiny import CONFIGS, relative_error


def test_candidates_are_cut_into_at_most_four_equal_parts():
    assert [most_parts(count) for count in (128, 16, 4, 6, 5, 1, 2)] == [4, 4, 4, 3, 1, 1, 2]
    assert gcg.GCG(num_candidates=128).chunk == 32
    assert gcg.GCG(num_candidates=7).chunk == 7
    assert gcg.GCG(candidate_chunk=128).chunk == 128


@pytest.mark.parametrize(
    ("tokens", "top_k", "count", "chunk"), [(10, 256, 128, 32), (10, 256, 512, 16), (20, 64, 96, 8)]
)
def test_starts_are_seldom_too_late_and_one_more_would_be_too_often(tokens, top_k, count, chunk):
    starts = part_starts(tokens, top_k, count, chunk)
    assert len(starts) == 4 and starts[0] == 0 and sorted(starts) == list(starts)

    def odds(start, part):
        """That more candidates than stand before the part have a place before the start."""
        return hypergeom.sf(part * count // 4, tokens * top_k, start * top_k, count)

    for part, start in enumerate(starts):
        assert odds(start, part) < 1e-4
        assert start == tokens - 1 or odds(start + 1, part) >= 1e-4
    rng = np.random.default_rng(0)
    places = np.repeat(np.arange(tokens), top_k)
    draws = np.sort([rng.choice(places, count, replace=False) for _ in range(2000)], axis=1)
    assert defies_the_odds(draws, starts).mean() <= 2e-3
    assert part_starts(tokens, top_k, count, count) == (0,)


# Each family, head and kind of layers, but not all combinations: each takes long to compile.
@pytest.mark.parametrize(
    ("family", "head", "scanned"),
    [("neox", "classifier", False), ("qwen2", "lm", False), ("qwen2", "classifier", True)],
)
def test_parts_score_as_the_whole_does(family, head, scanned, tiny_tokenizer):
    config = dataclasses.replace(CONFIGS[family], vocab=512, context=512)
    victim = make_victim(tiny_tokenizer, head=head, config=config, scanned=scanned)
    known = (victim.definition, victim.params)
    run = make_run(victim, make_examples(victim)[:4], ATTACK)
    function, arguments = gcg.programs(ATTACK, run.inputs)["propose"]
    state = gcg.init(ATTACK, run)
    _, incumbent, proposed, _ = function(*arguments[:3], state, *arguments[4:6], np.uint32(0))

    starts = ranking.starts(ATTACK, run.num_allowed)
    assert not defies_the_odds(np.asarray(proposed.places), starts).any()
    mask = run.full_mask(proposed.slots.shape)
    plain = score(*known, (run.prefix,), run.batch, proposed.slots, mask, chunk=16)
    for chunk in (4, 1):
        parts = score_replacements(
            *(*known, run.prefix, run.batch, state.slots, incumbent, proposed),
            chunk=chunk,
            starts=starts,
        )
        assert relative_error(parts.loss, plain.loss) < 1e-5
        assert relative_error(parts.answer, plain.answer) < 1e-5
        np.testing.assert_array_equal(parts.success, plain.success)


@pytest.fixture
def late_starts(monkeypatch):
    """Starts that about half of the examples' draws defy."""
    monkeypatch.setattr(replacements, "_ODDS", 0.5)
    part_starts.cache_clear()
    yield
    part_starts.cache_clear()


def test_an_example_that_defies_the_odds_is_scored_plainly(victim, examples, late_starts):
    attack = dataclasses.replace(ATTACK, num_iterations=4, top_k=9)
    defied = []

    def seen(places, starts):
        defied.extend(defies_the_odds(places, starts))
        return defies_the_odds(places, starts)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ranking, "defies_the_odds", seen)
        found = attack_all(victim, examples[:4], attack, seed=1)
    assert {True, False} <= set(map(bool, defied))
    run = make_run(victim, examples[:4], attack, seed=1)
    for prompt in run.prompts:
        record = found[prompt.example.example_id]
        assert_follows_gcg(victim, prompt.example, INSERT, attack, 1, record, prompt.slot)


def test_whether_others_defy_the_odds_changes_no_bit(victim, examples, late_starts):
    attack = dataclasses.replace(ATTACK, top_k=9)
    together = attack_all(victim, examples[:4], attack, seed=1)
    for example in examples[:4]:
        alone = attack_all(victim, [example], attack, seed=1)
        assert alone[example.example_id] == together[example.example_id]


def test_choosing_is_by_example():
    one, other = (
        replacements.Scores(*(np.full(shape, value) for shape in ((2, 3), (2, 3), (2, 3, 5))))
        for value in (1.0, 2.0)
    )
    chosen = choose(np.array([True, False]), one, other)
    for array in chosen:
        assert (np.asarray(array)[0] == 1).all() and (np.asarray(array)[1] == 2).all()
