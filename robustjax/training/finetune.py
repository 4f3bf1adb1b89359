"""Clean training of a classifier or a language model: from fresh or loaded weights to a saved one.

A run owns a folder: ``checkpoints/`` (the newest state), ``metrics.jsonl``, in the end ``model/``.
Killed anywhere, the same call goes on and ends with the same bits: batches depend on (seed, epoch)
alone, and what was logged after the last checkpoint is logged again.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from robustjax.data.prompts import Example, Task
from robustjax.errors import UserError
from robustjax.evaluation.evaluate import accuracy
from robustjax.evaluation.perplexity import perplexity
from robustjax.models.model_folder import save_model
from robustjax.models.victim import Victim
from robustjax.runtime import distributed, interrupts
from robustjax.runtime.checkpoint import Checkpoints, check_kept
from robustjax.runtime.progress import Progress
from robustjax.runtime.rows import anywhere
from robustjax.runtime.runlog import MetricsLog, Stopwatch, read_metrics
from robustjax.training.loop import (
    LabelledRows,
    Stepped,
    TrainConfig,
    Trainer,
    naming_last_good,
    start,
)
from robustjax.training.objective import ObjectiveName, check_head
from robustjax.training.optimizer import learning_rate_schedule
from robustjax.training.step import TrainState


@dataclasses.dataclass(frozen=True)
class FinetuneConfig:
    """Settings of clean training.

    Attributes:
        train: optimizer, batches, epochs.
        num_train: training examples, from the start of the task's shuffled split; 0 takes all.
        checkpoint_every: steps between checkpoints within an epoch (each epoch ends with one).
        keep_checkpoints: how many of the newest are kept; one that the disk damaged is replaced by
            the one before it.
        objective: what is trained: a classifier, or a language model (the loss of each next token,
            labels not looked at).
    """

    train: TrainConfig = TrainConfig()
    num_train: int = 0
    checkpoint_every: int = 500
    keep_checkpoints: int = 2
    objective: ObjectiveName = "classifier"

    def __post_init__(self) -> None:
        for name in ("num_train", "checkpoint_every"):
            if getattr(self, name) < 0:
                raise UserError(f"{name}={getattr(self, name)} must not be negative")
        check_kept(self.keep_checkpoints)

    def check(self, num_examples: int) -> None:
        """Checks what depends on the data, so that it can be done before anything else is run.

        Args:
            num_examples: training examples that the task has.

        Raises:
            UserError: more are wanted than there are, or the warm-up outlasts the training.
        """
        if self.num_train > num_examples:
            raise UserError(
                f"num_train={self.num_train} is more than the task's {num_examples} training "
                "examples; lower it (0 takes all), or raise task.num_train"
            )
        steps = math.ceil((self.num_train or num_examples) / self.train.batch_size)
        learning_rate_schedule(self.train.optimizer, steps * self.train.epochs)


class _Quality(NamedTuple):
    """What an objective's runs are called in summaries, and what says how good the model is."""

    kind: str
    name: str
    measure: Callable[[Victim, Sequence[Example]], float]


_QUALITIES: dict[ObjectiveName, _Quality] = {
    "classifier": _Quality("finetune", "validation_accuracy", accuracy),
    "lm": _Quality(
        "pretrain",
        "validation_perplexity",
        lambda victim, examples: perplexity(victim, [example.text for example in examples]),
    ),
}


def finetune(
    victim: Victim, task: Task, config: FinetuneConfig, *, seed: int, folder: Path, label: str
) -> tuple[Victim, dict[str, Any]]:
    """Trains on the task's training split and saves the model.

    Args:
        victim: where to start from; its weights are not touched.
        task: its validation split is only evaluated on.
        config: settings.
        seed: order of the batches.
        folder: the run's own folder.
        label: name on the progress line.

    Returns:
        The trained victim and the summary.

    Raises:
        UserError: settings that do not fit the data or the head; a text longer than the context; a
            loss that is not finite.
    """
    check_head(victim, config.objective)
    quality = _QUALITIES[config.objective]
    examples = task.split("train")
    config.check(len(examples))
    data = LabelledRows.of_examples(victim, examples[: config.num_train or None])
    trainer = Trainer(victim, config.train, data, seed=seed)
    per_epoch, epochs = trainer.steps_per_epoch, config.train.epochs
    step, state = start(victim, config.train)
    checkpoints = Checkpoints(folder / "checkpoints", keep=config.keep_checkpoints)
    done = checkpoints.latest_step() or 0
    if done:
        done, state, _ = checkpoints.restore(like=state)
    learning_rate = learning_rate_schedule(config.train.optimizer, per_epoch * epochs)
    watch = Stopwatch()
    with (
        watch.measure("seconds"),
        interrupts.finishing(),
        naming_last_good(checkpoints),
        checkpoints,
        MetricsLog(folder / "metrics.jsonl", resume_at=done + 1) as log,
        Progress(per_epoch * epochs, label, done=done) as progress,
    ):

        def rate(base: int, index: int) -> float:
            return learning_rate(base + index)

        def on_step(epoch: int, seen: Stepped) -> None:
            flops_before = trainer.algorithmic_flops(range(epoch))
            log.write(epoch * per_epoch + seen.number, seen.figures(flops_before))
            progress.advance(note=f"loss {seen.loss:.3f}")

        def save(epoch: int, number: int, state: TrainState, losses: Any = None) -> None:
            checkpoints.save(epoch * per_epoch + number, state, {})

        for epoch in range(done // per_epoch, epochs):
            base = epoch * per_epoch
            state, _ = trainer.run_epoch(
                step,
                state,
                epoch,
                functools.partial(on_step, epoch),
                functools.partial(rate, base),
                functools.partial(save, epoch),
                first=max(done - base, 0),
                save_every=config.checkpoint_every,
            )
            trained = victim.with_params(state.params)
            reached = quality.measure(trained, task.split("validation"))
            log.write(base + per_epoch, {"epoch": epoch + 1, quality.name: reached})
            save(epoch, per_epoch, state)
            if anywhere(interrupts.is_preempted())[0]:
                interrupts.stop()
    trained = victim.with_params(state.params)
    save_model(folder / "model", trained)
    logged = distributed.from_primary(
        lambda: read_metrics(folder / "metrics.jsonl"), "the metrics of the training"
    )
    qualities = [line[quality.name] for line in logged if quality.name in line]
    summary = {
        "kind": quality.kind,
        "num_params": victim.num_params,
        "num_train": len(data.rows),
        "num_validation": len(task.validation),
        "epochs": epochs,
        "steps": per_epoch * epochs,
        quality.name: qualities[-1],
        "flops_algorithmic": trainer.algorithmic_flops(range(epochs)),
        "flops_executed": epochs * trainer.executed_flops(),
    }
    watch.write(folder)
    return trained, summary
