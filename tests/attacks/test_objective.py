"""The attack loss against float64, and what counts as a success."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from robustjax.attacks.objective import ClassGoal, TextGoal, attack_loss, judge, score
from tests.attacks.reference import cross_entropy
from tests.attacks.tiny import ATTACK, INSERT, make_run


@pytest.mark.parametrize("classes", [2, 3, 7])
def test_the_loss_is_the_cross_entropy_of_the_target(classes):
    rng = np.random.default_rng(classes)
    logits = (5 * rng.normal(size=(4, 6, classes))).astype(np.float32)
    for target in range(classes):
        got = attack_loss(jnp.asarray(logits), jnp.full((4, 6), target))
        np.testing.assert_allclose(got, cross_entropy(logits, target), rtol=2e-6, atol=1e-6)


@pytest.mark.parametrize("classes", [2, 3])
def test_the_loss_does_not_saturate(classes):
    """It still ranks slots where the plain float32 cross-entropy is 0 for all of them."""
    lead = jnp.array([10.0, 17.0, 20.0, 40.0, 80.0])
    logits = jnp.zeros((5, classes)).at[:, 1].set(lead)

    loss = np.asarray(attack_loss(logits, jnp.ones(5, jnp.int32)))

    assert (loss[1:] < loss[:-1]).all()
    expected = np.log1p((classes - 1) * np.exp(-np.asarray(lead, np.float64)))
    np.testing.assert_allclose(loss, expected, rtol=1e-5)
    naive = -jax.nn.log_softmax(logits)[:, 1]
    assert naive[3] == naive[4] == 0


def test_the_loss_of_a_hopeless_slot_is_finite_and_has_a_gradient():
    logits = jnp.array([200.0, -200.0])
    loss, gradient = jax.value_and_grad(lambda x: attack_loss(x, jnp.array(1)))(logits)

    assert loss == 400
    np.testing.assert_allclose(gradient, [1, -1])


def test_success_means_that_another_class_comes_first():
    logits = jnp.array([[[1.0, 0.0, 0.0], [0.0, 1.0, 0.5], [0.0, 0.0, 2.0], [1.0, 1.0, 0.0]]])
    logits = jnp.concatenate([logits, logits])

    scores = judge(logits[:, :, None], ClassGoal(jnp.array([0, 1]), jnp.array([1, 2])))

    # On ties the first class answers, as numpy's argmax has it. Any wrong class is a success.
    np.testing.assert_array_equal(
        scores.success, [[False, True, True, False], [True, False, True, True]]
    )
    for row, target in enumerate([1, 2]):
        expected = cross_entropy(np.asarray(logits[row]), target)
        np.testing.assert_allclose(scores.loss[row], expected, rtol=1e-6)


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

    scores = judge(jnp.asarray(logits), TextGoal(jnp.asarray(tokens), jnp.asarray(mask)))

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
        score(victim.definition, victim.params, (run.prefix,), run.batch, slots, slots > 0, chunk=4)
