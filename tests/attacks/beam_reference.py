"""Beam search and BEAST again, plainly: whole prompts, no cache, filter first, one at a time."""

import numpy as np

from tests.attacks.reference import TOLERANCE, WIDTH, Reference, whole_scores
from tests.attacks.tiny import fold_in, gumbel, randint, seed_key

TRIED = 256  # tokens that are looked at after each slot of BEAST, or 3 for each that is wanted


def example_key(reference, iteration):
    return fold_in(fold_in(seed_key(reference.seed), reference.example.example_id), iteration)


def ranked(items, losses, count):
    """The `count` items of lowest loss; refuses to choose between ones that rounding could swap."""
    order = np.argsort(losses, kind="stable")
    for a, b in zip(order[:count], order[1 : count + 1], strict=False):
        assert items[a] == items[b] or losses[b] - losses[a] > 2 * TOLERANCE, "take another seed"
    return order[:count]


def plain_beam_search(reference, start, keep=lambda iteration, survivors: survivors):
    """After each iteration the beam, the best first, and how many survived.

    Args:
        keep: the survivors that may be chosen from after all.
    """
    attack, tokenizer = reference.attack, reference.victim.tokenizer
    allowed = tokenizer.allowed_attack_ids
    beam = [list(start)]
    for iteration in range(1, attack.num_iterations + 1):
        survivors = []
        for number in range(attack.num_candidates):
            key = fold_in(example_key(reference, iteration), number)
            place = randint(fold_in(key, 0), attack.num_tokens)
            token = int(allowed[randint(fold_in(key, 1), len(allowed))])
            parent = beam[number % len(beam)]
            child = [*parent[:place], token, *parent[place + 1 :]]
            if child != parent and reference.is_clean(child):
                survivors.append(child)
        survivors = keep(iteration, survivors)
        if survivors:
            losses = reference.loss(tokenizer.decode(survivors))
            beam = [survivors[i] for i in ranked(survivors, losses, attack.beam_width)]
        yield beam, len(survivors)


def assert_shows(reference, step, text):
    """The slot of an iteration, and what the victim makes of it."""
    assert step.slot_text == text
    (loss,) = reference.loss([text])
    np.testing.assert_allclose(step.loss, loss, rtol=0, atol=TOLERANCE)
    assert step.success == reference.success(text)


def assert_follows_beam_search(victim, example, kinds, attack, seed, record, start, **options):
    reference = Reference(victim, example, kinds, attack, seed)
    assert len(record.iterations) == attack.num_iterations
    survivors = 0
    plain = plain_beam_search(reference, start, **options)
    for step, (beam, num_valid) in zip(record.iterations, plain, strict=True):
        assert step.num_valid == num_valid
        assert_shows(reference, step, *victim.tokenizer.decode([beam[0]]))
        survivors += num_valid
    prompt = len(reference.before_ids) + len(reference.after_ids) + len(reference.goal_ids)
    tokens = survivors * (prompt + attack.num_tokens)
    assert record.flops_algorithmic == 2 * victim.num_params * tokens


def next_token_scores(sampler, ids):
    """What a language model says after a text, read whole."""
    mask = np.arange(WIDTH) < len(ids)
    row = np.pad(np.array(ids, np.int32), (0, WIDTH - len(ids)))
    scores = whole_scores(sampler.definition, sampler.params, row[None], mask[None])
    return np.asarray(scores, np.float64)[0, len(ids) - 1]


def plain_samples(reference, sampler, beam, iteration):
    """Possible next tokens of a beam in the order in which they are drawn without replacement.

    Perturbing log-probabilities by Gumbel noise and sorting is drawing without replacement.
    """
    tokenizer = reference.victim.tokenizer
    text = reference.before_ids or [tokenizer.pad_id]
    scores = next_token_scores(sampler, [*text, *beam])
    key = example_key(reference, iteration)
    for token in beam:
        key = fold_in(key, token)
    vocab = min(len(scores), reference.victim.definition.config.vocab)
    perturbed = scores[:vocab] + gumbel(key, vocab)
    possible = [token for token in tokenizer.allowed_attack_ids.tolist() if token < vocab]
    order = sorted(possible, key=lambda token: -perturbed[token])
    return order[: max(TRIED, 3 * reference.attack.branch_factor)], perturbed


def slot_inside(reference, text):
    """The ids that a slot's text has inside its prompt, or None if it does not fit."""
    tokenizer = reference.victim.tokenizer
    (whole,) = tokenizer.encode([reference.prompt(text)])
    start, stop = len(reference.before_ids), len(whole) - len(reference.after_ids)
    unchanged = whole[:start] == reference.before_ids and whole[stop:] == reference.after_ids
    slot = whole[start:stop]
    fits = 1 <= len(slot) <= 2 * reference.attack.num_iterations
    return slot if unchanged and fits and not set(slot) & set(tokenizer.special_ids) else None


def assert_follows_beast(victim, sampler, example, kinds, attack, seed, record):
    """Replays the search; returns how often a beam had fewer tokens than were asked for."""
    reference = Reference(victim, example, kinds, attack, seed)
    tokenizer, known = victim.tokenizer, {}
    beams, best, passed_over, tokens, read, short = [[]], None, 0, 0, 0, 0
    prompt = len(reference.before_ids) + len(reference.after_ids) + len(reference.goal_ids)
    assert len(record.iterations) == attack.num_iterations
    for iteration, step in enumerate(record.iterations, 1):
        grown, texts = [], []
        for beam in beams:
            read += len(reference.before_ids) + len(beam)
            order, perturbed = plain_samples(reference, sampler, beam, iteration)
            taken = 0
            for token, after in zip(order, [*order[1:], None], strict=True):
                (text,) = tokenizer.decode([[*beam, token]])
                slot = slot_inside(reference, text)
                clear = after is None or perturbed[token] - perturbed[after] > 2 * TOLERANCE
                assert clear, "take another seed"
                if slot is None:
                    passed_over += 1
                    continue
                grown.append([*beam, token])
                texts.append(text)
                tokens += prompt + len(slot)
                taken += 1
                if taken == attack.branch_factor:
                    break
            short += taken < attack.branch_factor
        for text in texts:
            if text not in known:
                known[text] = reference.loss([text])[0]
        losses = np.array([known[text] for text in texts])
        assert step.num_valid == len(texts)
        if texts:
            chosen = ranked(texts, losses, attack.beam_width)
            beams = [grown[i] for i in chosen]
            new = texts[chosen[0]]
            if best is None or known[new] < known[best]:
                assert best is None or known[best] - known[new] > 2 * TOLERANCE
                best = new
        else:
            beams = []
        assert_shows(reference, step, best)
    assert record.num_retokenised == passed_over
    flops = 2 * victim.num_params * tokens + 2 * sampler.num_params * read
    assert record.flops_algorithmic == flops
    return short
