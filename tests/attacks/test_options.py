"""Options of the attacks: each against its own plain algorithm, alone and in company."""

import dataclasses
import functools
import re

import jax
import numpy as np
import pytest

from robustjax.attacks import candidates, gcg, probe
from robustjax.attacks.frame import in_bfloat16, to_bfloat16
from robustjax.attacks.gcg import GCG
from robustjax.attacks.random_token import RandomToken
from robustjax.attacks.verdict import ANY_OTHER
from robustjax.errors import UserError
from robustjax.evaluation import flops
from robustjax.evaluation.evaluate import attack_examples
from tests.attacks.reference import (
    TOLERANCE,
    WIDTH,
    Reference,
    assert_follows_gcg,
    assert_reports_what_was_scored,
    cross_entropy,
    whole_scores,
)
from tests.attacks.tiny import (
    ATTACK,
    CONFIG,
    INSERT,
    TEXTS,
    attack_all,
    fold_in,
    letters_tokenizer,
    make_examples,
    make_run,
    make_victim,
    random_bits,
    seed_key,
    starts_of,
)

with_options = functools.partial(dataclasses.replace, ATTACK)

OPTIONS = {
    "momentum": with_options(momentum=0.6),
    "replacements": with_options(num_replacements=2),
    "keep_best": with_options(keep_best=True, num_iterations=8),
    "bf16": with_options(bf16_scoring=True),
    "probe": with_options(probe_size=6, probe_reduction=2),
    "stop_at_success": with_options(stop_at_success=True, num_iterations=6, untargeted=True),
    "untargeted": with_options(untargeted=True),
}


@pytest.fixture(scope="module")
def three_classes(tiny_tokenizer):
    victim = make_victim(tiny_tokenizer, classes=3)
    return victim, make_examples(victim, TEXTS)


@pytest.fixture(scope="module")
def companion(tiny_tokenizer):
    """Smaller, and of another opinion."""
    return make_victim(tiny_tokenizer, width=8)


@pytest.fixture(scope="module")
def attacked(victim, examples, three_classes, companion):
    """attacked(option) -> victim, examples, records by example id and the slots at the start."""

    @functools.cache
    def get(option):
        attack = OPTIONS[option]
        model, chosen = three_classes if attack.untargeted else (victim, examples)
        other = companion if attack.needs_companion else None
        records = attack_all(model, chosen[:4], attack, companion=other)
        return model, chosen[:4], records, starts_of(model, chosen[:4], attack)

    return get


def assert_all_follow(attacked, option, plainly=Reference):
    victim, examples, records, starts = attacked(option)
    for example in examples[:3]:
        one = example.example_id
        attack = OPTIONS[option]
        assert_follows_gcg(victim, example, INSERT, attack, 0, records[one], starts[one], plainly)
    assert {record.variant for record in records.values()} == {option}


@pytest.mark.parametrize("option", OPTIONS)
def test_alone_as_in_company(attacked, companion, option):
    victim, examples, records, _ = attacked(option)
    attack, one = OPTIONS[option], examples[1]
    other = companion if attack.needs_companion else None
    alone = attack_all(victim, [one], attack, companion=other)
    assert alone == {one.example_id: records[one.example_id]}


class WithMomentum(Reference):
    """Follows a running mean of the gradients, of all tokens."""

    mean = None

    def gradient(self, slot):
        new, share = super().gradient(slot), self.attack.momentum
        self.mean = new if self.mean is None else share * self.mean + (1 - share) * new
        return self.mean


def test_momentum(attacked):
    assert_all_follow(attacked, "momentum", WithMomentum)


def without_names(records):
    return [dataclasses.replace(one, variant="", flops_executed=0) for one in records.values()]


def test_momentum_of_nearly_nothing_is_none(victim, examples):
    """The share is so small that adding it changes no bit."""
    plain = attack_all(victim, examples[:4], ATTACK)
    with_it = attack_all(victim, examples[:4], with_options(momentum=1e-30))
    assert without_names(plain) == without_names(with_it)
    none = attack_all(victim, examples[:4], with_options(momentum=0.0))
    assert none == plain


