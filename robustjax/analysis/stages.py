"""Read one finished stage folder into a typed record of what it measured.

Attack metrics are recomputed from the per-example records; the numbers in an attack's
`summary.json` are only compared with them, and a difference is an error that names the file.
"""

import dataclasses
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from robustjax.errors import UserError
from robustjax.evaluation import records as attack_records
from robustjax.evaluation.detection import SCORES_FILE, detection_metrics, read_scores
from robustjax.evaluation.pretraining import Source, pretrain_flops
from robustjax.evaluation.records import UNDEFENDED

SUMMARY_FILE = "summary.json"
RECORDS_FILE = "attack_records.jsonl"


@dataclasses.dataclass(frozen=True, order=True)
class Victim:
    """The model under attack: a scaling point fine-tuned on a task with a seed."""

    model_family: str
    task: str
    num_params: int
    point: str
    seed: int

    @property
    def without_seed(self) -> tuple[str, str, int, str]:
        """What it shares with the victims of other seeds."""
        return (self.model_family, self.task, self.num_params, self.point)


@dataclasses.dataclass(frozen=True)
class Finetune:
    """A clean fine-tuning and its accuracy on `num_validation` clean examples."""

    source: str
    victim: Victim
    validation_accuracy: float
    num_validation: int


@dataclasses.dataclass(frozen=True)
class Round:
    """One round of adversarial training; `flops_total` is cumulative over rounds, algorithmic."""

    round: int
    attack_iterations: int
    num_adversarial: int
    num_clean: int
    pool_size: int
    flops_attack: int
    flops_train: int
    flops_total: int
    accuracy: float
    train_loss: float


@dataclasses.dataclass(frozen=True)
class AdversarialTraining:
    """An adversarial training of a victim with the attack `trained_on`."""

    source: str
    victim: Victim
    trained_on: str
    rounds: tuple[Round, ...]


@dataclasses.dataclass(frozen=True)
class AttackRun:
    """One attack on one victim after `round` rounds of training on `trained_on`.

    Attributes:
        source: folder the run was read from, relative to the folder given.
        victim: who was attacked.
        attack: attack label: its name, `+option` for each option that changes its algorithm, and
            `@position` where the slot is no suffix.
        position: place of its slot; 1 is a suffix, 0 a prefix.
        attack_seed: seed of the attack.
        trained_on: training attack, or `UNDEFENDED` (then `round` is 0).
        round: adversarial training rounds behind the victim.
        defence_flops: cumulative algorithmic FLOPs of its adversarial training; NaN if unknown.
        mean_defence_flops: the mean of that over all trainings of its size on the same attack,
            those that nothing attacked included, as Howe et al. 2024 (arXiv 2407.18213) draw it.
        pretrain_flops: FLOPs of its pretraining; NaN if unknown.
        metrics: `summarise` of the records; of published runs what their files tell.
        curve: success rate after each measured iteration, which need not be all; what it is called
            in `metrics` stands in `rate_names.at`.
        headline_iteration: the iteration whose rate stands for the run.
        flops_per_iteration: algorithmic FLOPs an iteration, over all attacked examples; NaN if none
            ran or none are known.
        detection: what a perplexity filter makes of it, `detection_metrics` of its scores; empty
            without a filter.
    """

    source: str
    victim: Victim
    attack: str
    position: float
    attack_seed: int
    trained_on: str
    round: int
    defence_flops: float
    mean_defence_flops: float
    pretrain_flops: float
    metrics: Mapping[str, Any]
    curve: Mapping[int, float]
    headline_iteration: int
    flops_per_iteration: float
    detection: Mapping[str, Any]

    @property
    def rate_names(self) -> attack_records.RateNames:
        """What its rates are called in `metrics`."""
        return attack_records.rate_names(self.metrics["variant"])

    @property
    def num_examples(self) -> int:
        """Examples offered to the attack."""
        return int(self.metrics["num_examples"])

    @property
    def num_attacked(self) -> int:
        """Examples attacked: right before, without failures."""
        return int(self.metrics["num_attacked"])

    @property
    def flops_per_example(self) -> float:
        """Algorithmic FLOPs an attacked example and iteration; NaN as `flops_per_iteration`."""
        return self.flops_per_iteration / self.num_attacked if self.num_attacked else math.nan

    @property
    def is_cut_short(self) -> bool:
        """Whether an example was left alone once it was broken.

        Then nothing shows what more iterations would have made of it, and not all cost the same.
        """
        return "stop_at_success" in attack_records.options(self.metrics["variant"])

    @property
    def key(self) -> tuple[Any, ...]:
        """What was measured; two runs with the same key are the same measurement."""
        return (self.victim, self.attack, self.trained_on, self.round, self.attack_seed)


