"""Running only what follows a replaced token changes no score, whatever was drawn."""

import dataclasses

import numpy as np
import pytest
from scipy.stats import hypergeom

from robustjax.attacks import gcg, ranking, replacements
from robustjax.attacks.objective import score
from robustjax.attacks.passes import Pass
from robustjax.attacks.replacements import (
    Part,
    Replacements,
    parts_of,
    score_replacements,
    starts_of,
)
from robustjax.attacks.verdict import Scores
from tests.attacks.reference import assert_follows_gcg
from tests.attacks.tiny import ATTACK, INSERT, attack_all, make_examples, make_run, make_victim
from tests.models.tiny import CONFIGS, relative_error


@pytest.mark.parametrize(
    ("examples", "tokens", "top_k", "count", "chunk", "step"),
    [(1, 10, 256, 128, 128, 1), (8, 10, 256, 512, 64, 1), (3, 20, 64, 96, 48, 2)],
)
def test_parts_seldom_start_too_late_and_begin_as_early_as_they_may(
    examples, tokens, top_k, count, chunk, step
):
    parts = parts_of(examples, tokens, top_k, count, chunk)
    rows, starts = zip(*parts, strict=True)
    passes = count // chunk
    assert starts == tuple(range(0, tokens, step))[: len(starts)] and len(starts) >= 9
    assert sum(rows) == count and not any(one % passes for one in rows)

    def odds(start, begin):
        """That more candidates than stand before the part have a place before the start."""
        return examples * hypergeom.sf(begin, tokens * top_k, start * top_k, count)

    for begin, start in zip(np.cumsum(rows) - rows, starts, strict=True):
        assert odds(start, begin) < 1e-3
        assert start == 0 or odds(start, begin - passes) >= 1e-3
    rng = np.random.default_rng(0)
    places = np.repeat(np.arange(tokens), top_k)
    draws = np.sort([rng.choice(places, count, replace=False) for _ in range(2000)], axis=1)
    assert (draws < starts_of(parts)).any(-1).mean() <= 1e-2 / examples


def test_a_single_candidate_a_pass_is_scored_plainly():
    assert parts_of(1, 10, 256, 128, 1) == (Part(128, 0),)


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

    mask = run.full_mask(proposed.slots.shape)
    to_plain = (*known, (run.prefix,), run.batch, proposed.slots, mask)
    plain = score(*to_plain, at_once=Pass(4, 16))
    for examples, chunk in ((4, 16), (2, 4), (1, 1)):
        attack = dataclasses.replace(ATTACK, candidate_chunk=chunk)
        parts = ranking.cut(attack, run.inputs)
        assert len(parts) == {16: 3, 4: 2, 1: 1}[chunk]
        assert (np.asarray(proposed.places) >= starts_of(parts)).all()
        found = score_replacements(
            *(*known, run.prefix, run.batch, state.slots, incumbent, proposed),
            at_once=Pass(examples, chunk),
            parts=parts,
        )
        assert relative_error(found.loss, plain.loss) < 1e-5
        assert relative_error(found.answer, plain.answer) < 1e-5
        np.testing.assert_array_equal(found.success, plain.success)


@pytest.fixture
def late_starts(monkeypatch):
    """Starts that about half of the examples' draws defy."""
    monkeypatch.setattr(replacements, "_ODDS", 0.5)
    parts_of.cache_clear()
    yield
    parts_of.cache_clear()


def test_what_defies_the_odds_is_scored_again_by_the_same_program(victim, examples, late_starts):
    attack = dataclasses.replace(ATTACK, num_iterations=4, top_k=9)
    runs = []

    def seen(*arguments):
        scores, count = in_time(*arguments)
        runs.extend(count)
        return scores, count

    with pytest.MonkeyPatch.context() as patch:
        in_time = ranking._in_time
        patch.setattr(ranking, "_in_time", seen)
        found = attack_all(victim, examples[:4], attack, seed=1)
    assert {1, 2} <= set(map(int, runs))
    run = make_run(victim, examples[:4], attack, seed=1)
    assert "score" not in gcg.programs(attack, run.inputs)
    for prompt in run.prompts:
        record = found[prompt.example.example_id]
        assert_follows_gcg(victim, prompt.example, INSERT, attack, 1, record, prompt.slot)


def test_whether_others_defy_the_odds_changes_no_bit(victim, examples, late_starts):
    attack = dataclasses.replace(ATTACK, top_k=9)
    together = attack_all(victim, examples[:4], attack, seed=1)
    for example in examples[:4]:
        alone = attack_all(victim, [example], attack, seed=1)
        assert alone[example.example_id] == together[example.example_id]


def test_however_many_are_late_each_is_scored_where_it_stands_early_enough(victim, examples):
    """A stand-in program tells of each row which candidate it saw and whether it was in time."""
    parts = (Part(2, 0), Part(3, 1), Part(3, 3))
    starts = starts_of(parts)
    assert starts.tolist() == [0, 0, 1, 1, 1, 3, 3, 3]
    places = np.array(
        [[0, 0, 0, 0, 0, 0, 0, 0], [0, 1, 1, 2, 2, 3, 3, 3], [0, 0, 1, 1, 2, 2, 3, 3]]
    )
    places = np.concatenate([places, places[:1]])  # as many rows as the batch has
    number = np.arange(places.size, dtype=np.int32).reshape(places.shape)
    run = make_run(victim, examples[:4], ATTACK)
    passes = []

    def score_parts(proposed):
        seen, where = run.fetch(tuple(proposed))
        passes.append(seen)
        loss = np.where(where < starts, np.nan, seen[..., 0]).astype(np.float32)
        return Scores(*run.put((loss, where >= starts, seen.astype(np.float32))))

    proposed = Replacements(*run.put((number[..., None], places.astype(np.int32))))
    scores, runs = ranking._in_time(run, score_parts, proposed, score_parts(proposed), parts)

    np.testing.assert_array_equal(run.fetch(scores.loss), number)
    np.testing.assert_array_equal(run.fetch(scores.answer)[..., 0], number)
    assert run.fetch(scores.success).all()
    assert runs.tolist() == [4, 1, 2, 4] and len(passes) == 4
