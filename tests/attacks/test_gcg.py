"""GCG against the plain algorithm, its optimum against exhaustive search, and its programs."""

import dataclasses
import itertools

import jax
import numpy as np
import pytest

from robustjax.attacks import gcg, replacements
from robustjax.attacks.beam_search import BeamSearch
from robustjax.attacks.frame import BatchRun
from robustjax.attacks.gcg import GCG
from robustjax.attacks.search import SearchConfig, bucket_shape, plan, prepare, run_batches
from robustjax.errors import UserError
from robustjax.evaluation.evaluate import attack_examples
from robustjax.runtime import compilation
from robustjax.runtime.mesh import MeshConfig
from tests.attacks.reference import (
    assert_follows_gcg,
    assert_reports_what_was_scored,
    losses_of_texts,
)
from tests.attacks.tiny import (
    ATTACK,
    CONFIG,
    INSERT,
    OVERWRITE,
    TEXTS_BY_POSITION,
    attack_all,
    letters_tokenizer,
    make_examples,
    make_run,
    make_victim,
    starts_of,
)

BEAM_SEARCH = BeamSearch(num_iterations=3, num_tokens=4, num_candidates=16, beam_width=3)


def assert_all_follow(victim, examples, attack, kinds=INSERT, seed=0, config=CONFIG, replay=None):
    records = attack_all(victim, examples, attack, kinds, seed=seed, config=config)
    starts = starts_of(victim, examples, attack, kinds, seed)
    assert len(records) == len(examples)
    for example in examples:
        one = example.example_id
        assert_follows_gcg(
            replay or victim, example, kinds, attack, seed, records[one], starts[one]
        )


def test_it_is_the_plain_algorithm(victim, examples):
    attack = dataclasses.replace(ATTACK, num_iterations=8)

    assert_all_follow(victim, examples[:3], attack, seed=7)


@pytest.mark.parametrize("batch_size", [1, 3])
def test_batch_size_changes_nothing_but_rounding(victim, examples, batch_size):
    config = dataclasses.replace(CONFIG, batch_size=batch_size)

    assert_all_follow(victim, examples[:3], ATTACK, config=config)


@pytest.mark.parametrize("chunk", [1, 4])  # eight in one pass elsewhere
def test_chunk_changes_nothing_but_rounding(victim, examples, chunk):
    attack = dataclasses.replace(ATTACK, candidate_chunk=chunk, num_iterations=2)

    assert_all_follow(victim, examples[:2], attack)


def test_devices_change_nothing_but_rounding(victim, examples, tiny_tokenizer):
    wide = make_victim(tiny_tokenizer, mesh=MeshConfig(data=4))

    run = make_run(wide, examples[:4], ATTACK)
    assert run.batch.before.sharding.spec[0] is not None, "examples are not split over devices"
    assert_all_follow(wide, examples[:4], ATTACK, replay=victim)


@pytest.mark.parametrize("position", sorted(TEXTS_BY_POSITION))
def test_what_is_reported_is_what_was_scored(victim, position):
    attack = dataclasses.replace(ATTACK, position=position)
    examples = make_examples(victim, TEXTS_BY_POSITION[position])

    records = attack_all(victim, examples, attack)

    for example in examples:
        record = records[example.example_id]
        assert_reports_what_was_scored(victim, example, INSERT, position, record)


def test_an_overwritten_chunk_is_replaced(victim):
    examples = make_examples(victim, kinds=OVERWRITE)[:2]

    records = attack_all(victim, examples, ATTACK, kinds=OVERWRITE)

    for example in examples:
        record = records[example.example_id]
        assert_reports_what_was_scored(victim, example, OVERWRITE, 1.0, record)


@pytest.fixture(scope="module")
def toy():
    """A victim of a language of twelve letters, where every slot can be tried."""
    victim = make_victim(letters_tokenizer(), vocab=16, width=8)
    return victim, make_examples(victim, ["abc", "feed", "lake", "jail"])


# Four examples with all replacements scored at once: enough rounds to come to rest.
@pytest.mark.parametrize(("width", "count"), [(1, 12), (2, 24)])
def test_it_finds_the_best_of_all_slots(toy, width, count):
    victim, examples = toy
    attack = GCG(num_iterations=6, num_tokens=width, num_candidates=count, top_k=12)

    records, starts = attack_all(victim, examples, attack), starts_of(victim, examples, attack)

    texts = ["".join(letters) for letters in itertools.product("abcdefghijkl", repeat=width)]
    reached = 0
    for example in examples:
        loss = losses_of_texts(victim, example, texts)
        path = ["".join(victim.tokenizer.decode([starts[example.example_id]]))]
        path += [step.slot_text for step in records[example.example_id].iterations]
        for old, new in itertools.pairwise(path):
            neighbours = [
                text for text in loss if sum(a != b for a, b in zip(old, text, strict=True)) == 1
            ]
            assert loss[new] <= min(loss[text] for text in neighbours) + 1e-5
        reached += min(loss[text] for text in path) <= min(loss.values()) + 1e-5
    assert reached == len(examples)


