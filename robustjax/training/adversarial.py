"""Adversarial training in rounds: attack, pool, resample, train.

Each round attacks fresh clean training examples with the victim as it stands, adds every attacked
text to the pool with its true label, samples a training set from clean data and pool, trains on it,
and stores the losses seen (Howe et al. 2024, arXiv 2407.18213). Or, far cheaper, it searches no
texts and attacks the embeddings of a share of clean texts just before each update.

A checkpoint is the state after some update: weights and optimizer as arrays, and as metadata the
place in the round (which determines data order and randomness), the pool's losses, the compute, and
checksums of the records that are the pool's texts. Killed anywhere, the same call goes on and ends
with the same bits.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from robustjax.attacks import search
from robustjax.attacks.search import Attack, SearchConfig
from robustjax.data.prompts import Task
from robustjax.errors import UserError
from robustjax.evaluation import flops
from robustjax.evaluation.evaluate import accuracy
from robustjax.evaluation.flops import Flops
from robustjax.evaluation.records import AttackRecord
from robustjax.models.model_folder import save_model
from robustjax.models.victim import Victim
from robustjax.runtime import interrupts
from robustjax.runtime.checkpoint import Checkpoints, check_kept
from robustjax.runtime.progress import Forecast, Progress
from robustjax.runtime.rows import anywhere
from robustjax.runtime.runlog import MetricsLog, Stopwatch
from robustjax.training import loop, rounds
from robustjax.training.embedding import EmbeddingAttack
from robustjax.training.loop import (
    LabelledRows,
    Stepped,
    TrainConfig,
    Trainer,
    naming_last_good,
)
from robustjax.training.objective import check_head
from robustjax.training.optimizer import learning_rate_schedule
from robustjax.training.pool import PoolConfig, round_rng, sample_round
from robustjax.training.rounds import TrainingAttack, TrainingSet
from robustjax.training.run_state import RunState
from robustjax.training.step import TrainState, TrainStep


@dataclasses.dataclass(frozen=True)
class AdversarialConfig:
    """Settings of adversarial training.

    Attributes:
        attacks: the training attacks by name; several share a round's examples.
        embedding: an attack on embeddings in their place.
        num_rounds: rounds of attack and training.
        examples_per_round: clean training examples attacked in a round; those whose embeddings are
            attacked are a share of the training set instead (`pool.max_adversarial_share`).
        num_train: clean training examples to draw from; 0 takes all.
        pool: how a round's training set is sampled.
        train: optimizer and batches; ``epochs`` are passes over each round's set, and the learning
            rate's schedule spans one round (a rate that falls to 0 lets each round settle).
        search: how attacks are cut into programs.
        checkpoint_every: updates between checkpoints within a pass; 0 saves between passes only.
        keep_checkpoints: how many of the newest are kept; one that the disk damaged is replaced by
            the one before it.
    """

    attacks: dict[str, TrainingAttack] = dataclasses.field(default_factory=dict)
    embedding: EmbeddingAttack | None = None
    num_rounds: int = 3
    examples_per_round: int = 200
    num_train: int = 0
    pool: PoolConfig = PoolConfig()
    train: TrainConfig = TrainConfig(epochs=1)
    search: SearchConfig = SearchConfig()
    checkpoint_every: int = 500
    keep_checkpoints: int = 2

    def __post_init__(self) -> None:
        for name in ("num_rounds", "examples_per_round"):
            if getattr(self, name) < 1:
                raise UserError(f"{name}={getattr(self, name)} must be at least 1")
        for name in ("num_train", "checkpoint_every"):
            if getattr(self, name) < 0:
                raise UserError(f"{name}={getattr(self, name)} must not be negative")
        check_kept(self.keep_checkpoints)
        if bool(self.attacks) == (self.embedding is not None):
            wrong = "both are given" if self.attacks else "neither is given"
            raise UserError(f"attacks or embedding: {wrong}; give one of them")
        for name, one in self.attacks.items():
            try:
                one.of_round(1, self.num_rounds)  # its rules are checked before anything runs
            except UserError as error:
                raise UserError(f"attacks.{name}: {error}") from error
        _ = self.shares  # its rules too

    @property
    def shares(self) -> dict[str, int]:
        """How many of a round's examples each attack gets."""
        return rounds.shares_of(self.attacks, self.examples_per_round) if self.attacks else {}

    def attacks_of(self, number: int) -> dict[str, Attack]:
        """The attacks of a round (from 1), with its iterations."""
        return {name: one.of_round(number, self.num_rounds) for name, one in self.attacks.items()}

    @property
    def label(self) -> str:
        """What the training attacks are called together."""
        return "+".join(self.attacks) or EmbeddingAttack.name

    @property
    def slot_width(self) -> int:
        """Most tokens that an attack adds to a text."""
        widths = [search.module_of(a.attack).slot_width(a.attack) for a in self.attacks.values()]
        return max([*widths, 0 if self.embedding is None else self.embedding.added_tokens])

    @property
    def positions(self) -> list[float]:
        """Where slots stand."""
        found = [one.attack.position for one in self.attacks.values()]
        return found if self.embedding is None else [self.embedding.position]

    @property
    def needs_companion(self) -> bool:
        """Whether a training attack asks a second model."""
        return any(one.attack.needs_companion for one in self.attacks.values())

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
        if self.attacks and self.examples_per_round > clean:
            raise UserError(
                f"examples_per_round={self.examples_per_round} is more than the {clean} training "
                "examples; lower it"
            )
        # The least a round can have; the pool makes it more.
        steps = math.ceil(min(self.pool.max_examples, clean) / self.train.batch_size)
        learning_rate_schedule(self.train.optimizer, steps * self.train.epochs)


