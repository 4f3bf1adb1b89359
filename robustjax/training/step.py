"""One training step: accumulated gradients, one update; jitted, donated, sharded.

The effective batch is the config's on any number of devices: it is cut into microbatches whose
gradients are summed before the one update.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Bool, Float, Int

from robustjax.models import transformer
from robustjax.models.transformer import Definition, Params
from robustjax.models.victim import Victim
from robustjax.runtime.mesh import replicated
from robustjax.runtime.rows import Rows
from robustjax.training.embedding import EmbeddingAttack, worst_shift
from robustjax.training.objective import OBJECTIVES
from robustjax.training.optimizer import state_shardings


class TrainState(NamedTuple):
    """What a step changes.

    Attributes:
        params: the weights.
        opt_state: the optimizer's state.
    """

    params: Params
    opt_state: Any


class TrainBatch(NamedTuple):
    """``M`` microbatches of ``B`` rows of one bucket; filler rows have weight 0.

    Labels are not looked at where a language model is trained. ``free`` is true at tokens whose
    embeddings an embedding-space attack moves, None where there is none.
    """

    tokens: Int[Array, "M B T"]
    mask: Bool[Array, "M B T"]
    label: Int[Array, "M B"]
    weight: Float[Array, "M B"]
    free: Bool[Array, "M B T"] | None = None


class StepReport(NamedTuple):
    """What a step tells.

    Attributes:
        losses: every row's loss in nats, before the update; of a language model the mean over the
            row's tokens.
        gradient_norm: Euclidean norm of the gradient over all weights.
    """

    losses: Float[Array, "M B"]
    gradient_norm: Float[Array, ""]


TrainStep = Callable[[TrainState, TrainBatch, Any], tuple[TrainState, StepReport]]


def init_state(victim: Victim, optimizer: optax.GradientTransformationExtraArgs) -> TrainState:
    """The state before the first step; the optimizer's arrays are laid out as the weights are."""
    leaves, structure = jax.tree.flatten(victim.params)
    like = tuple(
        jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding) for leaf in leaves
    )
    dtype = victim.definition.numerics.accumulation_dtype
    return _beginning(optimizer, dtype, victim.mesh, like, structure)(victim.params)


@functools.lru_cache(maxsize=16)  # as steps are shared
def _beginning(
    optimizer: optax.GradientTransformationExtraArgs,
    dtype: str,
    mesh: Mesh,
    like: tuple[jax.ShapeDtypeStruct, ...],
    structure: Any,
) -> Callable[[Params], TrainState]:
    params = jax.tree.unflatten(structure, like)
    # Fresh moments depend on no input: unless told where to go, they would all be on one device.
    moments = state_shardings(optimizer, params, otherwise=replicated(mesh))
    layout = TrainState(jax.tree.map(lambda leaf: leaf.sharding, params), moments)

    def begin(params: Params) -> TrainState:
        # A copy: the step donates its state, and the victim's weights must outlive it.
        opt_state = _fresh_opt_state(optimizer, dtype, params)
        return TrainState(jax.tree.map(jnp.copy, params), opt_state)

    return jax.jit(begin, out_shardings=layout)


def abstract_state(
    definition: Definition,
    optimizer: optax.GradientTransformationExtraArgs,
    params: Params,
    mesh: Mesh,
) -> TrainState:
    """Shapes, types and shardings of the state before the first step; nothing is allocated.

    Args:
        params: shapes of the weights, laid out on the mesh.
    """
    dtype = definition.numerics.accumulation_dtype
    shapes = jax.eval_shape(functools.partial(_fresh_opt_state, optimizer, dtype), params)
    shardings = state_shardings(optimizer, params, otherwise=replicated(mesh))

    def place(leaf: Any, sharding: Any) -> Any:
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)

    return TrainState(params, jax.tree.map(place, shapes, shardings))


def _fresh_opt_state(
    optimizer: optax.GradientTransformationExtraArgs, dtype: str, params: Params
) -> Any:
    # Moments are of the type of the gradients, which narrow weights need not be of.
    return optimizer.init(jax.tree.map(lambda leaf: leaf.astype(dtype), params))