def test_only_allowed_tokens_are_proposed_and_each_replacement_once(toy):
    """Special ids and padded rows of the embedding are not among the twelve letters."""
    victim, examples = toy
    attack = GCG(num_iterations=6, num_tokens=2, num_candidates=24, top_k=12)
    run = make_run(victim, examples, attack)
    state = gcg.init(attack, run)
    slots = state.slots
    function, arguments = gcg.programs(attack, run.inputs)["propose"]

    _, _, proposed, _ = function(*arguments[:3], state, *arguments[4:6], np.uint32(0))

    assert (np.diff(proposed.places) >= 0).all()
    differs = np.asarray(proposed.slots) != np.asarray(slots)[:, None]
    assert not (differs & (np.arange(2) != np.asarray(proposed.places)[..., None])).any()
    for slot, rows in zip(np.asarray(slots), np.asarray(proposed.slots), strict=True):
        expected = {(letter, slot[1]) for letter in range(1, 13)}
        expected |= {(slot[0], letter) for letter in range(1, 13)}
        assert set(map(tuple, rows)) == expected
        assert len(rows) == 24  # the slot itself was proposed twice: it survives no filter


def test_when_no_candidate_survives_the_incumbent_stays(victim, examples, monkeypatch):
    survivors, calls = BatchRun.survivors, itertools.count(1)

    def none_in_iteration_2(run, candidates, current):
        return survivors(run, candidates, current) & (next(calls) != 2)

    monkeypatch.setattr(BatchRun, "survivors", none_in_iteration_2)
    records = attack_all(victim, examples[:2], ATTACK)

    for record in records.values():
        first, second, third = record.iterations
        assert second.num_valid == 0
        assert (second.slot_text, second.success) == (first.slot_text, first.success)
        np.testing.assert_allclose(second.loss, first.loss, rtol=0, atol=1e-5)
        assert third.num_valid > 0
        assert third.slot_text != second.slot_text


def test_a_tokenizer_without_clean_replacements_keeps_its_start(victim, examples, monkeypatch):
    monkeypatch.setattr(
        "robustjax.attacks.retokenize.survivors",
        lambda tokenizer, surroundings, candidates, current: np.zeros(candidates.shape[:2], bool),
    )
    records = attack_all(victim, examples[:2], ATTACK)
    starts = starts_of(victim, examples[:2], ATTACK)

    for example_id, record in records.items():
        (text,) = victim.tokenizer.decode([starts[example_id]])
        assert [step.slot_text for step in record.iterations] == [text] * ATTACK.num_iterations
        assert [step.num_valid for step in record.iterations] == [0] * ATTACK.num_iterations
        assert np.isfinite(record.logits).all()


def test_algorithmic_flops_count_survivors_and_real_tokens(victim, examples):
    example = examples[1]
    records = attack_all(victim, [example], ATTACK)
    record = records[example.example_id]

    # A forward and a backward pass for the gradient (2 N T + 4 N T), a forward pass a survivor.
    tokens = len(victim.tokenizer.encode([record.attacked_text])[0])
    survivors = sum(step.num_valid for step in record.iterations)
    assert record.flops_algorithmic == victim.num_params * tokens * (
        ATTACK.num_iterations * (2 + 4) + 2 * survivors
    )


@pytest.mark.parametrize(
    ("attack", "odds"),
    [(ATTACK, 1e-3), (dataclasses.replace(ATTACK, top_k=9), 0.5), (BEAM_SEARCH, 1e-3)],
    ids=["gcg", "gcg-late", "beam_search"],
)
def test_nothing_is_compiled_after_the_first_iteration(
    tiny_tokenizer, monkeypatch, request, attack, odds
):
    """At most five programs a bucket, each compiled once, also where draws defy the odds."""
    monkeypatch.setattr(replacements, "_ODDS", odds)
    replacements.parts_of.cache_clear()
    request.addfinalizer(replacements.parts_of.cache_clear)
    # A definition of its own: nothing is cached.
    victim = make_victim(tiny_tokenizer, context=511 - len(request.node.name))
    examples = make_examples(victim)
    prompts, _ = prepare(victim, examples, INSERT, attack, 0)
    first, second, *_ = plan(prompts, CONFIG)
    assert first.shape == second.shape
    compiled, traced = [], []

    def listen(event, seconds, fun_name="", **_):
        if event.endswith("backend_compile_duration"):
            compiled.append(fun_name)
        elif event.endswith("jaxpr_trace_duration"):
            traced.append(fun_name)

    counts = []

    def tick(batch, iterations):
        counts.append((len(compiled), len(traced)))

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        done = list(run_batches(victim, [first, second], attack, 0, CONFIG, tick))
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)

    expected = {"propose", "score_replacements"} if attack.name == "gcg" else {"score"}
    assert {"encode_prefix", *expected} <= set(traced)
    assert counts[0][0] <= 5, compiled
    assert len(counts) == 2 * attack.num_iterations
    if attack.name == "gcg":
        runs = np.concatenate([seen.calls["score_replacements"] for _, _, (seen, _) in done])
        assert (runs.max() > 1) == (odds == 0.5)
    assert len(set(counts)) == 1, (compiled, traced)


