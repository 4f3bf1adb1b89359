"""Running a train step over a set of labelled texts, epoch by epoch, in a replayable order."""

import contextlib
import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jaxtyping import Float

from robustjax.data.batching import (
    FILLER,
    Batch,
    check_edges,
    length_bucketed_batches,
)
from robustjax.data.pipeline import PaddedBatch, padded_batches, read_ahead
from robustjax.errors import UserError
from robustjax.evaluation import flops
from robustjax.models import transformer
from robustjax.models.transformer import Definition
from robustjax.models.victim import BUCKET_EDGES, Victim, check_lengths
from robustjax.training.objective import OBJECTIVES
from robustjax.training.optimizer import LearningRate, OptimizerConfig, make_optimizer
from robustjax.training.step import (
    TrainBatch,
    TrainState,
    TrainStep,
    accumulate_gradients,
    init_state,
    make_train_step,
    put_batch,
)


class DivergedError(UserError, FloatingPointError):
    """A loss is no longer finite."""


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """How weights are fitted to labelled texts.

    Attributes:
        epochs: passes over the texts.
        batch_size: rows of one update, on any number of devices.
        microbatch_size: rows whose gradients are taken at once; divides ``batch_size``.
        optimizer: optimizer and schedule.
        edges: widths that rows are padded to.
    """

    epochs: int = 3
    batch_size: int = 8
    microbatch_size: int = 8
    optimizer: OptimizerConfig = OptimizerConfig()
    edges: tuple[int, ...] = BUCKET_EDGES

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size", "microbatch_size"):
            if getattr(self, name) < 1:
                raise UserError(f"{name}={getattr(self, name)} must be at least 1")
        if self.batch_size % self.microbatch_size:
            raise UserError(
                f"microbatch_size={self.microbatch_size} does not divide "
                f"batch_size={self.batch_size}"
            )
        check_edges(self.edges)


@dataclasses.dataclass(frozen=True)
class LabelledRows:
    """Tokenised texts with their labels.

    Attributes:
        rows: ids of each text, unpadded.
        labels: ``[N]`` true classes.
        pad_id: the id to pad with.
    """

    rows: Sequence[Sequence[int]]
    labels: Sequence[int]
    pad_id: int

    @classmethod
    def of_texts(
        cls, victim: Victim, texts: Sequence[str], labels: Sequence[int]
    ) -> "LabelledRows":
        """Tokenises texts for a victim; UserError if one does not fit its context."""
        rows = victim.tokenizer.encode(list(texts))
        check_lengths(rows, victim.context)
        return cls(rows, list(labels), victim.tokenizer.pad_id)

    @property
    def num_tokens(self) -> int:
        """Real tokens of all texts."""
        return sum(len(row) for row in self.rows)