def test_interrupted_momentum_goes_on(attacked, monkeypatch, tmp_path):
    victim, examples, records, _ = attacked("momentum")
    attack, path, step = OPTIONS["momentum"], tmp_path / "attack_records.jsonl", gcg.step

    def interrupted(attack, run, state, iteration):
        if iteration == 3:
            raise KeyboardInterrupt
        return step(attack, run, state, iteration)

    go = functools.partial(
        attack_examples, victim, examples[:1], INSERT, attack, config=CONFIG, path=path
    )
    monkeypatch.setattr(gcg, "step", interrupted)
    with pytest.raises(KeyboardInterrupt):
        go(save_seconds=0.0)
    monkeypatch.setattr(gcg, "step", step)
    assert (tmp_path / "attack_state.npz").exists()
    assert go()[0] == [records[examples[0].example_id]]


replace_several = jax.jit(candidates.replace_several, static_argnums=(3, 4))


class WithSeveral(Reference):
    """Each candidate has several new tokens; number after number, as they are drawn."""

    def candidates(self, slot, iteration):
        gradient = self.gradient(slot)
        allowed = self.victim.tokenizer.allowed_attack_ids
        best = [
            sorted(sorted(allowed, key=lambda token: row[token])[: self.attack.top_k])
            for row in gradient
        ]
        key = fold_in(fold_in(seed_key(self.seed), self.example.example_id), iteration)
        found = []
        for number in range(self.attack.num_candidates):
            mine, new = fold_in(key, number), list(slot)
            places = np.argsort(random_bits(fold_in(mine, np.arange(len(slot)))))
            for place in places[: self.attack.num_replacements]:
                others = [token for token in best[place] if token != slot[place]]
                bits = random_bits(fold_in(fold_in(mine, place), others))
                new[place] = int(others[bits.argmin()])
            found.append(new)
        return found


def test_several_replacements(attacked):
    assert_all_follow(attacked, "replacements", WithSeveral)


def test_several_places_and_their_tokens_are_drawn_uniformly():
    slot = np.array([0, 5, 99, 7], np.int32)
    tokens = np.array([[0, 1, 2], [3, 4, 5], [6, 7, 8], [9, 10, 11]], np.int32)
    count = 6000

    found = np.asarray(replace_several(jax.random.key(3), slot, tokens, count, 2))

    differs = found != slot
    assert (differs.sum(1) == 2).all()
    assert all(set(found[differs[:, place], place]) <= set(tokens[place]) for place in range(4))
    pairs = np.unique(differs, axis=0, return_counts=True)[1]
    assert len(pairs) == 6
    # Counts of a uniform draw stray from their mean by four standard deviations at most.
    assert np.abs(pairs - 1000).max() < 4 * np.sqrt(1000 * 5 / 6)
    for place, possible in enumerate(({1, 2}, {3, 4}, {6, 7, 8}, {9, 10, 11})):
        drawn, times = np.unique(found[differs[:, place], place], return_counts=True)
        assert set(drawn) == possible
        share = 1 / len(possible)
        spread = np.sqrt(times.sum() * share * (1 - share))
        assert np.abs(times - times.sum() * share).max() < 4 * spread
    # What is drawn at one place has nothing to do with the other.
    both = found[differs[:, 2] & differs[:, 3]][:, 2:]
    assert np.unique(both, axis=0, return_counts=True)[1].min() > 1000 / 9 - 4 * np.sqrt(1000 / 9)


def test_a_token_that_enters_a_set_moves_no_other_draw():
    few = np.array([[1, 4, 8], [2, 5, 7], [3, 6, 9]], np.int32)
    more = few.copy()
    more[:, 0] = 50  # in place of the first; ids are sorted
    more.sort(axis=1)
    key, slot = jax.random.key(1), np.zeros(3, np.int32)
    one, other = (np.asarray(replace_several(key, slot, x, 200, 2)) for x in (few, more))
    same = (one == other) | np.isin(one, few[:, 0]) | (other == 50)
    assert same.all()
    assert (one == other).mean() > 0.5


def test_keep_best(attacked):
    victim, examples, records, starts = attacked("keep_best")
    stayed = moved = 0
    for example in examples:
        reference = Reference(victim, example, INSERT, OPTIONS["keep_best"], 0)
        record, slot = records[example.example_id], list(starts[example.example_id])
        (best,) = reference.loss(victim.tokenizer.decode([slot]))
        for number, step in enumerate(record.iterations, 1):
            survivors = reference.survivors(slot, number)
            assert step.num_valid == len(survivors)
            losses = reference.loss(victim.tokenizer.decode(survivors))
            (new,) = victim.tokenizer.encode([step.slot_text])
            least = losses.min(initial=np.inf)
            if new == slot:
                assert least >= best - TOLERANCE
                stayed += 1
            else:
                assert losses[survivors.index(new)] <= min(least, best) + TOLERANCE
                moved += 1
            (loss,) = reference.loss([step.slot_text])
            np.testing.assert_allclose(step.loss, loss, rtol=0, atol=TOLERANCE)
            assert step.loss <= best + TOLERANCE
            slot, best = new, loss
    assert stayed > 2 and moved > 2, "the rule was not put to the test"


