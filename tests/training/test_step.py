"""The train step: the same update however it is cut up or spread over devices."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from robustjax.models import transformer
from robustjax.models.layers import Numerics
from robustjax.models.victim import apply, param_shardings
from robustjax.training.loop import TrainConfig, start
from robustjax.training.optimizer import OptimizerConfig
from robustjax.training.step import TrainBatch, accumulate_gradients, put_batch
from tests.training.conftest import same_bits

ROWS, WIDTH = 8, 32
RATE = np.float32(1e-2)


def make_batch(parts=1, weight=None):
    """Eight random rows of different lengths, cut into microbatches."""
    rng = np.random.default_rng(0)
    lengths = rng.integers(5, WIDTH + 1, ROWS)
    arrays = TrainBatch(
        tokens=rng.integers(1, 512, (ROWS, WIDTH)).astype(np.int32),
        mask=np.arange(WIDTH) < lengths[:, None],
        label=rng.integers(0, 2, ROWS).astype(np.int32),
        weight=np.ones(ROWS, np.float32) if weight is None else np.asarray(weight, np.float32),
    )
    return jax.tree.map(lambda x: x.reshape(parts, ROWS // parts, *x.shape[1:]), arrays)


update_of = jax.jit(accumulate_gradients, static_argnums=(0, 3))


def gradients_of(victim, batch):
    return jax.device_get(update_of(victim.definition, victim.params, put_batch(victim, batch)))


def distance(one, other):
    """Norm of the difference, relative to the norm."""
    flat = [
        np.concatenate([x.ravel() for x in jax.tree.leaves(jax.device_get(t))])
        for t in (one, other)
    ]
    return np.linalg.norm(flat[0] - flat[1]) / np.linalg.norm(flat[1])


def distances(one, other):
    """The same of each tensor by itself."""
    return jax.tree.leaves(jax.tree.map(lambda a, b: distance([a], [b]), one, other))


# Uneven on purpose: averaging the means of microbatches would be another gradient; for a language
# model also where every row counts, for they have different numbers of tokens.
@pytest.mark.parametrize("head", ["classifier", "lm"])
@pytest.mark.parametrize("weight", [None, [1, 1, 1, 1, 1, 0, 0, 0]], ids=["full", "filled"])
def test_microbatches_add_up_to_the_gradient_of_the_batch(make_victim, weight, head):
    victim = make_victim(head=head)
    whole, losses = gradients_of(victim, make_batch(1, weight))
    for parts in (2, 8) if weight is None else (2,):
        cut, cut_losses = gradients_of(victim, make_batch(parts, weight))
        assert max(distances(cut, whole)) < 2e-6
        np.testing.assert_allclose(cut_losses.ravel(), losses.ravel(), rtol=1e-5)


@pytest.mark.parametrize("head", ["classifier", "lm"])
@pytest.mark.parametrize("sizes", [(4, 1, 1), (1, 2, 2)])
def test_a_mesh_gives_the_gradient_of_one_device(make_victim, sizes, head):
    one, _ = gradients_of(make_victim(head=head), make_batch(2))
    many, _ = gradients_of(make_victim(sizes, head=head), make_batch(2))
    assert max(distances(many, one)) < 2e-6


def after_twenty_steps(victim, parts):
    """Losses of twenty steps, and scores of other texts after them."""
    step, state = start(victim, TrainConfig(optimizer=OptimizerConfig(learning_rate=1e-2)))
    batch, losses = put_batch(victim, make_batch(parts)), []
    for _ in range(20):
        state, report = step(state, batch, RATE)
        losses.append(np.asarray(report.losses).ravel())
    rng = np.random.default_rng(1)
    tokens = rng.integers(1, 512, (4, WIDTH)).astype(np.int32)
    scores = apply(victim.definition, state.params, tokens, np.ones(tokens.shape, bool))
    return np.array(losses), np.asarray(scores)


@pytest.fixture(scope="module")
def trained_whole(make_victim):
    return after_twenty_steps(make_victim(), parts=1)


# The mesh needs a microbatch of several rows to split.
@pytest.mark.parametrize(
    ("parts", "sizes"),
    [(8, (1, 1, 1)), (2, (4, 1, 1)), (2, (1, 2, 2))],
)
def test_training_does_not_depend_on_microbatches_or_devices(
    make_victim, trained_whole, parts, sizes
):
    expected, expected_scores = trained_whole
    assert expected[-1].mean() < expected[0].mean() - 0.1
    losses, scores = after_twenty_steps(make_victim(sizes), parts)
    np.testing.assert_allclose(losses, expected, atol=1e-4)
    np.testing.assert_allclose(scores, expected_scores, atol=1e-4)


@pytest.mark.parametrize("name", ["adafactor", "adamw"])
def test_state_keeps_its_layout(make_victim, name):
    victim = make_victim((1, 2, 2))
    step, state = start(victim, TrainConfig(optimizer=OptimizerConfig(name)))
    expected = param_shardings(victim.definition, victim.mesh, victim.rules)
    before = jax.tree.map(lambda leaf: leaf.sharding, state)
    assert before.params == expected
    # A matrix's moments are split like the matrix: whole, or what is left of it without one axis.
    kernel, bias = (victim.params["blocks"]["00"]["mlp_in"][name] for name in ("kernel", "bias"))
    assert (kernel.sharding.spec, bias.sharding.spec) == (P("fsdp", "tensor"), P("tensor"))
    if name == "adafactor":
        moments = state.opt_state[0].moments["blocks"]["00"]["mlp_in"]
        assert moments["kernel"].row.sharding.spec == P("fsdp")
        assert moments["kernel"].column.sharding.spec == P("tensor")
        assert moments["bias"].sharding.spec == P("tensor")
    else:
        for moment in (state.opt_state[0].mu, state.opt_state[0].nu):
            assert jax.tree.map(lambda leaf: leaf.sharding, moment) == expected
    for _ in range(2):
        state, _ = step(state, put_batch(victim, make_batch(2)), RATE)
    assert jax.tree.map(lambda leaf: leaf.sharding, state) == before


@pytest.mark.parametrize("head", ["classifier", "lm"])
def test_filler_rows_do_not_count(make_victim, head):
    victim = make_victim(head=head)
    batch = make_batch(2, [1, 1, 1, 0, 1, 1, 0, 0])
    filler = batch.weight == 0
    other = batch._replace(
        tokens=np.where(filler[..., None], 7, batch.tokens),
        label=np.where(filler, 1 - batch.label, batch.label),
    )
    expected, _ = gradients_of(victim, batch)
    assert same_bits(gradients_of(victim, other)[0], expected)

    # And the mean is over the real rows alone.
    real = TrainBatch(*(x.reshape(1, ROWS, *x.shape[2:])[:, ~filler.ravel()] for x in batch[:4]))
    assert distance(gradients_of(victim, real)[0], expected) < 2e-6


def test_a_language_model_learns_the_mean_over_tokens(make_victim):
    """Against a list of every token after the first of its row, and the place that predicts it."""
    victim = make_victim(head="lm")
    batch = make_batch(2)
    tokens, mask = (jnp.asarray(x.reshape(ROWS, WIDTH)) for x in (batch.tokens, batch.mask))
    counts = np.asarray(mask.sum(-1)) - 1
    pairs = [(row, place) for row in range(ROWS) for place in range(counts[row])]
    row, place = np.array(pairs).T

    @jax.jit
    def mean(params):
        scores = transformer.apply(victim.definition, params, tokens, mask)
        return -jax.nn.log_softmax(scores)[row, place, tokens[row, place + 1]].mean()

    loss, expected = jax.value_and_grad(mean)(victim.params)
    gradients, losses = gradients_of(victim, batch)
    assert distance(gradients, expected) < 2e-6
    # And each row's loss is the mean over its own tokens.
    assert np.average(losses.ravel(), weights=counts) == pytest.approx(float(loss), rel=1e-5)


def test_a_language_model_s_padding_does_not_count(make_victim):
    victim = make_victim(head="lm")
    batch = make_batch(2)
    wider = TrainBatch(
        np.pad(batch.tokens, ((0, 0), (0, 0), (0, WIDTH)), constant_values=7),
        np.pad(batch.mask, ((0, 0), (0, 0), (0, WIDTH))),
        1 - batch.label,  # labels are not looked at either
        batch.weight,
    )
    expected, losses = gradients_of(victim, batch)
    found, wider_losses = gradients_of(victim, wider)
    assert distance(found, expected) < 2e-6
    np.testing.assert_allclose(wider_losses, losses, rtol=1e-5)


def test_scanned_and_unrolled_layers_train_alike(make_victim):
    def losses(victim):
        config = TrainConfig(optimizer=OptimizerConfig(learning_rate=1e-2))
        step, state = start(victim, config)
        return [
            np.asarray(rows)
            for rows in _run(step, state, put_batch(victim, make_batch(1)), count=4)
        ]

    unrolled, scanned = (losses(make_victim(layers=2, scanned=s)) for s in (False, True))
    np.testing.assert_allclose(scanned, unrolled, atol=1e-4)


def _run(step, state, batch, count):
    for _ in range(count):
        state, report = step(state, batch, RATE)
        yield report.losses


def test_the_victims_own_weights_survive_donation(make_victim):
    victim = make_victim()
    before = jax.device_get(victim.params)
    step, state = start(victim, TrainConfig())
    given = jax.tree.leaves(state.params)
    state, _ = step(state, put_batch(victim, make_batch()), RATE)
    assert all(leaf.is_deleted() for leaf in given)
    assert same_bits(victim.params, before)
    assert not same_bits(state.params, before)


@pytest.mark.parametrize("name", ["adafactor", "adamw"])
def test_narrow_weights_are_trained_with_wide_gradients_and_moments(make_victim, name):
    narrow = Numerics("bfloat16", "bfloat16", "float32", "default")
    victim = make_victim(numerics=narrow)
    gradients, _ = gradients_of(victim, make_batch(2))
    assert {leaf.dtype for leaf in jax.tree.leaves(gradients)} == {np.dtype(np.float32)}
    step, state = start(victim, TrainConfig(optimizer=OptimizerConfig(name=name)))
    before = jax.tree.map(lambda leaf: (leaf.dtype, leaf.shape), state)
    moments = [leaf for leaf in jax.tree.leaves(state.opt_state) if leaf.ndim]
    assert {leaf.dtype for leaf in moments} == {np.dtype(np.float32)}
    losses = []
    for _ in range(8):
        state, report = step(state, put_batch(victim, make_batch(2)), RATE)
        losses.append(float(report.losses.mean()))
    assert jax.tree.map(lambda leaf: (leaf.dtype, leaf.shape), state) == before
    assert losses[-1] < losses[0] - 0.1


def test_gradients_of_microbatches_are_summed_up_in_the_type_asked_for(make_victim):
    exact, _ = gradients_of(make_victim(), make_batch(8))
    errors = {}
    for wide in ("float32", "bfloat16"):
        victim = make_victim(numerics=Numerics("float32", "float32", wide, "highest"))
        gradients, _ = gradients_of(victim, make_batch(8))
        assert {leaf.dtype for leaf in jax.tree.leaves(gradients)} == {np.dtype(wide)}
        errors[wide] = distance(gradients, exact)
    assert errors["float32"] == 0 < errors["bfloat16"] < 0.1
