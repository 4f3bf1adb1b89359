"""Running a train step over a set of labelled texts, epoch by epoch, in a replayable order."""

import collections
import contextlib
import dataclasses
import functools
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import numpy as np
from jaxtyping import Float, Int

from robustjax.data.batching import (
    FILLER,
    Batch,
    check_edges,
    length_bucketed_batches,
)
from robustjax.data.pipeline import PaddedBatch, padded_batches, read_ahead
from robustjax.data.prompts import Example
from robustjax.errors import UserError
from robustjax.evaluation import flops
from robustjax.models import transformer
from robustjax.models.transformer import Definition
from robustjax.models.victim import BUCKET_EDGES, Victim, check_lengths
from robustjax.runtime import interrupts
from robustjax.runtime.checkpoint import Checkpoints
from robustjax.runtime.rows import Heard, Rows, fetch
from robustjax.training.embedding import EmbeddingAttack
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
    rows_of,
)

OUTSIDE_RESULTS = ("checkpoint_every", "keep_checkpoints")
"""Settings of trainings that change no result, so that a run may go on with others."""


class DivergedError(UserError, FloatingPointError):
    """A loss or a gradient is no longer finite."""


@contextlib.contextmanager
def naming_last_good(checkpoints: Checkpoints) -> Iterator[None]:
    """Makes a `DivergedError` tell the newest checkpoint, which is from before it."""
    try:
        yield
    except DivergedError as error:
        step = checkpoints.latest_step()
        good = (
            "there is no checkpoint from before"
            if step is None
            else (f"the last good checkpoint is {checkpoints.folder}/{step:08d}")
        )
        raise DivergedError(f"{error}; {good}") from error


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """How weights are fitted to labelled texts.

    Attributes:
        epochs: passes over the texts.
        batch_size: rows of one update, on any number of devices.
        microbatch_size: rows whose gradients are taken at once; divides ``batch_size``.
        optimizer: optimizer and schedule.
        edges: widths that rows are padded to.
        count_padding: counts in algorithmic FLOPs every text as long as the longest of its
            microbatch (Howe et al. 2024).
    """

    epochs: int = 3
    batch_size: int = 8
    microbatch_size: int = 8
    optimizer: OptimizerConfig = OptimizerConfig()
    edges: tuple[int, ...] = BUCKET_EDGES
    count_padding: bool = False

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
        names: what messages call each text, such as the id of its example.
        free: which tokens of each row an embedding-space attack moves; None if there is none.
    """

    rows: Sequence[Sequence[int]]
    labels: Sequence[int]
    pad_id: int
    names: Sequence[str]
    free: Sequence[range] | None = None

    @classmethod
    def of_examples(cls, victim: Victim, examples: Sequence[Example]) -> "LabelledRows":
        """Tokenises clean examples for a victim; UserError if one does not fit its context."""
        rows = victim.tokenizer.encode([example.text for example in examples])
        check_lengths(rows, victim.context)
        names = [str(example.example_id) for example in examples]
        labels = [example.label for example in examples]
        return cls(rows, labels, victim.tokenizer.pad_id, names)

    def reordered(self, order: Sequence[int] | np.ndarray) -> "LabelledRows":
        """The same texts in another order."""

        def chosen(values: Sequence[Any]) -> list[Any]:
            return [values[i] for i in order]

        free = None if self.free is None else chosen(self.free)
        return LabelledRows(
            chosen(self.rows), chosen(self.labels), self.pad_id, chosen(self.names), free
        )

    @property
    def num_tokens(self) -> int:
        """Real tokens of all texts."""
        return sum(len(row) for row in self.rows)


class Stepped(NamedTuple):
    """What is logged of a step.

    Attributes:
        number: of the step within its epoch, from 1.
        loss: mean over texts or, of a language model, tokens; in nats.
        learning_rate: of the step.
        gradient_norm: Euclidean norm of the gradient over all weights.
        flops: of all steps of the epoch so far, by the paper's convention.
    """

    number: int
    loss: float
    learning_rate: float
    gradient_norm: float
    flops: int

    def figures(self, flops_before: int) -> dict[str, float | int]:
        """What stands in a metrics log; FLOPs are counted from the beginning of the run."""
        values = self._asdict() | {"flops": flops_before + self.flops}
        del values["number"]
        return values


@runtime_checkable
class Save(Protocol):
    """Saves a place within an epoch."""

    def __call__(self, number: int, state: TrainState, losses: Float[np.ndarray, " N"], /) -> None:
        """Saves.

        Args:
            number: steps of the epoch that are done.
            state: the state after them.
            losses: each text's loss; NaN for texts whose batch has not come yet.
        """
        ...


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
        self._flops_of: dict[int, int] = {}
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
        """The arrays of this process's rows of one batch, cut into microbatches."""
        config, is_real = self._config, batch.indices != FILLER
        label = np.where(is_real, self._labels[batch.indices], 0)
        arrays = [batch.ids, batch.mask, label, is_real.astype(np.float32)]
        if self._data.free is not None:
            ranges = [range(0) if i == FILLER else self._data.free[i] for i in batch.indices]
            starts, stops = np.array([(one.start, one.stop) for one in ranges]).T[..., None]
            place = np.arange(batch.ids.shape[1])
            arrays.append((starts <= place) & (place < stops))
        parts = config.batch_size // config.microbatch_size
        return TrainBatch(*(x.reshape(parts, -1, *x.shape[1:]) for x in arrays))

    def run_epoch(
        self,
        step: TrainStep,
        state: TrainState,
        epoch: int,
        log: Callable[[Stepped], None],
        learning_rate: LearningRate,
        save: Save,
        *,
        first: int = 0,
        losses: Float[np.ndarray, " N"] | None = None,
        save_every: int = 0,
    ) -> tuple[TrainState, Float[np.ndarray, " N"]]:
        """Runs the batches of an epoch from the ``first`` on.

        Losses are fetched one step late, so that the device does not wait for the host.

        Args:
            log: called with each step.
            learning_rate: of each step, by its number within the epoch (from 0).
            save: called every ``save_every`` steps but not at the end of the epoch, and when the
                process is preempted.
            losses: those of the batches before ``first``, as they were saved.

        Returns:
            The state, and each text's loss as it was when its batch came (NaN for texts of batches
            before ``first`` if their losses were not given).

        Raises:
            DivergedError: when a loss or a gradient is not finite; it names the step and the texts.
            PreemptedError: the process was asked to end; the last step is saved.
        """
        losses = np.full(len(self._data.rows), np.nan) if losses is None else losses.copy()
        batches = self._batches(epoch)
        tokens = np.cumsum([self._num_tokens(batch) for batch in batches]).tolist()
        pending: tuple[int, Any] | None = None

        def settle() -> None:
            nonlocal pending
            if pending is None:
                return
            number, report = pending
            pending = None
            indices, report = batches[number - 1].indices, fetch(report)
            values, norm = report.losses.reshape(-1), float(report.gradient_norm)
            real = indices != FILLER
            is_loss_finite = np.isfinite(values[real]).all()
            if not (is_loss_finite and np.isfinite(norm)):
                what = "gradient" if is_loss_finite else "loss"
                names = ", ".join(self._data.names[i] for i in indices[real])
                raise DivergedError(
                    f"step {number} of epoch {epoch + 1}: the {what} is not finite (examples "
                    f"{names}); lower the learning rate, in another --workdir"
                )
            losses[indices[real]] = values[real]
            terms = self._terms[indices[real]]
            loss = float((values[real] * terms).sum() / max(terms.sum(), np.float32(1)))
            rate = learning_rate(number - 1)
            spent = flops.training_flops(self._victim.num_params, tokens[number - 1])
            log(Stepped(number, loss, rate, norm, spent))

        rows = rows_of(self._victim, self._config.microbatch_size)
        padded = padded_batches(self._data.rows, self._data.pad_id, batches, self._places(rows))
        interval, heard = save_every or len(batches), Heard()
        with contextlib.closing(read_ahead(padded, first)) as left:
            for number, batch in enumerate(left, start=first + 1):
                arrays = put_batch(self._victim, self._labelled(batch), rows)
                state, report = step(state, arrays, np.float32(learning_rate(number - 1)))
                settle()
                pending = (number, report)
                is_last, (is_preempted,) = number == len(batches), heard(interrupts.is_preempted())
                if (number % interval == 0 or is_preempted) and not is_last:
                    settle()
                    save(number, state, losses)
                    if is_preempted:
                        interrupts.stop()
        settle()
        return state, losses

    def _places(self, rows: Rows) -> Int[np.ndarray, " R"]:
        """Where own rows stand in a batch of several microbatches."""
        size = self._config.microbatch_size
        starts = np.arange(0, self._config.batch_size, size)
        return (starts[:, None] + rows.mine).reshape(-1)

    def _num_tokens(self, batch: Batch) -> int:
        """Tokens that algorithmic FLOPs count."""
        size = self._config.microbatch_size
        total = 0
        for start in range(0, len(batch.indices), size):
            rows = [self._lengths[i] for i in batch.indices[start : start + size] if i != FILLER]
            total += len(rows) * max(rows, default=0) if self._config.count_padding else sum(rows)
        return total

    def algorithmic_flops(self, epochs: Iterable[int]) -> int:
        """FLOPs of some epochs by the paper's convention."""
        return sum(map(self._algorithmic_flops, epochs))

    def _algorithmic_flops(self, epoch: int) -> int:
        # Only where padding counts does it matter which texts came together.
        key = epoch if self._config.count_padding else 0
        if key not in self._flops_of:
            tokens = sum(self._num_tokens(batch) for batch in self._batches(key))
            self._flops_of[key] = flops.training_flops(self._victim.num_params, tokens)
        return self._flops_of[key]

    def executed_flops(self, attack: EmbeddingAttack | None = None) -> int:
        """FLOPs of one epoch's dot products, padding and all; of every epoch the same.

        Args:
            attack: moves embeddings before each update.
        """
        definition = self._victim.definition
        return executed_epoch_flops(definition, self._config, self._lengths, attack)