def narrow(victim):
    """The whole victim in bfloat16."""
    params = jax.tree.map(to_bfloat16, victim.params)
    return dataclasses.replace(victim, definition=in_bfloat16(victim.definition), params=params)


def operands(program):
    """Types of what a program multiplies."""
    text = jax.jit(program.function).lower(*program.arguments).as_text()
    products = [line for line in text.splitlines() if "stablehlo.dot_general" in line]
    assert len(products) > 5
    return {kind for line in products for kind in re.findall(r"x(b?f\d+)>", line.split(" -> ")[0])}


def test_bfloat16_ranks_and_float32_is_reported(victim, examples, monkeypatch):
    ranked, rank = [], gcg.ranking.rank
    monkeypatch.setattr(
        gcg.ranking, "rank", lambda *arguments: ranked.append(rank(*arguments)) or ranked[-1]
    )
    attack, chosen = OPTIONS["bf16"], examples[:1]
    records = attack_all(victim, chosen, attack)
    (record,) = records.values()
    exact = Reference(victim, chosen[0], INSERT, attack, 0)
    coarse = Reference(narrow(victim), chosen[0], INSERT, attack, 0)
    strayed = []
    for step, found in zip(record.iterations, ranked, strict=True):
        valid = np.asarray(found.valid)[0]
        slots = np.asarray(found.slots)[0][valid].tolist()
        losses = np.asarray(found.scores.loss)[0][valid]
        texts = victim.tokenizer.decode(slots)
        # Eight bits of logits of a few units.
        np.testing.assert_allclose(losses, coarse.loss(texts), rtol=0, atol=0.05)
        strayed.append(np.abs(losses - exact.loss(texts)).max())
        assert step.slot_text == texts[losses.argmin()]
        np.testing.assert_allclose(step.loss, exact.loss([step.slot_text])[0], atol=TOLERANCE)
        assert step.num_valid == valid.sum()
    assert min(strayed) > 100 * TOLERANCE, "ranked in more than bfloat16"
    assert_reports_what_was_scored(victim, chosen[0], INSERT, 1.0, record)


def test_what_is_multiplied_in_bfloat16(victim, examples):
    for attack in (OPTIONS["bf16"], with_options(bf16_scoring=True, num_replacements=2)):
        run = make_run(victim, examples[:1], attack)
        kinds = {name: operands(one) for name, one in gcg.programs(attack, run.inputs).items()}
        exact = {"encode_prefix", "propose", "score_again"}
        assert {name for name in kinds if kinds[name] == {"f32"}} == exact
        assert {name for name in kinds if kinds[name] == {"bf16"}} == kinds.keys() - exact
        assert "encode_narrow_prefix" in kinds
        assert len(kinds.keys() & {"score", "score_replacements"}) == 1


def plain_probe(attack, key, guess, losses, valid):
    """Indices of the candidates that may be chosen, and how many others were wanted."""
    bits = random_bits(fold_in(fold_in(key, 0x9B0BE), np.arange(len(guess))))
    probed = np.argsort(bits)[: attack.probe_size].tolist()
    ranks = [np.argsort(np.argsort(values[probed])) for values in (guess, losses)]
    agreement = (1 + np.corrcoef(*ranks)[0, 1]) / 2
    most = attack.num_candidates // attack.probe_reduction
    wanted = min(max(int((1 - agreement) * most + 1e-9), 1), most)
    rest = [i for i in np.argsort(guess, kind="stable") if valid[i] and i not in probed]
    return [i for i in probed if valid[i]] + rest[:wanted], wanted


def key_of(seed, example_id, iteration):
    return fold_in(fold_in(seed_key(seed), example_id), iteration)


