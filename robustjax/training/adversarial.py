"""Adversarial training in rounds: attack, pool, resample, train.

Each round attacks fresh clean training examples with the victim as it stands, adds every attacked
text to the pool with its true label, samples a training set from clean data and pool, trains on it,
and stores the losses seen (Howe et al. 2024, arXiv 2407.18213). A round owns a folder:
``attack_records.jsonl`` while it attacks, then ``model/``. The state after a round (weights,
optimizer, pool losses, compute) is one checkpoint; the pool's texts are the rounds' records. Killed
anywhere, the same call goes on and ends with the same bits.
"""

import dataclasses
import math
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from robustjax.attacks.search import Attack, SearchConfig
from robustjax.data.prompts import Example, Task
from robustjax.errors import UserError
from robustjax.evaluation.evaluate import accuracy, attack_examples
from robustjax.evaluation.records import AttackRecord, read_records
from robustjax.models.model_folder import save_model
from robustjax.models.victim import Victim
from robustjax.runtime.checkpoint import Checkpoints
from robustjax.runtime.progress import Progress
from robustjax.runtime.runlog import MetricsLog, Stopwatch
from robustjax.training import loop
from robustjax.training.loop import LabelledRows, TrainConfig, Trainer
from robustjax.training.objective import check_head
from robustjax.training.optimizer import learning_rate_schedule
from robustjax.training.pool import (
    PoolConfig,
    RoundSample,
    choose_to_attack,
    round_rng,
    sample_round,
)
from robustjax.training.schedule import AttackSchedule
from robustjax.training.step import TrainState, TrainStep


@dataclasses.dataclass(frozen=True)
class AdversarialConfig:
    """Settings of adversarial training.

    Attributes:
        attack: the training attack; each round replaces its number of iterations.
        schedule: iterations of each round.
        num_rounds: rounds of attack and training.
        examples_per_round: clean training examples attacked in a round.
        num_train: clean training examples to draw from; 0 takes all.
        pool: how a round's training set is sampled.
        train: optimizer and batches; ``epochs`` are passes over each round's set, and the learning
            rate's schedule spans one round (a rate that falls to 0 lets each round settle).
        search: how the attack is cut into programs.
    """

    attack: Attack
    schedule: AttackSchedule
    num_rounds: int = 3
    examples_per_round: int = 200
    num_train: int = 0
    pool: PoolConfig = PoolConfig()
    train: TrainConfig = TrainConfig(epochs=1)
    search: SearchConfig = SearchConfig()

    def __post_init__(self) -> None:
        for name in ("num_rounds", "examples_per_round"):
            if getattr(self, name) < 1:
                raise UserError(f"{name}={getattr(self, name)} must be at least 1")
        if self.attack.needs_companion:
            raise UserError(
                f"attack: {self.attack.name} asks a second model, which a training attack cannot; "
                "take another attack, or leave probe_size at 0"
            )
        self.schedule.iterations(0, self.num_rounds)  # its rules are checked before anything runs
        if self.num_train < 0:
            raise UserError(f"num_train={self.num_train} must not be negative")

    def check(self, num_examples: int) -> None:
        """Checks what depends on the data, so that it can be done before anything else is run.

        Args:
            num_examples: training examples that the task has.

        Raises:
            UserError: more are wanted than there are, or the warm-up outlasts a round.
        """
        if self.num_train > num_examples:
            raise UserError(
                f"num_train={self.num_train} is more than the task's {num_examples} training "
                "examples; lower it (0 takes all), or raise task.num_train"
            )
        clean = self.num_train or num_examples
        if self.examples_per_round > clean:
            raise UserError(
                f"examples_per_round={self.examples_per_round} is more than the {clean} training "
                "examples; lower it"
            )
        # The least a round can have; the pool makes it more.
        steps = math.ceil(min(self.pool.max_examples, clean) / self.train.batch_size)
        learning_rate_schedule(self.train.optimizer, steps * self.train.epochs)


def round_folder(folder: Path, number: int) -> Path:
    """Where a round (from 1) keeps its records and its model."""
    return folder / "rounds" / f"{number:03d}"