def attack_label(name: str, options: Sequence[str], position: float) -> str:
    """What an attack is called here: `gcg`, `gcg+momentum`, `gcg@0.9`."""
    place = "" if position == 1.0 else f"@{position:g}"
    return "".join((name, *(f"+{option}" for option in options), place))


def read_finetune(folder: Path, source: str) -> Finetune:
    """Read a clean fine-tuning.

    Raises:
        UserError: its summary is damaged.
    """
    summary = _Summary(folder / SUMMARY_FILE)
    return Finetune(
        source=source,
        victim=summary.victim(),
        validation_accuracy=summary.proportion("validation_accuracy"),
        num_validation=summary.integer("num_validation"),
    )


def read_training(folder: Path, source: str) -> AdversarialTraining:
    """Read an adversarial training.

    Raises:
        UserError: its summary is damaged.
    """
    summary = _Summary(folder / SUMMARY_FILE)
    integers = [field.name for field in dataclasses.fields(Round) if field.type is int]
    rounds = []
    for index in range(len(summary.items("rounds"))):
        entry = summary.inside("rounds", index)
        rounds.append(
            Round(
                **{name: entry.integer(name) for name in integers},
                accuracy=entry.proportion("accuracy"),
                train_loss=entry.number("train_loss"),
            )
        )
    return AdversarialTraining(
        source=source,
        victim=summary.victim(),
        trained_on=summary.string("trained_on"),
        rounds=tuple(sorted(rounds, key=lambda entry: entry.round)),
    )


def read_attack(folder: Path, source: str, pretraining: Source = "corrected") -> AttackRun:
    """Read an attack: its identity from the summary, its metrics from the records.

    What the pretraining of a published model cost is looked up by its name, whatever the summary
    says, so that a table put right later holds for older runs too.

    Raises:
        UserError: summary or records are damaged, or they contradict each other.
    """
    summary = _Summary(folder / SUMMARY_FILE)
    records = attack_records.read_records(folder / RECORDS_FILE)
    metrics = attack_records.summarise(records)
    summary.check_against(metrics)
    seeds = sorted({record.seed for record in records})
    if len(seeds) > 1:
        raise UserError(f"{folder / RECORDS_FILE}: records of several attack seeds {seeds}")

    position = summary.number("position", default=None)
    suffix = math.isnan(position) or position == 1.0
    trained_on, training_round = summary.string("trained_on"), summary.integer("round")
    if (trained_on == UNDEFENDED) != (training_round == 0):
        raise UserError(
            f"{summary.file}: trained_on={trained_on!r} does not go with round={training_round}; "
            f"round 0 is the victim trained on {UNDEFENDED!r}"
        )
    victim = summary.victim()
    published = pretrain_flops(victim.point, pretraining)
    flops = sum(record.flops_algorithmic for record in records if record.attacked)
    iterations = metrics["iterations"]
    names = attack_records.rate_names(metrics["variant"])
    defence_flops = float(summary.integer("defence_flops"))
    return AttackRun(
        source=source,
        victim=victim,
        attack=attack_label(
            summary.string("attack"),
            attack_records.options(metrics["variant"]),
            1.0 if suffix else position,
        ),
        position=1.0 if suffix else position,
        attack_seed=seeds[0] if seeds else 0,
        trained_on=trained_on,
        round=training_round,
        defence_flops=defence_flops,
        mean_defence_flops=defence_flops,
        pretrain_flops=float(published or summary.number("pretrain_flops", default=None)),
        metrics=metrics,
        curve={int(k): rate for k, rate in metrics[names.at].items() if int(k) > 0},
        headline_iteration=iterations,
        flops_per_iteration=(
            flops / iterations if iterations and metrics["num_attacked"] else math.nan
        ),
        detection=_detection(folder, summary, records),
    )