def loss_of_ids(reference, victim, slots):
    """Of slots as they are, whatever their texts are tokenised to."""
    prompts = [reference.before_ids + list(slot) + reference.after_ids for slot in slots]
    mask = np.array([np.arange(WIDTH) < len(ids) for ids in prompts])
    rows = np.array([np.pad(ids, (0, WIDTH - len(ids))) for ids in prompts], np.int32)
    logits = np.asarray(whole_scores(victim.definition, victim.params, rows, mask))
    return np.array([cross_entropy(row, reference.wanted[0]) for row in logits])


def test_the_rule_of_probe_sampling(victim, examples, companion):
    """Against NumPy, with guesses that agree with the victim, partly, not at all, and inverted."""
    attack, rng = OPTIONS["probe"], np.random.default_rng(0)
    run = make_run(victim, examples[:4], attack, companion=companion)
    allowed = victim.tokenizer.allowed_attack_ids
    slots = rng.choice(allowed, (4, 16, 4)).astype(np.int32)
    references = [Reference(victim, one, INSERT, attack, 0) for one in examples[:4]]
    losses = np.array(
        [loss_of_ids(one, victim, rows) for one, rows in zip(references, slots, strict=True)]
    )
    noise = np.array([0.0, 0.5, 5.0, 0.0])[:, None]
    guess = losses * np.array([1, 1, 1, -1])[:, None] + noise * rng.normal(size=losses.shape)
    wanted = set()
    for iteration in (1, 2):
        valid = rng.random((4, 16)) < 0.7
        inputs = run.inputs
        some, scores, may_be_chosen = probe.score_some(
            *(inputs.victim.definition, inputs.victim.params, inputs.victim.prefix, run.batch),
            *run.put((slots, guess.astype(np.float32), valid)),
            *(run.seed, np.uint32(iteration)),
            probe_size=6,
            num_others=8,
            shards=1,
        )
        assert some.shape == (4, 14, 4)
        for row, example in enumerate(examples[:4]):
            key = key_of(0, example.example_id, iteration)
            expected, count = plain_probe(attack, key, guess[row], losses[row], valid[row])
            wanted.add(count)
            chosen = np.asarray(may_be_chosen)[row]
            np.testing.assert_array_equal(np.asarray(some)[row][chosen], slots[row][expected])
            np.testing.assert_allclose(
                np.asarray(scores.loss)[row][chosen], losses[row][expected], atol=TOLERANCE
            )
    assert {1, 8} < wanted, "agreement was of one kind"


def test_rank_correlation_is_spearman_s():
    rng = np.random.default_rng(0)
    one, other = rng.normal(size=(2, 5, 9)).astype(np.float32)
    other[0], other[1] = np.exp(one[0]), -one[1]
    found = probe.rank_correlation(jax.numpy.asarray(one), jax.numpy.asarray(other))
    ranks = [np.argsort(np.argsort(values, axis=-1), axis=-1) for values in (one, other)]
    expected = [np.corrcoef(*pair)[0, 1] for pair in zip(*ranks, strict=True)]
    np.testing.assert_allclose(found, expected, atol=1e-6)
    np.testing.assert_allclose(found[:2], [1, -1], atol=1e-6)


def test_probe_sampling(attacked, companion):
    victim, examples, records, starts = attacked("probe")
    attack = OPTIONS["probe"]
    for example in examples[:3]:
        reference = Reference(victim, example, INSERT, attack, 0)
        record, slot = records[example.example_id], list(starts[example.example_id])
        scored = guessed = 0
        for number, step in enumerate(record.iterations, 1):
            proposed = reference.candidates(slot, number)
            places = [sum(np.cumprod(np.equal(one, slot))) for one in proposed]
            order = np.argsort(np.minimum(places, 99), kind="stable")
            proposed = [proposed[i] for i in order]
            valid = [one != slot and reference.is_clean(one) for one in proposed]
            losses = loss_of_ids(reference, victim, proposed)
            guess = loss_of_ids(reference, companion, proposed)
            key = key_of(0, example.example_id, number)
            known, _ = plain_probe(attack, key, guess, losses, valid)
            assert step.num_valid == len(known)
            (slot,) = victim.tokenizer.encode([step.slot_text])
            assert slot in [proposed[i] for i in known]
            assert losses[proposed.index(slot)] <= losses[known].min() + TOLERANCE
            scored, guessed = scored + len(known), guessed + sum(valid)
        tokens = len(victim.tokenizer.encode([record.attacked_text])[0])
        assert record.flops_algorithmic == 2 * tokens * (
            victim.num_params * (3 * attack.num_iterations + scored)
            + companion.num_params * guessed
        )