def make_train_step(
    definition: Definition,
    optimizer: optax.GradientTransformationExtraArgs,
    state: TrainState,
    attack: EmbeddingAttack | None = None,
) -> TrainStep:
    """The step for a model where its state lies; the same one for the same optimizer.

    Args:
        state: arrays, or their shapes with shardings.
        attack: moves the embeddings of the tokens that are free before each update.

    Returns:
        A function from state, batch and learning rate to the new state and a report. It donates
        the state.
    """
    leaves, structure = jax.tree.flatten(state)
    layout = tuple(leaf.sharding for leaf in leaves)
    return _train_step(definition, optimizer, attack, layout, structure)


@functools.lru_cache(maxsize=16)  # seeds, and hardening by one attack and another, share it
def _train_step(
    definition: Definition,
    optimizer: optax.GradientTransformationExtraArgs,
    attack: EmbeddingAttack | None,
    layout: tuple[jax.sharding.Sharding, ...],
    structure: Any,
) -> TrainStep:
    shardings = jax.tree.unflatten(structure, layout)

    assert isinstance(layout[0], NamedSharding)
    # Every process reads the report, so every device has all of it.
    whole = NamedSharding(layout[0].mesh, PartitionSpec())

    @functools.partial(jax.jit, donate_argnums=0, out_shardings=(shardings, whole))
    def step(
        state: TrainState, batch: TrainBatch, learning_rate: Float[Array, ""]
    ) -> tuple[TrainState, StepReport]:
        gradients, losses = accumulate_gradients(definition, state.params, batch, attack)
        updates, opt_state = optimizer.update(
            gradients, state.opt_state, state.params, learning_rate=learning_rate
        )
        params = optax.apply_updates(state.params, updates)
        report = StepReport(losses, optax.tree.norm(gradients).astype(jnp.float32))
        return TrainState(params, opt_state), report

    return step


def accumulate_gradients(
    definition: Definition,
    params: Params,
    batch: TrainBatch,
    attack: EmbeddingAttack | None = None,
) -> tuple[Params, Float[Array, "M B"]]:
    """Gradient of the mean loss over all microbatches, and every row's loss.

    The mean is over texts for a classifier, over their predicted tokens for a language model. The
    gradients are summed up, and returned, in ``definition.numerics.accumulation_dtype``.
    """
    objective = OBJECTIVES[definition.head]
    total = (batch.weight * objective.terms(batch.mask.sum(-1))).sum()
    # Counted over all microbatches: means of their means would weigh long texts less.
    total = jnp.maximum(total, 1.0)

    def one(gradients: Params, micro: TrainBatch) -> tuple[Params, Array]:
        def losses(params: Params, shift: Array | None) -> Array:
            scores = transformer.apply(definition, params, micro.tokens, micro.mask, shift)
            return objective.losses(scores, micro.tokens, micro.mask, micro.label)

        shift = None
        if attack is not None:
            assert micro.free is not None
            raise_losses = functools.partial(losses, params)
            shift = worst_shift(attack, raise_losses, params["embed"]["embedding"], micro.free)

        def loss(params: Params) -> tuple[Array, Array]:
            rows = losses(params, shift)
            return (rows * micro.weight).sum() / total, rows

        new, rows = jax.grad(loss, has_aux=True)(params)
        means = rows / jnp.maximum(objective.terms(micro.mask.sum(-1)), 1)
        return jax.tree.map(lambda sum, one: sum + one.astype(sum.dtype), gradients, new), means

    dtype = definition.numerics.accumulation_dtype
    zeros = jax.tree.map(lambda leaf: jnp.zeros_like(leaf, dtype=dtype), params)
    return jax.lax.scan(one, zeros, batch)


def rows_of(victim: Victim, microbatch_size: int) -> Rows:
    """The rows of a microbatch, split over the batch axes, and which are this process's own."""
    return Rows(victim.mesh, victim.rules, microbatch_size, "batch")


def put_batch(victim: Victim, batch: TrainBatch, rows: Rows | None = None) -> TrainBatch:
    """Places a host batch on the mesh, rows split over the batch axes.

    Args:
        victim: whose mesh it is.
        batch: a process's own rows of each microbatch.
        rows: of a microbatch; by default all are the process's own.
    """
    rows = rows_of(victim, batch.label.shape[1]) if rows is None else rows
    return rows.put(batch, axis=1)