def executed_epoch_flops(
    definition: Definition,
    config: TrainConfig,
    lengths: Sequence[int],
    attack: EmbeddingAttack | None = None,
) -> int:
    """FLOPs of the dot products of one epoch over texts of these lengths.

    Args:
        definition: the model.
        config: batches and widths.
        lengths: tokens of each text.
        attack: moves embeddings before each update.
    """
    batches = length_bucketed_batches(lengths, config.edges, config.batch_size, 0, 0)
    rows = config.batch_size // config.microbatch_size, config.microbatch_size
    counts = collections.Counter(batch.width for batch in batches)
    return sum(
        number * _gradient_flops(definition, rows, width, attack)
        for width, number in counts.items()
    )


@functools.lru_cache(maxsize=64)
def _gradient_flops(
    definition: Definition, rows: tuple[int, int], width: int, attack: EmbeddingAttack | None
) -> int:
    """Executed FLOPs of the gradient of one batch: microbatches of so many rows and tokens."""
    tokens = (*rows, width)
    shapes = [(tokens, np.int32), (tokens, np.bool_), (rows, np.int32), (rows, np.float32)]
    if attack is not None:
        shapes.append((tokens, np.bool_))
    arrays: Any = [jax.ShapeDtypeStruct(*one) for one in shapes]
    batch = TrainBatch(*arrays)
    gradients = functools.partial(accumulate_gradients, definition, attack=attack)
    return flops.executed_flops(gradients, transformer.abstract_params(definition), batch)


def start(
    victim: Victim, config: TrainConfig, attack: EmbeddingAttack | None = None
) -> tuple[TrainStep, TrainState]:
    """The compiled step of a run, and the state before the first.

    Args:
        attack: moves the embeddings of the tokens that are free before each update.
    """
    stacked = frozenset({"blocks"} if victim.definition.scanned else ())
    optimizer = make_optimizer(config.optimizer, stacked)
    state = init_state(victim, optimizer)
    return make_train_step(victim.definition, optimizer, state, attack), state