Evaluate = Callable[[int, Victim, int], Mapping[str, float | int | None]]
"""From a round (0: before the first), its victim and the FLOPs of the defence so far to figures."""


def train_adversarially(
    victim: Victim,
    task: Task,
    config: AdversarialConfig,
    *,
    seed: int,
    folder: Path,
    label: str,
    companion: Victim | None = None,
    evaluate: Evaluate | None = None,
) -> tuple[Victim, dict[str, Any]]:
    """Hardens a trained classifier.

    Args:
        victim: a trained classifier; its weights are not touched.
        task: its training split is attacked and trained on, its validation split only evaluated on.
        config: settings.
        seed: keys the choice of examples, the attacks and the order of batches.
        folder: the run's own folder.
        label: name on the progress line.
        companion: a second model, for training attacks that ask one.
        evaluate: called before the first round and after each; what it returns is logged. It must
            skip what it did before.

    Returns:
        The hardened victim and the summary with one entry a round.

    Raises:
        UserError: a language model; settings that do not fit the data; a loss that is not finite.
        PreemptedError: the process was asked to end; what it did is saved.
    """
    check_head(victim, "classifier")
    config.check(len(task.split("train")))
    watch = Stopwatch()
    training = _Training(victim, task, config, seed, folder, companion)
    run, forecast = training.run, training.forecast
    if evaluate is not None:
        forecast.expect("evaluate", config.num_rounds + 1 - run.done)
    with (
        watch.measure("seconds"),
        interrupts.finishing(),
        naming_last_good(training.checkpoints),
        training.checkpoints,
        training.log,
        Progress(
            config.num_rounds, label, unit="rounds", done=run.done, later=forecast.seconds
        ) as progress,
    ):
        # What is evaluated of the round that a checkpoint ends may not be done; within a round it
        # is, and its weights are gone.
        for number in range(run.done + (run.epoch is not None), config.num_rounds + 1):
            if number > run.done:
                training.do_round(number)
                progress.advance(note=f"accuracy {run.rounds[-1]['accuracy']:.3f}")
            if evaluate is not None:
                training.evaluate(evaluate, number)
            if anywhere(interrupts.is_preempted())[0]:
                interrupts.stop()
    watch.write(folder)
    summary = {
        "kind": "advtrain",
        "num_params": victim.num_params,
        "trained_on": config.label,
        "num_rounds": config.num_rounds,
        "rounds": run.rounds,
        "flops_algorithmic": training.flops_spent,
        "flops_executed": sum(
            one["flops_attack_executed"] + one["flops_train_executed"] for one in run.rounds
        ),
    }
    return training.current, summary


