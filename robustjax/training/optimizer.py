"""Optimizers and learning-rate schedules.

Adafactor is that of Shazeer and Stern 2018 (arXiv 1804.04235) in the form that trained the models
of Howe et al. 2024 (arXiv 2407.18213): the Hugging Face implementation with a fixed learning rate,
no parameter scaling and no momentum. optax's own Adafactor is another algorithm in detail (which
axes it factors, and when), hence `scale_by_adafactor` below.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Collection
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import NamedSharding, PartitionSpec, Sharding
from jaxtyping import Array, Float, Int

from robustjax.errors import UserError

_NAMES = ("adafactor", "adamw")
_SCHEDULES = ("constant", "linear", "cosine")


LearningRate = Callable[[int], float]
"""The learning rate of a step; the first step is 0."""


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
    """Which optimizer, and how fast.

    Attributes:
        name: "adafactor" or "adamw".
        learning_rate: the highest learning rate.
        schedule: "constant", or "linear" or "cosine" from the learning rate to 0 at the last step.
        warmup_steps: over how many steps the learning rate rises linearly; step k of the warm-up,
            counted from 1, has k / warmup_steps of it. The decay starts after it.
        weight_decay: decoupled, multiplied by the learning rate. PyTorch's AdamW has 0.01.
        beta1: AdamW's decay of the first moment.
        beta2: AdamW's decay of the second moment.
        epsilon: what AdamW adds to the root of the second moment.
    """

    name: str = "adafactor"
    learning_rate: float = 1e-5
    schedule: str = "constant"
    warmup_steps: int = 0
    weight_decay: float = 0.0
    beta1: float = 0.9
    beta2: float = 0.999
    epsilon: float = 1e-8

    def __post_init__(self):
        if self.name not in _NAMES:
            raise UserError(f"optimizer.name: {self.name!r} is unknown; use one of {_NAMES}")
        if self.schedule not in _SCHEDULES:
            raise UserError(
                f"optimizer.schedule: {self.schedule!r} is unknown; use one of {_SCHEDULES}"
            )
        if not (math.isfinite(self.learning_rate) and self.learning_rate > 0):
            raise UserError(
                f"optimizer.learning_rate: {self.learning_rate} is not above 0; raise it"
            )
        for field in ("warmup_steps", "weight_decay"):
            if not getattr(self, field) >= 0:
                raise UserError(
                    f"optimizer.{field}: {getattr(self, field)} is below 0; use 0 for none"
                )
        for field in ("beta1", "beta2"):
            if not 0 <= getattr(self, field) < 1:
                raise UserError(f"optimizer.{field}: {getattr(self, field)} is not in [0, 1)")
        if not self.epsilon > 0:
            raise UserError(f"optimizer.epsilon: {self.epsilon} is not above 0; raise it")


@functools.lru_cache(maxsize=16)  # whoever asks again finds the step that is compiled with it
def make_optimizer(
    config: OptimizerConfig, stacked: frozenset[str] = frozenset()
) -> optax.GradientTransformationExtraArgs:
    """Builds the optimizer; its ``update`` takes the step's ``learning_rate`` as one more argument.

    So one compiled step serves every schedule, and trainings whose length shows on the way.

    Args:
        config: which.
        stacked: top-level keys of the parameters below which every leaf has a leading layer axis.
            Each layer is then treated as the tensor it would be by itself, so that stacked and
            unstacked weights train alike.
    """
    parts = [
        optax.scale_by_adam(b1=config.beta1, b2=config.beta2, eps=config.epsilon)
        if config.name == "adamw"
        else scale_by_adafactor(stacked)
    ]
    if config.weight_decay:
        parts.append(optax.add_decayed_weights(config.weight_decay))
    return optax.chain(*parts, _descend())


def _descend() -> optax.GradientTransformationExtraArgs:
    def update(
        updates: Any, state: Any, params: Any = None, *, learning_rate: Any
    ) -> tuple[Any, Any]:
        del params
        return jax.tree.map(lambda u: -learning_rate * u, updates), state

    return optax.GradientTransformationExtraArgs(lambda params: optax.EmptyState(), update)


def state_shardings(
    optimizer: optax.GradientTransformation, params: dict[str, Any], otherwise: Sharding
) -> Any:
    """How the optimizer's state is laid out: each array as the weight that it belongs to.

    Args:
        optimizer: one of `make_optimizer`.
        params: nested dicts of weights on a mesh.
        otherwise: for what belongs to no weight (counters).

    Returns:
        A tree of shardings in the shape of `optimizer.init(params)`.
    """

    def layout(path: tuple[Any, ...], leaf: Any) -> Sharding:
        # A path leads through the optimizer to a copy of the tree of weights, then perhaps further.
        weight: Any = params
        field = ""
        for key in path:
            if not isinstance(weight, dict):
                field = key.name
            elif getattr(key, "key", None) in weight:
                weight = weight[key.key]
        if isinstance(weight, dict):
            return otherwise
        spec = [*weight.sharding.spec, *[None] * (weight.ndim - len(weight.sharding.spec))]
        if field:  # of a FactoredMoment: a mean over one of the last two axes
            del spec[{"row": -1, "column": -2}[field]]
        assert len(spec) == leaf.ndim
        return NamedSharding(weight.sharding.mesh, PartitionSpec(*spec))

    shapes = jax.eval_shape(optimizer.init, params)
    return jax.tree_util.tree_map_with_path(layout, shapes)


def learning_rate_schedule(config: OptimizerConfig, num_steps: int) -> LearningRate:
    """The learning rate of each step of a training of `num_steps`; the first step is 0.

    Raises:
        UserError: no steps, or a warm-up longer than the training.
    """
    if num_steps < 1:
        raise UserError(f"optimizer: {num_steps} training steps; train for at least 1")
    if config.warmup_steps > num_steps:
        raise UserError(
            f"optimizer.warmup_steps: {config.warmup_steps} is more than the {num_steps} steps of "
            "the training; lower it, or train longer"
        )

    def rate(step: int) -> float:
        warmup = min((step + 1) / max(config.warmup_steps, 1), 1.0)
        decay_steps = max(num_steps - config.warmup_steps, 1)
        progress = min(max((step - config.warmup_steps) / decay_steps, 0.0), 1.0)
        decay = {
            "constant": 1.0,
            "linear": 1 - progress,
            "cosine": (1 + math.cos(math.pi * progress)) / 2,
        }[config.schedule]
        return config.learning_rate * warmup * decay

    return rate


class FactoredMoment(NamedTuple):
    """Mean squares of a matrix over its rows [..., R] and over its columns [..., C]."""

    row: Float[Array, "*rows"]
    column: Float[Array, "*columns"]


class AdafactorState(NamedTuple):
    """How many updates there were, and per parameter a `FactoredMoment` or a whole array."""

    step: Int[Array, ""]
    moments: dict[str, Any]


def scale_by_adafactor(
    stacked: Collection[str] = (),
    decay_exponent: float = 0.8,
    epsilon: float = 1e-30,
    clip_threshold: float = 1.0,
) -> optax.GradientTransformation:
    """Divides each gradient by the root of its factored mean square, and clips the result.

    With g the gradient of step t = 1, 2, ... and b = 1 - t^-decay_exponent:

    - v = b v + (1 - b)(g^2 + epsilon), kept as its means over the last axis (row) and over the one
      before (column) for every tensor of two or more axes, and whole for vectors and scalars;
    - u = g / sqrt(v), with row x column / mean(row) in the place of a factored v;
    - u is divided by max(1, RMS(u) / clip_threshold), the RMS being that of the whole tensor.

    Computed and kept in float32 whatever the type of the gradients. The sign is optax's: the
    learning rate has still to be applied.

    Args:
        stacked: as in `make_optimizer`.
        decay_exponent: how fast the mean squares lengthen their memory.
        epsilon: added to squared gradients.
        clip_threshold: greatest RMS of an update.
    """

    def init(params: dict[str, Any]) -> AdafactorState:
        moments = _by_tensor(_zero_moment, stacked, params)
        return AdafactorState(jnp.zeros((), jnp.int32), moments)

    def update(
        gradients: dict[str, Any], state: AdafactorState, params: dict[str, Any] | None = None
    ) -> tuple[dict[str, Any], AdafactorState]:
        del params
        step = state.step + 1
        new_share = step.astype(jnp.float32) ** -decay_exponent  # 1 - b

        def accumulate(gradient, moment):
            square = jnp.square(gradient.astype(jnp.float32)) + epsilon
            new = (
                FactoredMoment(square.mean(-1), square.mean(-2))
                if isinstance(moment, FactoredMoment)
                else square
            )
            return jax.tree.map(lambda old, now: old + new_share * (now - old), moment, new)

        def precondition(gradient, moment):
            scaled = gradient.astype(jnp.float32) * _inverse_root(moment)
            rms = jnp.sqrt(jnp.mean(jnp.square(scaled)))
            return scaled / jnp.maximum(1.0, rms / clip_threshold)

        moments = _by_tensor(accumulate, stacked, gradients, state.moments)
        updates = _by_tensor(precondition, stacked, gradients, moments)
        return updates, AdafactorState(step, moments)

    return optax.GradientTransformation(init, update)


def _by_tensor(function: Callable, stacked: Collection[str], *trees: dict[str, Any]) -> dict:
    """Applies a function to each tensor, and to each layer of the stacked ones."""
    return {
        key: jax.tree.map(
            jax.vmap(function) if key in stacked else function, *(tree[key] for tree in trees)
        )
        for key in trees[0]
    }


def _zero_moment(tensor: Array) -> Any:
    zeros = jnp.zeros(tensor.shape, jnp.float32)
    return FactoredMoment(zeros[..., 0], zeros[..., 0, :]) if tensor.ndim >= 2 else zeros


def _inverse_root(moment: Any) -> Array:
    if not isinstance(moment, FactoredMoment):
        return jax.lax.rsqrt(moment)
    # Two roots, not the root of the product: row x column of tiny gradients would underflow.
    row = moment.row / moment.row.mean(-1, keepdims=True)
    return jax.lax.rsqrt(row)[..., :, None] * jax.lax.rsqrt(moment.column)[..., None, :]