class Trainer:
    """A compiled step and the order of batches; the caller keeps the state.

    Attributes:
        steps_per_epoch: updates of one epoch.
    """

    def __init__(self, victim: Victim, config: TrainConfig, data: LabelledRows, *, seed: int):
        """Fixes the batches of every epoch, and with them the length of the schedule."""
        self._victim, self._config, self._data, self._seed = victim, config, data, seed
        self._lengths = [len(row) for row in data.rows]
        self._labels = np.array(data.labels, np.int32)
        terms = OBJECTIVES[victim.definition.head].terms(np.array(self._lengths, np.int32))
        self._terms = np.asarray(terms, np.float32)
        if not self._terms.any():
            raise UserError(
                f"objective='lm' needs a text of at least two tokens, but none of {len(data.rows)} "
                "has as many; give longer texts"
            )
        self.steps_per_epoch = len(self._batches(0))

    def _batches(self, epoch: int) -> list[Batch]:
        config = self._config
        return length_bucketed_batches(
            self._lengths, config.edges, config.batch_size, self._seed, epoch
        )

    def _labelled(self, batch: PaddedBatch) -> TrainBatch:
        """The arrays of one batch, cut into microbatches."""
        config, is_real = self._config, batch.indices != FILLER
        label = np.where(is_real, self._labels[batch.indices], 0)
        parts = config.batch_size // config.microbatch_size
        return TrainBatch._make(
            x.reshape(parts, -1, *x.shape[1:])
            for x in (batch.ids, batch.mask, label, is_real.astype(np.float32))
        )

    def run_epoch(
        self,
        step: TrainStep,
        state: TrainState,
        epoch: int,
        log: Callable[[int, float], None],
        learning_rate: LearningRate,
        *,
        first: int = 0,
        save: Callable[[int, TrainState], None] | None = None,
        save_every: int = 0,
    ) -> tuple[TrainState, Float[np.ndarray, " N"]]:
        """Runs the batches of an epoch from the ``first`` on.

        Losses are fetched one step late, so that the device does not wait for the host.

        Args:
            log: called with each step's number within the epoch (from 1) and mean loss, over texts
                or, of a language model, tokens.
            learning_rate: of each step, by its number within the epoch (from 0).
            save: called with the number of steps done and the state, every ``save_every`` steps
                but not at the end of the epoch.

        Returns:
            The state, and each text's loss as it was when its batch came (NaN for texts of batches
            before ``first``).

        Raises:
            DivergedError: when a loss is not finite; it names the step and the texts.
        """
        losses = np.full(len(self._data.rows), np.nan)
        batches = self._batches(epoch)
        pending: tuple[int, Any] | None = None

        def settle() -> None:
            if pending is None:
                return
            number, rows = pending
            indices, values = batches[number - 1].indices, np.asarray(rows).reshape(-1)
            real = indices != FILLER
            losses[indices[real]] = values[real]
            if not np.isfinite(values[real]).all():
                raise DivergedError(
                    f"step {number} of epoch {epoch + 1}: the loss is not finite "
                    f"(texts {indices[real].tolist()}); lower the learning rate"
                )
            terms = self._terms[indices[real]]
            log(number, float((values[real] * terms).sum() / max(terms.sum(), np.float32(1))))

        padded = padded_batches(self._data.rows, self._data.pad_id, batches)
        interval = save_every or len(batches)
        with contextlib.closing(read_ahead(padded, first)) as left:
            for number, batch in enumerate(left, start=first + 1):
                arrays = put_batch(self._victim, self._labelled(batch))
                state, rows = step(state, arrays, np.float32(learning_rate(number - 1)))
                settle()
                pending = (number, rows)
                if save is not None and number % interval == 0 and number < len(batches):
                    settle()
                    pending = None
                    save(number, state)
        settle()
        return state, losses

    def algorithmic_flops(self) -> int:
        """FLOPs of one epoch by the paper's convention."""
        return flops.training_flops(self._victim.num_params, self._data.num_tokens)

    def executed_flops(self) -> int:
        """FLOPs of one epoch's dot products, padding and all."""
        count: dict[int, int] = {}
        for batch in self._batches(0):
            count[batch.width] = count.get(batch.width, 0) + 1
        micro = self._config.microbatch_size
        rows = self._config.batch_size // micro, micro
        return sum(
            number * _gradient_flops(self._victim.definition, rows, width)
            for width, number in count.items()
        )


@functools.lru_cache(maxsize=64)
def _gradient_flops(definition: Definition, rows: tuple[int, int], width: int) -> int:
    """Executed FLOPs of the gradient of one batch: microbatches of so many rows and tokens."""
    tokens = (*rows, width)
    shapes = ((tokens, np.int32), (tokens, np.bool_), (rows, np.int32), (rows, np.float32))
    batch = TrainBatch._make(jax.ShapeDtypeStruct(*one) for one in shapes)
    gradients = functools.partial(accumulate_gradients, definition)
    return flops.executed_flops(gradients, transformer.abstract_params(definition), batch)


def start(victim: Victim, config: TrainConfig) -> tuple[TrainStep, TrainState]:
    """The compiled step of a run, and the state before the first."""
    stacked = frozenset({"blocks"} if victim.definition.scanned else ())
    optimizer = make_optimizer(config.optimizer, stacked)
    state = init_state(victim, optimizer)
    return make_train_step(victim, optimizer, state), state