class _Training:
    """A run of adversarial training and what it needs."""

    def __init__(
        self,
        victim: Victim,
        task: Task,
        config: AdversarialConfig,
        seed: int,
        folder: Path,
        companion: Victim | None,
    ):
        """Takes up the newest checkpoint, if there is one."""
        self._victim, self._task, self._config = victim, task, config
        self._seed, self._folder, self._companion = seed, folder, companion
        self._clean = task.split("train")[: config.num_train or None]
        self._clean_rows = LabelledRows.of_examples(victim, self._clean)
        self._step: TrainStep
        self._state: TrainState
        self._step, self._state = loop.start(victim, config.train, config.embedding)
        self.checkpoints = Checkpoints(folder / "checkpoints", keep=config.keep_checkpoints)
        self.run = RunState()
        if self.checkpoints.latest_step() is not None:
            _, self._state, saved = self.checkpoints.restore(like=self._state)
            self.run = RunState.of_json(saved)
        self._pool: list[AttackRecord] = []
        self._found: dict[str, list[AttackRecord]] = {}
        for number in range(1, self.run.round + 1):
            if config.attacks:
                self._found = rounds.read_round(folder, number, self.run.records[str(number)])
                self._pool += rounds.into_pool(self._found)
        self.log = MetricsLog(folder / "metrics.jsonl", resume_at=self.run.number + 1)
        self.forecast = Forecast()
        for number in range(self.run.done + 1, config.num_rounds + 1):
            self.forecast.expect("attack", self._attack_units(number))
            self.forecast.expect("train", self._train_units)

    @property
    def current(self) -> Victim:
        """The victim as it stands."""
        return self._victim.with_params(self._state.params)

    @property
    def _train_units(self) -> int:
        return self._config.pool.max_examples * self._config.train.epochs

    def _attack_units(self, number: int) -> int:
        """Example-iterations of a round."""
        counts, attacks = self._config.shares, self._config.attacks_of(number)
        return sum(counts[name] * attack.num_iterations for name, attack in attacks.items())

    @property
    def flops_spent(self) -> int:
        """Algorithmic FLOPs of the rounds that are done."""
        return self.run.rounds[-1]["flops_total"] if self.run.rounds else 0

    def evaluate(self, evaluate: Evaluate, number: int) -> None:
        """Evaluates the victim after a round, or before the first one, and logs it."""
        with self.forecast.doing("evaluate", 1):
            figures = evaluate(number, self.current, self.flops_spent)
        # A run that was killed right after this line finds it there.
        self.log.write_once(self.run.number, {"round": number, **figures})

    def do_round(self, number: int) -> None:
        """Attacks and trains, or goes on with it; ends with a checkpoint."""
        run, config = self.run, self._config
        if run.round < number:
            self._begin(number)
        data = self._training_set(number)
        trainer = Trainer(self._victim, config.train, data.data, seed=self._seed)
        attack_flops = self._flops_of_attack(data, trainer)
        with self.forecast.doing("train", self._train_units):
            self._train(trainer, number, attack_flops)
        assert run.seen is not None
        is_pooled = data.sources >= 0
        run.losses[data.sources[is_pooled]] = run.seen[is_pooled]
        hardened = self.current
        entry = self._entry(number, trainer, data, attack_flops)
        entry["accuracy"] = accuracy(hardened, self._task.split("validation"))
        run.rounds.append(entry)
        run.epoch, run.seen = None, None
        figures = ("accuracy", "num_attacked", "attack_successes", "flops_total", "train_loss")
        self.log.write(run.number, {"round": number} | {name: entry[name] for name in figures})
        save_model(rounds.round_folder(self._folder, number) / "model", hardened)
        self._save(self._state)

    def _begin(self, number: int) -> None:
        """Attacks, and enters what was found into the pool."""
        run, config = self.run, self._config
        if config.attacks:
            with self.forecast.doing("attack", self._attack_units(number)):
                self._found = rounds.attack_round(
                    self._folder,
                    number,
                    self.current,
                    self._clean,
                    self._task.chunk_kinds,
                    config.attacks_of(number),
                    config.shares,
                    seed=self._seed,
                    search=config.search,
                    companion=self._companion,
                )
            new = rounds.into_pool(self._found)
            self._pool += new
            run.losses = np.concatenate([run.losses, np.full(len(new), np.inf)])
            run.records[str(number)] = rounds.fingerprint_records(
                self._folder, number, list(config.attacks)
            )
        run.round, run.epoch, run.step, run.seen = number, 0, 0, None

    def _training_set(self, number: int) -> TrainingSet:
        config, clean = self._config, self._clean
        rng = round_rng(self._seed, number)
        sample = sample_round(config.pool, len(clean), self.run.losses, rng)
        if config.embedding is None:
            return rounds.from_pool(self._victim, clean, self._clean_rows, self._pool, sample)
        return rounds.with_free_embeddings(
            self._victim,
            clean,
            self._clean_rows,
            self._task.chunk_kinds,
            config.embedding,
            sample,
            config.pool.max_adversarial_share,
            seed=self._seed,
            number=number,
        )

    def _flops_of_attack(self, data: TrainingSet, trainer: Trainer) -> Flops:
        """FLOPs of the attacks of a round."""
        attack, epochs = self._config.embedding, self._config.train.epochs
        if attack is None:
            return Flops(
                sum(r.flops_algorithmic for found in self._found.values() for r in found),
                sum(r.flops_executed for found in self._found.values() for r in found),
            )
        rows = data.data.rows
        tokens = sum(
            len(row) for row, is_free in zip(rows, data.is_adversarial, strict=True) if is_free
        )
        passes = epochs * attack.num_steps
        executed = trainer.executed_flops(attack) - trainer.executed_flops()
        return Flops(
            passes * flops.training_flops(self._victim.num_params, tokens), epochs * executed
        )

    def _epochs(self, number: int) -> range:
        """Numbers of a round's epochs; batches of different rounds are shuffled differently."""
        epochs = self._config.train.epochs
        return range(number * epochs, (number + 1) * epochs)

    def _train(self, trainer: Trainer, number: int, attack_flops: Flops) -> None:
        """Trains on a round's set from where it was left; the losses of the last pass stay."""
        run, config = self.run, self._config.train
        per_epoch, epochs = trainer.steps_per_epoch, config.epochs
        learning_rate = learning_rate_schedule(config.optimizer, per_epoch * epochs)
        assert run.epoch is not None
        first_epoch = run.epoch
        done = first_epoch * per_epoch + run.step
        with Progress(per_epoch * epochs, f"round {number} train", done=done) as progress:

            def rate(base: int, index: int) -> float:
                return learning_rate(base + index)

            def on_step(epoch: int, seen: Stepped) -> None:
                trained = trainer.algorithmic_flops(self._epochs(number)[:epoch])
                spent = self.flops_spent + attack_flops.algorithmic + trained
                figures = seen.figures(spent)
                self.log.write(run.updates + seen.number, {"round": number} | figures)
                progress.advance(note=f"loss {seen.loss:.3f}")

            def save(count: int, state: TrainState, losses: np.ndarray) -> None:
                run.step, run.seen = count, losses
                self._save(state)

            for epoch in range(first_epoch, epochs):
                self._state, run.seen = trainer.run_epoch(
                    self._step,
                    self._state,
                    self._epochs(number)[epoch],
                    functools.partial(on_step, epoch),
                    functools.partial(rate, epoch * per_epoch),
                    save,
                    first=run.step,
                    losses=run.seen if run.step else None,
                    save_every=self._config.checkpoint_every,
                )
                run.updates += per_epoch
                run.epoch, run.step = epoch + 1, 0
                if epoch + 1 < epochs:
                    self._save(self._state)
                    if anywhere(interrupts.is_preempted())[0]:
                        interrupts.stop()

    def _save(self, state: TrainState) -> None:
        self.checkpoints.save(self.run.number, state, self.run.to_json())

    def _entry(
        self, number: int, trainer: Trainer, data: TrainingSet, attack_flops: Flops
    ) -> dict[str, Any]:
        """What a round was, its FLOPs, and the algorithmic ones of all rounds up to it."""
        run, config = self.run, self._config
        assert run.seen is not None
        attacks = config.attacks_of(number)
        found = {
            name: {
                "attack_iterations": attacks[name].num_iterations,
                "num_attacked": sum(record.attacked_text is not None for record in records),
                "attack_successes": sum(record.success for record in records),
                "num_failures": sum(record.failure is not None for record in records),
            }
            for name, records in self._found.items()
        }
        if config.embedding is not None:
            moved = {"attack_iterations": config.embedding.num_steps}
            found = {config.embedding.name: moved}
        flops_train = trainer.algorithmic_flops(self._epochs(number))
        flops_total = self.flops_spent + attack_flops.algorithmic + flops_train

        def total(name: str) -> int:
            return sum(one.get(name, 0) for one in found.values())

        return {
            "round": number,
            "attacks": found,
            "attack_iterations": max(one["attack_iterations"] for one in found.values()),
            "attack_successes": total("attack_successes"),
            "num_attacked": total("num_attacked"),
            "num_failures": total("num_failures"),
            "num_adversarial": int(data.is_adversarial.sum()),
            "num_clean": int((~data.is_adversarial).sum()),
            "pool_size": len(self._pool),
            "train_loss": float(run.seen.mean()),
            "flops_attack": attack_flops.algorithmic,
            "flops_attack_executed": attack_flops.executed,
            "flops_train": flops_train,
            "flops_train_executed": config.train.epochs * trainer.executed_flops(),
            "flops_total": flops_total,
        }