def _detection(
    folder: Path, summary: "_Summary", records: Sequence[attack_records.AttackRecord]
) -> dict[str, Any]:
    """Recomputed from the scores of a filter; empty if there was none."""
    if not (folder / SCORES_FILE).exists():
        return {}
    stated = summary.object("perplexity_filter")
    scores = read_scores(folder / SCORES_FILE)
    if missing := {record.example_id for record in records} - scores.keys():
        raise UserError(f"{folder / SCORES_FILE}: example_id {min(missing)} has no score")
    found = detection_metrics(records, scores, stated.number("threshold"))
    stated.check_against(found)
    return found


class _Summary:
    """Typed access to a `summary.json` whose errors name the file and the field."""

    def __init__(self, file: Path, values: Any = None, prefix: str = "") -> None:
        self.file, self._prefix = file, prefix
        if values is None:
            try:
                values = json.loads(file.read_bytes())
            except (OSError, ValueError) as error:
                raise UserError(f"{file}: cannot be read: {error}") from error
        if not isinstance(values, dict):
            raise UserError(f"{file}: {prefix or 'the summary'} must be an object")
        self._values = values

    def victim(self) -> Victim:
        return Victim(
            model_family=self.string("model_family"),
            task=self.string("task"),
            num_params=self.integer("num_params"),
            point=self.string("point"),
            seed=self.integer("victim_seed"),
        )

    def integer(self, name: str) -> int:
        return self._typed(name, (int,), "an integer")

    def string(self, name: str) -> str:
        return self._typed(name, (str,), "a string")

    def items(self, name: str) -> list[Any]:
        return self._typed(name, (list,), "a list")

    def number(self, name: str, **default: None) -> float:
        """A number; null is NaN. With `default=None` the field may be absent, which is NaN too."""
        if "default" in default and name not in self._values:
            return math.nan
        value = self._typed(name, (int, float, type(None)), "a number or null")
        return math.nan if value is None else float(value)

    def proportion(self, name: str) -> float:
        """A number in 0..1; null is NaN."""
        value = self.number(name)
        if value < 0 or value > 1:
            raise UserError(f"{self.file}: {self._prefix}{name} must lie in 0..1, not {value}")
        return value

    def object(self, name: str) -> "_Summary":
        return _Summary(
            self.file, self._typed(name, (dict,), "an object"), f"{self._prefix}{name}."
        )

    def inside(self, name: str, index: int) -> "_Summary":
        return _Summary(self.file, self.items(name)[index], f"{self._prefix}{name}[{index}].")

    def check_against(self, metrics: Mapping[str, Any]) -> None:
        for name in sorted(metrics.keys() & self._values.keys()):
            recomputed = json.loads(attack_records.canonical_json(metrics[name]))
            if not _close(self._values[name], recomputed):
                stated = json.dumps(self._values[name])[:80]
                raise UserError(
                    f"{self.file}: {self._prefix}{name} is {stated}, but the records beside it "
                    f"give {json.dumps(recomputed)[:80]}"
                )

    def _typed(self, name: str, kinds: Sequence[type], words: str) -> Any:
        if name not in self._values:
            raise UserError(f"{self.file}: the field {self._prefix}{name} is missing")
        value = self._values[name]
        if type(value) not in kinds:  # not isinstance: true is no integer here
            raise UserError(
                f"{self.file}: {self._prefix}{name} must be {words}, not {json.dumps(value)[:60]}"
            )
        return value


def _close(stated: Any, recomputed: Any) -> bool:
    if isinstance(recomputed, dict):
        return (
            isinstance(stated, dict)
            and stated.keys() == recomputed.keys()
            and all(_close(stated[key], recomputed[key]) for key in recomputed)
        )
    if isinstance(recomputed, list):
        return (
            isinstance(stated, list)
            and len(stated) == len(recomputed)
            and all(map(_close, stated, recomputed))
        )
    if isinstance(recomputed, int | float) and isinstance(stated, int | float):
        # Rates may have been summed in another order; counts must agree to the last digit.
        tolerance = 1e-9 if isinstance(recomputed, float) else 0.0
        return abs(stated - recomputed) <= tolerance
    return stated == recomputed