def test_letting_programs_go_between_batches_changes_nothing(
    victim, examples, monkeypatch, tmp_path
):
    kept, _ = attack_examples(victim, examples, INSERT, ATTACK, config=CONFIG)
    full = tmp_path / "max_map_count"
    full.write_text("1")
    monkeypatch.setattr(compilation, "_MAX_MAPS", full)
    cleared = []
    monkeypatch.setattr(jax, "clear_caches", lambda clear=jax.clear_caches: cleared.append(clear()))

    let_go, _ = attack_examples(victim, examples, INSERT, ATTACK, config=CONFIG)

    assert let_go == kept
    prompts, _ = prepare(victim, examples, INSERT, ATTACK, 0)
    assert len(cleared) == len(plan(prompts, CONFIG)) > 1


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_iterations": 0}, "num_iterations=0"),
        ({"num_tokens": 0}, "num_tokens=0"),
        ({"num_candidates": 0}, "num_candidates=0"),
        ({"top_k": 0}, "top_k=0"),
        ({"candidate_chunk": -1}, "candidate_chunk=-1 must be"),
        ({"num_iterations": True}, "num_iterations=True"),
        ({"num_tokens": 2, "top_k": 4, "num_candidates": 9}, "num_candidates=9.*8 replacements"),
        ({"num_candidates": 128, "candidate_chunk": 48}, "candidate_chunk=48 does not divide"),
        ({"position": 1.5}, "position=1.5"),
        ({"position": -0.1}, "position=-0.1"),
        ({"position": float("nan")}, "position=nan"),
    ],
)
def test_settings_that_make_no_sense_are_refused(settings, message):
    with pytest.raises(UserError, match=message):
        GCG(**settings)


def test_more_candidates_than_the_tokenizer_allows_are_refused(toy):
    victim, examples = toy
    attack = GCG(num_tokens=2, num_candidates=25, top_k=256)

    with pytest.raises(UserError, match="num_candidates=25 .* 24 replacements"):
        attack_examples(victim, examples, INSERT, attack, config=CONFIG)


def test_ties_take_the_first_candidate_and_invalid_ones_never_win():
    scores = gcg.Scores(
        np.array([[0.1, 0.5, 0.5, 0.9], [0.1, 0.2, 0.3, 0.4]], np.float32),
        np.array([[True, False, True, False], [True] * 4]),
        np.arange(16, dtype=np.float32).reshape(2, 4, 2),
    )
    current = gcg.Scores(
        np.array([[0.7], [0.8]], np.float32),
        np.array([[False], [False]]),
        np.full((2, 1, 2), -1, np.float32),
    )
    valid = np.array([[False, True, True, True], [False] * 4])
    proposed = np.arange(16, dtype=np.int32).reshape(2, 4, 2)
    slots = np.array([[90, 91], [92, 93]], np.int32)

    got = gcg.select(*jax.tree.map(jax.numpy.asarray, (slots, current, proposed, scores, valid)))

    np.testing.assert_array_equal(got.slots, [[2, 3], [92, 93]])
    np.testing.assert_allclose(got.loss, [0.5, 0.8])
    np.testing.assert_array_equal(got.success, [False, False])
    np.testing.assert_array_equal(got.answer, [[2, 3], [-1, -1]])
    np.testing.assert_array_equal(got.num_valid, [3, 0])


def test_search_config_is_checked():
    with pytest.raises(UserError, match="batch_size=0"):
        SearchConfig(batch_size=0)
    with pytest.raises(UserError, match="edges"):
        SearchConfig(edges=(64, 32))


@pytest.mark.parametrize("first", [1, 12, 16, 20, 24, 128])
def test_a_tail_fits_its_bucket_whatever_the_first_edge(first):
    config = SearchConfig(edges=(first, 512))
    for length in range(1, 513):
        _, after, goal = bucket_shape(1, length, length, config)
        assert after == goal >= length and (after == length or length > 8)
        assert after in {length, 12, 16, 24, first, 512}


def test_a_prompt_that_no_bucket_is_wide_enough_for_is_named(victim, examples):
    config = dataclasses.replace(CONFIG, edges=(4,))
    with pytest.raises(UserError, match=r"edges=\(4,\): example \d+ has a part of \d+ tokens"):
        attack_examples(victim, examples[:2], INSERT, ATTACK, config=config)