def test_a_perfect_companion_leaves_the_victim_less_to_do(attacked, victim, examples):
    _, _, others, _ = attacked("probe")
    perfect = attack_all(victim, examples[:4], OPTIONS["probe"], companion=victim)

    def scored(records):
        return [step.num_valid for record in records.values() for step in record.iterations]

    assert max(scored(perfect)) <= 6 + 1  # the probe set and the best of the rest
    assert max(scored(others)) > 6 + 1
    assert sum(scored(perfect)) < sum(scored(others))


def test_executed_flops_of_probe_sampling(attacked, companion):
    victim, examples, records, _ = attacked("probe")
    attack = OPTIONS["probe"]
    run = make_run(victim, examples[:1], attack, companion=companion)
    cost = {
        name: flops.executed_flops(program.function, *program.arguments)
        for name, program in gcg.programs(attack, run.inputs).items()
    }
    prefixes = cost.pop("encode_prefix") + cost.pop("encode_companion_prefix")
    assert cost.keys() == {"propose", "guess", "score_some"}
    total = prefixes + attack.num_iterations * sum(cost.values())
    assert records[examples[0].example_id].flops_executed == total // CONFIG.batch_size


def test_records_of_a_search_that_stops_at_success(three_classes):
    """What tests/attacks/test_stop_at_success.py says of a batch, as records tell it."""
    victim, examples = three_classes
    attack = OPTIONS["stop_at_success"]
    stopped = attack_all(victim, examples[:6], attack)
    whole = attack_all(victim, examples[:6], dataclasses.replace(attack, stop_at_success=False))
    first = {one: record.first_success_iteration or 6 for one, record in whole.items()}

    for one, record in stopped.items():
        assert record.variant == "untargeted+stop_at_success"
        assert record.iterations[: first[one]] == whole[one].iterations[: first[one]]
        last = dataclasses.replace(record.iterations[first[one] - 1], num_valid=0)
        assert record.iterations[first[one] :] == [last] * (6 - first[one])
        assert record.success == any(step.success for step in whole[one].iterations)
        tokens = len(victim.tokenizer.encode([record.attacked_text])[0])
        survivors = sum(step.num_valid for step in record.iterations)
        assert record.flops_algorithmic == victim.num_params * tokens * (
            6 * first[one] + 2 * survivors
        )
    assert 1 in first.values() and 6 in first.values() and len(set(first.values())) > 2


def test_untargeted(attacked):
    assert_all_follow(attacked, "untargeted")
    victim, examples, records, _ = attacked("untargeted")
    assert {record.target_label for record in records.values()} == {ANY_OTHER}
    aimed = attack_all(victim, examples, ATTACK)
    assert any(
        aimed[one].iterations[0].slot_text != record.iterations[0].slot_text
        for one, record in records.items()
    )


def test_of_two_classes_any_other_is_the_target(victim, examples):
    plain = attack_all(victim, examples[:4], ATTACK)
    untargeted = attack_all(victim, examples[:4], OPTIONS["untargeted"])
    for one, record in untargeted.items():
        assert record.iterations == plain[one].iterations


@pytest.mark.parametrize("attack", [GCG(untargeted=True), RandomToken(untargeted=True)])
def test_a_language_model_has_no_other_class(tiny_tokenizer, attack):
    model = make_victim(tiny_tokenizer, head="lm")
    with pytest.raises(UserError, match="untargeted=True: a language model is attacked toward"):
        attack_examples(model, make_examples(model), INSERT, attack)


def test_companions_that_do_not_do(victim, examples, tiny_tokenizer):
    go = functools.partial(attack_examples, victim, examples, INSERT, OPTIONS["probe"])
    with pytest.raises(
        UserError, match="no companion: gcg with probe sampling asks a smaller model first"
    ):
        go()
    with pytest.raises(UserError, match="needs a classifier of 2 classes"):
        go(companion=make_victim(tiny_tokenizer, classes=3))
    with pytest.raises(UserError, match="needs a classifier of 2 classes"):
        go(companion=make_victim(tiny_tokenizer, head="lm"))
    with pytest.raises(UserError, match="has another tokenizer"):
        go(companion=make_victim(letters_tokenizer()))


def test_a_companion_that_is_not_asked_changes_nothing(victim, examples, companion):
    plain = attack_all(victim, examples[:4], ATTACK)
    with_it = attack_all(victim, examples[:4], ATTACK, companion=companion)
    assert with_it == plain