def train_adversarially(
    victim: Victim, task: Task, config: AdversarialConfig, *, seed: int, folder: Path, label: str
) -> tuple[Victim, dict[str, Any]]:
    """Hardens a trained classifier.

    Args:
        victim: a trained classifier; its weights are not touched.
        task: its training split is attacked and trained on, its validation split only evaluated on.
        config: settings.
        seed: keys the choice of examples, the attack and the order of batches.
        folder: the run's own folder.
        label: name on the progress line.

    Returns:
        The hardened victim and the summary with one entry a round.

    Raises:
        UserError: a language model; settings that do not fit the data; a loss that is not finite.
    """
    check_head(victim, "classifier")
    config.check(len(task.split("train")))
    clean = task.split("train")[: config.num_train or None]
    clean_rows = LabelledRows.of_texts(victim, [e.text for e in clean], [e.label for e in clean])
    step, state = loop.start(victim, config.train)
    checkpoints = Checkpoints(folder / "checkpoints")
    done, rounds, losses = 0, [], np.zeros(0)
    if checkpoints.latest_step() is not None:
        done, state, saved = checkpoints.restore(like=state)
        rounds = saved["rounds"]
        losses = np.array([np.inf if x is None else x for x in saved["losses"]])
    pool: list[AttackRecord] = []
    for number in range(1, done + 1):
        pool += _attacked(read_records(round_folder(folder, number) / "attack_records.jsonl"))

    watch = Stopwatch()
    with (
        watch.measure("seconds"),
        checkpoints,
        MetricsLog(folder / "metrics.jsonl", resume_at=done + 1) as log,
        Progress(config.num_rounds, label, unit="rounds", done=done) as progress,
    ):
        for number in range(done + 1, config.num_rounds + 1):
            current = victim.with_params(state.params)
            here = round_folder(folder, number)
            here.mkdir(parents=True, exist_ok=True)
            attack = dataclasses.replace(
                config.attack,
                num_iterations=config.schedule.iterations(number - 1, config.num_rounds),
            )
            found = _attack_round(current, task, clean, config, attack, number, seed, here)
            new = _attacked(found)
            pool += new
            losses = np.concatenate([losses, np.full(len(new), np.inf)])

            sample = sample_round(config.pool, len(clean), losses, round_rng(seed, number))
            texts, labels, sources = _training_set(clean, clean_rows, pool, sample, victim)
            data = LabelledRows(texts, labels, victim.tokenizer.pad_id)
            trainer = Trainer(victim, config.train, data, seed=seed)
            state, seen, mean_loss = _train_round(trainer, step, state, config.train, number, log)
            from_pool = sources >= 0
            losses[sources[from_pool]] = seen[from_pool]

            hardened = victim.with_params(state.params)
            entry = {
                "round": number,
                "attack_iterations": attack.num_iterations,
                "attack_successes": sum(record.success for record in new),
                "num_attacked": len(new),
                "num_failures": len(found) - len(new),
                "num_adversarial": int(from_pool.sum()),
                "num_clean": int((~from_pool).sum()),
                "pool_size": len(pool),
                "train_loss": mean_loss,
                "accuracy": accuracy(hardened, task.split("validation")),
            }
            flops_train = config.train.epochs * trainer.algorithmic_flops()
            rounds.append(entry | _compute(rounds, found, flops_train))
            save_model(here / "model", hardened)
            saved_losses = [None if np.isinf(x) else float(x) for x in losses]
            checkpoints.save(number, state, {"rounds": rounds, "losses": saved_losses})
            progress.advance(note=f"accuracy {rounds[-1]['accuracy']:.3f}")
    watch.write(folder)
    summary = {
        "kind": "advtrain",
        "num_params": victim.num_params,
        "trained_on": config.attack.name,
        "num_rounds": config.num_rounds,
        "rounds": rounds,
    }
    return victim.with_params(state.params), summary


def _attack_round(
    victim: Victim,
    task: Task,
    clean: tuple[Example, ...],
    config: AdversarialConfig,
    attack: Attack,
    number: int,
    seed: int,
    folder: Path,
) -> list[AttackRecord]:
    """Attacks a round's choice of clean examples, also those that are answered wrongly."""
    rng = round_rng(seed, number, "attack")
    chosen = choose_to_attack(len(clean), config.examples_per_round, rng)
    found, _ = attack_examples(
        victim,
        [clean[i] for i in chosen],
        task.chunk_kinds,
        attack,
        seed=seed,
        config=config.search,
        only_correct=False,
        path=folder / "attack_records.jsonl",
        label=f"round {number} {attack.name}",
    )
    return found


def _compute(
    rounds: list[dict[str, Any]], found: list[AttackRecord], flops_train: int
) -> dict[str, int]:
    """Algorithmic FLOPs of a round, and of all rounds up to it."""
    flops_attack = sum(record.flops_algorithmic for record in found)
    before = rounds[-1]["flops_total"] if rounds else 0
    return {
        "flops_attack": flops_attack,
        "flops_train": flops_train,
        "flops_total": before + flops_attack + flops_train,
    }


def _attacked(found: list[AttackRecord]) -> list[AttackRecord]:
    """Records with an attacked text, successful or not, in the order of their example ids."""
    attacked = [record for record in found if record.attacked_text is not None]
    return sorted(attacked, key=lambda record: record.example_id)


def _training_set(
    clean: tuple[Example, ...],
    clean_rows: LabelledRows,
    pool: list[AttackRecord],
    sample: RoundSample,
    victim: Victim,
) -> tuple[list[list[int]], list[int], np.ndarray]:
    """Token rows, labels and pool indices (-1: a clean row), in training order."""
    adversarial = [pool[i] for i in sample.adversarial_indices]
    rows = [clean_rows.rows[i] for i in sample.clean_indices]
    rows += victim.tokenizer.encode([record.attacked_text for record in adversarial])
    labels = [clean[i].label for i in sample.clean_indices]
    labels += [record.label for record in adversarial]
    sources = np.concatenate(
        [np.full(len(sample.clean_indices), -1), np.asarray(sample.adversarial_indices)]
    ).astype(int)
    order = sample.order
    return [rows[i] for i in order], [labels[i] for i in order], sources[order]


def _train_round(
    trainer: Trainer,
    step: TrainStep,
    state: TrainState,
    config: TrainConfig,
    number: int,
    log: MetricsLog,
) -> tuple[TrainState, Float[np.ndarray, " N"], float]:
    """Trains on one round's set; returns the losses of the last pass and their mean."""
    per_epoch, epochs = trainer.steps_per_epoch, config.epochs
    learning_rate = learning_rate_schedule(config.optimizer, per_epoch * epochs)
    with Progress(per_epoch * epochs, f"round {number} train") as progress:
        for epoch in range(epochs):

            def rate(index: int, base: int = epoch * per_epoch) -> float:
                return learning_rate(base + index)

            def on_step(index: int, loss: float) -> None:
                log.write(number, {"loss": loss})
                progress.advance(note=f"loss {loss:.3f}")

            # Batches of different rounds are shuffled differently.
            state, seen = trainer.run_epoch(step, state, number * epochs + epoch, on_step, rate)
    return state, seen, float(seen.mean())
