"""The attacks again, plainly: whole prompts, no cache, one example and one candidate at a time."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from robustjax.attacks import candidates
from robustjax.data.prompts import split_at_slot
from robustjax.models import transformer
from tests.attacks.tiny import fold_in, random_bits, seed_key

TOLERANCE = 1e-5
WIDTH = 80  # tokens that a whole prompt is padded to


def cross_entropy(logits, wanted):
    """Of the wanted class, or of several together, in float64; classes are the last axis."""
    logits = np.asarray(logits, np.float64)
    of_wanted = logits[..., np.atleast_1d(wanted)]
    return np.logaddexp.reduce(logits, axis=-1) - np.logaddexp.reduce(of_wanted, axis=-1)


def losses_of_texts(victim, example, texts):
    """Loss of each slot text, after the content of an example."""
    around = [f"{example.instructions}{example.content[0]}", example.answer_prompt]
    logits = victim.logits([text.join(around) for text in texts])
    return dict(zip(texts, cross_entropy(logits, example.target_label), strict=True))


@functools.partial(jax.jit, static_argnums=0)
def slot_gradient(definition, params, one_hot, ids, mask, start, read, wanted):
    """Gradient of the loss for the one-hot slot tokens, through the whole prompt.

    The loss is the mean cross-entropy of what is wanted at the places that are read, of several
    classes together if there are several.
    """

    def loss(one_hot):
        table = params["embed"]["embedding"]
        x = jax.lax.dynamic_update_slice(table[ids], one_hot @ table, (start, 0))
        positions = jnp.arange(WIDTH)[None, None]
        hidden = transformer.forward(
            definition, params, x[None, None], positions, mask[None, None], (), read[None, None]
        )
        logits = transformer.project(definition, params, hidden[0, 0])
        scores = jnp.take_along_axis(jax.nn.log_softmax(logits), wanted, axis=1)
        return -jax.nn.logsumexp(scores, axis=1).mean()

    return jax.grad(loss)(one_hot)


whole_scores = jax.jit(transformer.apply, static_argnums=0)


class Reference:
    """One example under attack."""

    def __init__(self, victim, example, kinds, attack, seed, position=None):
        self.victim, self.example, self.attack, self.seed = victim, example, attack, seed
        position = attack.position if position is None else position
        self.before, self.after = split_at_slot(example, kinds, position)
        self.before_ids, self.after_ids = victim.tokenizer.encode([self.before, self.after])
        self.goal_ids = []
        if victim.definition.head == "lm":
            (self.goal_ids,) = victim.tokenizer.encode([example.proxy_gen_target])
        classes = range(victim.definition.num_classes)
        self.wanted = [[example.target_label]]
        if self.goal_ids:
            self.wanted = [[token] for token in self.goal_ids]
        elif attack is not None and attack.untargeted:
            self.wanted = [[one for one in classes if one != example.label]]

    def prompt(self, slot_text):
        return self.before + slot_text + self.after

    def logits(self, slot_text):
        """Of the classes, [N]; or, where each token of the text is predicted, [G, V]."""
        if not self.goal_ids:
            return self.victim.logits([self.prompt(slot_text)])[0]
        (prompt,) = self.victim.tokenizer.encode([self.prompt(slot_text)])
        ids = prompt + self.goal_ids
        mask = np.arange(WIDTH) < len(ids)
        row = np.pad(np.array(ids, np.int32), (0, WIDTH - len(ids)))
        scores = whole_scores(self.victim.definition, self.victim.params, row[None], mask[None])
        return np.asarray(scores)[0, len(prompt) - 1 : len(ids) - 1]

    def loss(self, slot_texts):
        return np.array([self._loss(self.logits(text)) for text in slot_texts])

    def _loss(self, logits):
        rows = logits if self.goal_ids else [logits]
        return np.mean([cross_entropy(*pair) for pair in zip(rows, self.wanted, strict=True)])

    def success(self, slot_text):
        answer = self.logits(slot_text).argmax(-1)
        return answer.tolist() == self.goal_ids if self.goal_ids else answer != self.example.label

    def is_clean(self, slot):
        """Whether the slot is what the tokenizer makes of its text, alone and in its prompt."""
        (text,) = self.victim.tokenizer.decode([slot])
        (alone,), (whole,) = (self.victim.tokenizer.encode([t]) for t in (text, self.prompt(text)))
        return alone == slot and whole == self.before_ids + slot + self.after_ids

    def gradient(self, slot):
        prompt = self.before_ids + slot + self.after_ids
        ids = prompt + self.goal_ids
        read = len(prompt) - 1 + np.arange(len(self.wanted))
        mask = np.arange(WIDTH) < len(ids)
        ids = np.pad(np.array(ids, np.int32), (0, WIDTH - len(ids)))
        definition = self.victim.definition
        one_hot = np.eye(definition.config.vocab, dtype=np.float32)[slot]
        arguments = (one_hot, ids, mask, len(self.before_ids), read, np.array(self.wanted))
        return np.asarray(slot_gradient(definition, self.victim.params, *arguments))

    def candidates(self, slot, iteration):
        """Candidate slots in the order in which they are drawn."""
        gradient = self.gradient(slot)
        allowed = self.victim.tokenizer.allowed_attack_ids
        draws = []
        key = fold_in(fold_in(seed_key(self.seed), self.example.example_id), iteration)
        for position in range(len(slot)):
            best = sorted(allowed, key=lambda token: gradient[position, token])[: self.attack.top_k]
            names = position * gradient.shape[1] + np.array(sorted(best))
            bits = random_bits(fold_in(key, names))
            draws += [(b, position, token) for b, token in zip(bits, sorted(best), strict=True)]
        chosen = sorted(draws, key=lambda draw: draw[0])[: self.attack.num_candidates]
        return [[*slot[:p], int(token), *slot[p + 1 :]] for _, p, token in chosen]

    def survivors(self, slot, iteration):
        candidates = self.candidates(slot, iteration)
        return [one for one in candidates if one != slot and self.is_clean(one)]


def assert_follows_gcg(victim, example, kinds, attack, seed, record, start, plainly=Reference):
    """Replays a record's slots: every step is one that the plain algorithm could have taken."""
    reference = plainly(victim, example, kinds, attack, seed)
    slot = list(start)
    assert reference.is_clean(slot)
    assert len(record.iterations) == attack.num_iterations
    for number, step in enumerate(record.iterations, 1):
        survivors = reference.survivors(slot, number)
        assert step.num_valid == len(survivors)
        if survivors:
            losses = reference.loss(victim.tokenizer.decode(survivors))
            (slot,) = victim.tokenizer.encode([step.slot_text])
            assert losses[survivors.index(slot)] <= losses.min() + TOLERANCE
        else:
            assert victim.tokenizer.decode([slot]) == [step.slot_text]
        (loss,) = reference.loss([step.slot_text])
        np.testing.assert_allclose(step.loss, loss, rtol=0, atol=TOLERANCE)
        assert step.success == reference.success(step.slot_text)


