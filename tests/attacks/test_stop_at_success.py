"""Leaving an example alone once it was successful: the plain run, cut there and repeated."""

import dataclasses

import numpy as np
import pytest

from robustjax.attacks import search
from robustjax.attacks.beam_search import BeamSearch
from robustjax.attacks.beast import BEAST
from robustjax.attacks.frame import BatchRun, Seen
from robustjax.attacks.gcg import GCG
from robustjax.attacks.random_token import RandomToken
from robustjax.attacks.verdict import ANY_OTHER
from tests.attacks.tiny import CONFIG, INSERT, make_examples, make_victim

ATTACKS = [
    GCG(num_iterations=5, num_tokens=4, num_candidates=8, top_k=8, untargeted=True),
    RandomToken(num_iterations=6, num_tokens=4, iterations_per_pass=2, untargeted=True),
    BeamSearch(num_iterations=5, num_tokens=4, num_candidates=8, beam_width=2, untargeted=True),
    BEAST(num_iterations=5, beam_width=1, branch_factor=2, untargeted=True),
]
EACH_ATTACK = pytest.mark.parametrize("attack", ATTACKS, ids=lambda attack: attack.name)


@pytest.fixture(scope="module")
def models(tiny_tokenizer):
    """A victim of three classes, one of which is never far."""
    victim = make_victim(tiny_tokenizer, classes=3)
    return victim, make_victim(tiny_tokenizer, head="lm", weights=0.5)


@pytest.fixture(scope="module")
def examples(models):
    return [
        dataclasses.replace(example, target_label=ANY_OTHER) for example in make_examples(models[0])
    ]


def outcome(models, examples, attack):
    """What was seen of four examples, and how many steps that took."""
    victim, companion = models
    prompts, failures = search.prepare(victim, examples, INSERT, attack, 0)
    assert not failures
    (batch,) = search.plan(prompts, CONFIG)
    companion = companion if attack.needs_companion else None
    run = BatchRun(victim, batch, CONFIG.batch_size, 0, companion)
    steps = []
    seen = search.run_batch(attack, run, steps.append).seen
    return seen, len(steps)


def cut(seen):
    """By plain loops: repeated from the first success on, and nothing charged for it."""
    fields = {name: np.array(x) for name, x in seen._asdict().items() if name != "calls"}
    calls = {name: np.array(runs) for name, runs in seen.calls.items()}
    for row in range(seen.success.shape[1]):
        for i in range(1, len(seen.success)):
            if seen.success[:i, row].any():
                for name in ("slots", "mask", "loss", "success", "answer"):
                    fields[name][i, row] = fields[name][i - 1, row]
                for name in ("num_valid", "num_retokenised", "tokens", "companion_tokens"):
                    fields[name][i, row] = 0
                for runs in calls.values():
                    runs[i, row] = 0
    return Seen(**fields, calls=calls)


def assert_same(one, other):
    assert one.calls.keys() == other.calls.keys()
    for name, got in one._replace(calls=None)._asdict().items():
        if name in ("loss", "answer"):
            np.testing.assert_allclose(got, getattr(other, name), rtol=0, atol=1e-6)
        elif name != "calls":
            np.testing.assert_array_equal(got, getattr(other, name), err_msg=name)
    for name, runs in one.calls.items():
        np.testing.assert_array_equal(runs, other.calls[name], err_msg=name)


@EACH_ATTACK
def test_it_is_the_plain_run_up_to_the_first_success(models, examples, attack):
    stopping = dataclasses.replace(attack, stop_at_success=True)
    assert stopping.variant == "untargeted+stop_at_success" and attack.variant == "untargeted"
    when = set()
    for begin in (0, 4):
        members = examples[begin : begin + 4]
        plain, _ = outcome(models, members, attack)
        stopped, _ = outcome(models, members, stopping)
        assert_same(stopped, cut(plain))
        when |= set(np.where(plain.success.any(0), plain.success.argmax(0), -1).tolist())
        charged = stopped.tokens.sum() / plain.tokens.sum()
        assert charged < 1 or not plain.success[:-1].any()
    assert len(when) > 1, "these examples do not tell"


@EACH_ATTACK
def test_it_does_not_depend_on_the_company(models, examples, attack):
    attack = dataclasses.replace(attack, stop_at_success=True)
    together, _ = outcome(models, examples[:4], attack)
    for index in range(4):
        alone, _ = outcome(models, examples[index : index + 1], attack)
        for row in range(4):  # the others are filling, and copies of it
            picked = {name: runs[:, index, None] for name, runs in together.calls.items()}
            expected = Seen._make([*(x[:, index, None] for x in together[:-1]), picked])
            one = {name: runs[:, row, None] for name, runs in alone.calls.items()}
            assert_same(Seen._make([*(x[:, row, None] for x in alone[:-1]), one]), expected)


@EACH_ATTACK
def test_a_batch_ends_when_all_are_done(models, examples, attack):
    stopping = dataclasses.replace(attack, stop_at_success=True)
    per_step = getattr(attack, "iterations_per_pass", 1)
    total = -(-attack.num_iterations // per_step)
    taken = set()
    for example in examples:
        seen, steps = outcome(models, [example], stopping)
        first = int(seen.success[:, 0].argmax()) if seen.success.any() else total * per_step - 1
        assert steps == first // per_step + 1
        assert len(seen.loss) == attack.num_iterations
        taken.add(steps)
    assert min(taken) < total and len(taken) > 1, "these examples do not tell"


def test_what_cannot_be_attacked_keeps_no_batch_going():
    success = np.array([[False, True, False], [False, False, True]])
    seen = Seen._make([None] * 10)._replace(success=success)

    assert not search.all_stopped([seen])
    assert not search.all_stopped([seen], [1])
    assert search.all_stopped([seen], [0])
