"""The attack loss against float64, and what counts as a success."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from robustjax.attacks.objective import score
from robustjax.attacks.passes import Pass
from robustjax.attacks.verdict import ANY_OTHER, ClassGoal, TextGoal, judge_classes, judge_text
from robustjax.models import layers, transformer
from robustjax.models.layers import Rivalry
from robustjax.models.transformer import Definition
from tests.attacks.reference import cross_entropy
from tests.attacks.tiny import ATTACK, INSERT, make_run
from tests.models.tiny import CONFIGS, make_params, relative_error


@pytest.mark.parametrize("classes", [2, 3, 7])
def test_the_loss_is_the_cross_entropy_of_the_target(classes):
    rng = np.random.default_rng(classes)
    logits = (5 * rng.normal(size=(4, 6, classes))).astype(np.float32)
    for target in range(classes):
        goal = ClassGoal(jnp.full(4, (target + 1) % classes), jnp.full(4, target))
        got = judge_classes(jnp.asarray(logits), goal).loss
        np.testing.assert_allclose(got, cross_entropy(logits, target), rtol=2e-6, atol=1e-6)


@pytest.mark.parametrize("classes", [2, 3])
def test_the_loss_does_not_saturate(classes):
    """It still ranks slots where the plain float32 cross-entropy is 0 for all of them."""
    lead = jnp.array([10.0, 17.0, 20.0, 40.0, 80.0])
    logits = jnp.zeros((5, classes)).at[:, 1].set(lead)

    goal = ClassGoal(jnp.zeros(1, jnp.int32), jnp.ones(1, jnp.int32))
    loss = np.asarray(judge_classes(logits[None], goal).loss[0])

    assert (loss[1:] < loss[:-1]).all()
    expected = np.log1p((classes - 1) * np.exp(-np.asarray(lead, np.float64)))
    np.testing.assert_allclose(loss, expected, rtol=1e-5)
    naive = -jax.nn.log_softmax(logits)[:, 1]
    assert naive[3] == naive[4] == 0


def test_the_loss_of_a_hopeless_slot_is_finite_and_has_a_gradient():
    logits = jnp.array([200.0, -200.0])
    goal = ClassGoal(jnp.array([0]), jnp.array([1]))
    loss, gradient = jax.value_and_grad(lambda x: judge_classes(x[None, None], goal).loss.sum())(
        logits
    )

    assert loss == 400
    np.testing.assert_allclose(gradient, [1, -1])


def test_success_means_that_another_class_comes_first():
    logits = jnp.array([[[1.0, 0.0, 0.0], [0.0, 1.0, 0.5], [0.0, 0.0, 2.0], [1.0, 1.0, 0.0]]])
    logits = jnp.concatenate([logits, logits])

    scores = judge_classes(logits, ClassGoal(jnp.array([0, 1]), jnp.array([1, 2])))

    # On ties the first class answers, as numpy's argmax has it. Any wrong class is a success.
    np.testing.assert_array_equal(
        scores.success, [[False, True, True, False], [True, False, True, True]]
    )
    for row, target in enumerate([1, 2]):
        expected = cross_entropy(np.asarray(logits[row]), target)
        np.testing.assert_allclose(scores.loss[row], expected, rtol=1e-6)


def test_an_untargeted_loss_is_that_of_all_wrong_classes_together():
    rng = np.random.default_rng(3)
    logits = (5 * rng.normal(size=(4, 6, 5))).astype(np.float32)
    label = np.array([0, 4, 2, 1])
    goal = ClassGoal(jnp.asarray(label), jnp.full(4, ANY_OTHER))

    got = judge_classes(jnp.asarray(logits), goal)

    right = np.exp(-np.stack([cross_entropy(logits[row], label[row]) for row in range(4)]))
    np.testing.assert_allclose(got.loss, -np.log1p(-right), rtol=2e-5, atol=1e-6)
    np.testing.assert_array_equal(got.success, logits.argmax(-1) != label[:, None])


def test_of_two_classes_an_untargeted_loss_is_the_targeted_one():
    logits = jnp.asarray(np.random.default_rng(0).normal(size=(2, 9, 2)), jnp.float32)
    label = jnp.array([0, 1])

    losses = [
        judge_classes(logits, ClassGoal(label, aim)).loss for aim in (1 - label, label * 0 - 1)
    ]

    np.testing.assert_array_equal(*losses)


def rivalry_of(logits, tokens):
    """Plainly, of scores that are written out."""
    aimed = np.take_along_axis(
        logits, np.broadcast_to(tokens[:, None, :, None], (*logits.shape[:3], 1)), -1
    )
    others = np.where(np.arange(logits.shape[-1]) == tokens[:, None, :, None], -np.inf, logits)
    logsum = np.log(np.exp(others.astype(np.float64)).sum(-1))
    return Rivalry(*(jnp.asarray(x, jnp.float32) for x in (aimed[..., 0], others.max(-1), logsum)))


@pytest.mark.parametrize("part", [512, 100, 64])
@pytest.mark.parametrize("family", ["neox", "qwen2"])
def test_a_token_is_compared_with_all_others_of_the_vocabulary(family, part, monkeypatch):
    """Whether the vocabulary is scored at once or part by part; its last part may overlap."""
    monkeypatch.setattr(layers, "_SCORES_IN_MEMORY", 0)
    monkeypatch.setattr(layers, "_VOCABULARY_PART", part)
    definition = Definition(dataclasses.replace(CONFIGS[family], vocab=512), head="lm")
    params = make_params(definition)
    hidden = jax.random.normal(jax.random.key(0), (2, 3, 2, definition.config.width))
    tokens = np.array([[5, 511], [0, 450]])

    def total(hidden):
        got = transformer.rivalry(definition, params, hidden, jnp.asarray(tokens))
        return (got.logsum - got.score).sum(), got

    def plain(hidden):
        logits = transformer.project(definition, params, hidden)
        place = jnp.broadcast_to(tokens[:, None, :, None], (2, 3, 2, 1))
        is_aim = jax.lax.broadcasted_iota(jnp.int32, logits.shape, 3) == place
        others = jax.nn.logsumexp(jnp.where(is_aim, -jnp.inf, logits), axis=-1)
        return (others - jnp.take_along_axis(logits, place, -1)[..., 0]).sum()

    gradient, got = jax.grad(total, has_aux=True)(hidden)
    expected = rivalry_of(np.asarray(transformer.project(definition, params, hidden)), tokens)
    for one, other in zip(got, expected, strict=True):
        assert relative_error(one, other) < 1e-5
    assert relative_error(gradient, jax.grad(plain)(hidden)) < 1e-5


def test_a_text_is_reached_when_each_of_its_tokens_comes_first():
    rng = np.random.default_rng(1)
    logits = rng.normal(size=(2, 3, 4, 5)).astype(np.float32)
    tokens, mask = np.array([[1, 4, 0, 0], [2, 2, 3, 1]]), np.array([[1, 1, 0, 0], [1] * 4], bool)
    for row, said in ((0, (1, 4)), (1, (2, 2, 3, 1))):
        for place, token in enumerate(said):  # the first candidate says it, the second but the last
            logits[row, 0, place, token] += 9
            logits[row, 1, place, token] += 9 * (place < len(said) - 1) - 9 * (
                place == len(said) - 1
            )

    goal = TextGoal(jnp.asarray(tokens), jnp.asarray(mask))
    scores = judge_text(rivalry_of(logits, tokens), goal)

    assert scores.success[:, :2].tolist() == [[True, False], [True, False]]
    for row, count in ((0, 2), (1, 4)):
        for one in range(3):
            losses = [cross_entropy(logits[row, one, g], tokens[row, g]) for g in range(count)]
            np.testing.assert_allclose(scores.loss[row, one], np.mean(losses), rtol=1e-6)
            np.testing.assert_allclose(-scores.answer[row, one, :count], losses, rtol=1e-5)
            assert not scores.answer[row, one, count:].any()


def test_a_chunk_must_divide_the_slots(victim, examples):
    run = make_run(victim, examples[:4], ATTACK, INSERT)
    slots = jnp.ones((4, 6, 4), jnp.int32)

    with pytest.raises(ValueError, match="chunk 4 does not divide 6"):
        score(
            *(victim.definition, victim.params, (run.prefix,), run.batch, slots, slots > 0),
            at_once=Pass(4, 4),
        )