def assert_reports_what_was_scored(victim, example, kinds, position, record):
    """The text of the record has the ids that were scored, and the victim says so again."""
    before, after = split_at_slot(example, kinds, position)
    slot_text = record.iterations[-1].slot_text
    assert record.attacked_text == before + slot_text + after
    before_ids, after_ids, whole = victim.tokenizer.encode([before, after, record.attacked_text])
    assert whole[: len(before_ids)] == before_ids
    assert whole[len(whole) - len(after_ids) :] == after_ids
    reference = Reference(victim, example, kinds, None, 0, position)
    logits = reference.logits(slot_text)
    if reference.goal_ids:
        assert record.logits is None
        losses = [cross_entropy(*pair) for pair in zip(logits, reference.goal_ids, strict=True)]
        np.testing.assert_allclose(record.target_logprobs, -np.array(losses), atol=TOLERANCE)
    else:
        assert record.target_logprobs is None
        np.testing.assert_allclose(record.logits, logits, rtol=0, atol=TOLERANCE)
    (loss,) = reference.loss([slot_text])
    np.testing.assert_allclose(record.iterations[-1].loss, loss, rtol=0, atol=TOLERANCE)
    assert record.success == reference.success(slot_text)


@functools.partial(jax.jit, static_argnums=5)
def random_slot(seed, example_id, iteration, attempt, allowed, width):
    (key,) = candidates.example_keys(seed, example_id[None], iteration)
    return candidates.random_slot(key, attempt, allowed, width)


def plain_random_token(victim, example, kinds, attack, seed):
    """Slots of every iteration as the whole prompt has them, and how many draws did not fit."""
    reference = Reference(victim, example, kinds, attack, seed)
    tokenizer = victim.tokenizer
    slots, thrown_away = [], 0
    for iteration in range(1, attack.num_iterations + 1):
        for attempt in range(100):
            numbers = (np.uint32(n) for n in (seed, example.example_id, iteration, attempt))
            drawn = random_slot(*numbers, tokenizer.allowed_attack_ids, attack.num_tokens)
            (text,) = tokenizer.decode([np.asarray(drawn)])
            (whole,) = tokenizer.encode([reference.prompt(text)])
            start, stop = len(reference.before_ids), len(whole) - len(reference.after_ids)
            unchanged = (
                whole[:start] == reference.before_ids and whole[stop:] == reference.after_ids
            )
            if unchanged and 1 <= stop - start <= 2 * attack.num_tokens:
                slots.append(whole[start:stop])
                break
            thrown_away += 1
    return slots, thrown_away


def assert_follows_random_token(victim, example, kinds, attack, seed, record):
    reference = Reference(victim, example, kinds, attack, seed)
    slots, thrown_away = plain_random_token(victim, example, kinds, attack, seed)
    texts = victim.tokenizer.decode(slots)
    losses = reference.loss(texts)
    success = np.array([reference.success(text) for text in texts])
    end = int(success.argmax()) if success.any() else attack.num_iterations - 1
    shown = [min(i, end) for i in range(attack.num_iterations)]

    assert [step.slot_text for step in record.iterations] == [texts[i] for i in shown]
    assert [step.success for step in record.iterations] == [bool(success[i]) for i in shown]
    recorded = [step.loss for step in record.iterations]
    np.testing.assert_allclose(recorded, losses[shown], rtol=0, atol=TOLERANCE)
    assert {step.num_valid for step in record.iterations} == {1}
    assert record.num_retokenised == thrown_away
    # By the convention every iteration is scored, those after the first success too.
    prompt = len(reference.before_ids) + len(reference.after_ids) + len(reference.goal_ids)
    tokens = sum(prompt + len(slot) for slot in slots)
    assert record.flops_algorithmic == 2 * victim.num_params * tokens
