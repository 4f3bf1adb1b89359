"""Published result files as a `Study`, so that everything said of our records is said of them.

The files are those that the authors of Howe et al. 2024 (arXiv 2407.18213) published with their
code, named by content (see `published_names`). What is left out, repaired or not told by a file is
listed in the notes of the study.
"""

import dataclasses
import math
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from robustjax.analysis.load import Study
from robustjax.analysis.published_costs import TrainingCosts, training_costs
from robustjax.analysis.published_names import ENDINGS, FileName, parse_name
from robustjax.analysis.published_rows import (
    EVALUATION_COLUMNS,
    TRAINING_COLUMNS,
    EvaluationRow,
    TrainingRow,
    evaluation_rows,
    read_rows,
    training_rows,
)
from robustjax.analysis.stages import AttackRun, Victim, attack_label
from robustjax.errors import UserError
from robustjax.evaluation.metrics import wilson_interval
from robustjax.evaluation.pretraining import POINT_OF_NUM_PARAMS, Source, pretrain_flops
from robustjax.evaluation.records import UNDEFENDED

OFFERED = {"finetuned": 200, "advtrained": 500, "strongreject": 313}
"""Examples offered where a file does not tell; BEAST was offered `OFFERED_BEAST` everywhere."""

OFFERED_BEAST = 500

UNCOUNTED_FLOPS = {"imdb": 1.6, "spam": 1.78, "password_match": 1.75}
"""GCG on the undefended pythia-12b ran on two devices, of which one was counted: measured factors
by task (Howe et al. 2024, arXiv 2407.18213), 1 elsewhere."""

_SHORT_ATTACK = {"gcg": 10, "beast": 10, "random_token": 1200}
_SHORTER_TASKS = ("helpful", "harmless", "word_length")
_SHORTER_ATTACK = {"gcg": 2, "beast": 2, "random_token": 1200}
_STRONGREJECT_ITERATIONS = 128


@dataclasses.dataclass(frozen=True)
class _Evaluation:
    """A victim under an attack: its rows by iteration, and the file they are from."""

    name: FileName
    source: str
    rows: Mapping[int, EvaluationRow]


def load_published(folder: str | os.PathLike[str], pretraining: Source = "corrected") -> Study:
    """Read all result files of a folder, those ending in `.csv` or `.csv.gz`.

    Args:
        folder: searched without its subfolders.
        pretraining: whose figures are taken for the pretraining of published models.

    Raises:
        UserError: there is no such file, one has an unknown name, lacks a column or has a value
            outside its range, or no training belongs to an evaluated victim.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise UserError(f"--published={folder} is not a folder; give one with CSV files")
    files = [file for file in sorted(folder.iterdir()) if file.name.endswith(ENDINGS)]
    if not files:
        raise UserError(f"--published={folder} holds no file that ends in .csv or .csv.gz")
    names = {file: parse_name(file) for file in files}
    notes: list[str] = []
    costs = _read_costs(names, notes)
    runs: dict[tuple[Any, ...], AttackRun] = {}
    for file, name in names.items():
        if name.role == "training":
            continue
        experiment = (name.family, name.task, name.trained_on)
        for evaluation in _read_evaluations(file, name, notes):
            run = _attack_run(evaluation, costs.get(experiment), pretraining)
            if run.key in runs:
                raise UserError(
                    f"the same victim ({run.victim.point}, seed {run.victim.seed}, round "
                    f"{run.round}) is in {runs[run.key].source} and {run.source}; leave one out"
                )
            runs[run.key] = run
    notes += _absences(runs.values())
    return Study(
        finetunes=(),
        trainings=(),
        attacks=tuple(sorted(runs.values(), key=lambda run: run.key)),
        incomplete=(),
        provenance={},
        notes=tuple(notes),
    )


def _point(family: str, num_params: int) -> str:
    """The scaling point, by its weights and never by its rank in a file, which may lack sizes."""
    return POINT_OF_NUM_PARAMS.get(num_params, f"{family}-{num_params}")


def _read_costs(
    names: Mapping[Path, FileName], notes: list[str]
) -> dict[tuple[str, str, str], TrainingCosts]:
    """Training costs by family, task and training attack."""
    found: dict[tuple[str, str, str], dict[str, list[TrainingRow]]] = {}
    for file, name in names.items():
        if name.role == "training":
            rows = read_rows(file, TRAINING_COLUMNS)
            _note_dropped(file, rows.duplicates, rows.without_seed, notes)
            parts = found.setdefault((name.family, name.task, name.trained_on), {})
            parts.setdefault(name.part, []).extend(training_rows(rows))
    costs = {experiment: training_costs(parts) for experiment, parts in found.items()}
    for (family, task, trained_on), cost in costs.items():
        if cost.falls:
            listed = ", ".join(f"{key} round {round_}" for key, _, round_ in cost.falls)
            notes.append(
                f"training on {trained_on} ({family}, {task}): the FLOPs counter is lower than a "
                f"round before, their cost counts as unknown: {listed}"
            )
    return costs


def _read_evaluations(file: Path, name: FileName, notes: list[str]) -> list[_Evaluation]:
    rows = read_rows(file, EVALUATION_COLUMNS)
    _note_dropped(file, rows.duplicates, rows.without_seed, notes)
    victims: dict[tuple[int, int, int, int], dict[int, EvaluationRow]] = {}
    replaced = 0
    for row in evaluation_rows(rows):
        key = (row.num_params, row.seed, row.round, row.attack_seed)
        curve = victims.setdefault(key, {})
        replaced += row.iteration in curve
        curve[row.iteration] = row
    if replaced:
        notes.append(f"{file.name}: {replaced} rows repeat an iteration; the last of each is used")
    first = max((min(filter(None, curve), default=1) for curve in victims.values()), default=1)
    if name.role == "advtrained" and first > 1:
        notes.append(
            f"{file.name}: measured from iteration {first} on; crossings before it are "
            "straight lines from 0, so nothing is concluded about offence against defence"
        )
    if name.asr_only:
        notes.append(
            f"{file.name}: success rates only. Attack compute is counted in iterations, examples "
            f"offered are taken as {_offered(name)}, attacked ones as the largest number that "
            "makes every rate a whole count"
        )
    return [_Evaluation(name, file.name, dict(sorted(c.items()))) for c in victims.values()]


def _note_dropped(file: Path, duplicates: int, without_seed: int, notes: list[str]) -> None:
    for count, what in (
        (duplicates, "repeat another row in every column"),
        (without_seed, "have no seed"),
    ):
        if count:
            notes.append(f"{file.name}: {count} rows {what}; left out")


def _attack_run(
    evaluation: _Evaluation, costs: TrainingCosts | None, pretraining: Source
) -> AttackRun:
    name, first = evaluation.name, next(iter(evaluation.rows.values()))
    curve = {iteration: row.asr for iteration, row in evaluation.rows.items() if iteration > 0}
    if not curve:
        raise UserError(f"{evaluation.source}, line {first.line}: a victim without an iteration")
    point = _point(name.family, first.num_params)
    own = mean = 0.0
    if name.role == "advtrained":
        own = mean = math.nan
        if costs is not None:
            mean = costs.mean.get((first.num_params, first.round), math.nan)
            own = costs.own(name.part, first.model_key, first.num_params, first.seed, first.round)
            if math.isnan(mean) or not costs.knows(first.model_key, first.seed, first.round):
                raise UserError(
                    f"{evaluation.source}, line {first.line}: no training row of "
                    f"{first.model_key or point}, seed {first.seed}, round {first.round}; add its "
                    "training file or take the rows out"
                )
    headline = _headline_iteration(name, curve)
    flops = first.flops_per_iteration
    if name.role == "finetuned" and name.attack == "gcg" and point == "pythia-12b":
        flops *= UNCOUNTED_FLOPS.get(name.task, 1.0)
    return AttackRun(
        source=evaluation.source,
        victim=Victim(name.family, name.task, first.num_params, point, first.seed),
        attack=attack_label(name.attack, (), name.position),
        position=name.position,
        attack_seed=first.attack_seed,
        trained_on=name.trained_on,
        round=first.round,
        defence_flops=own,
        mean_defence_flops=mean,
        pretrain_flops=float(pretrain_flops(point, pretraining) or math.nan),
        metrics=_metrics(evaluation, first, curve, headline),
        curve=curve,
        headline_iteration=headline,
        flops_per_iteration=flops,
        detection={},
    )


def _headline_iteration(name: FileName, curve: Mapping[int, float]) -> int:
    """The iteration that Howe et al. 2024 report: few of undefended victims, else the last."""
    wanted = max(curve)
    if name.role == "finetuned":
        short = _SHORTER_ATTACK if name.task in _SHORTER_TASKS else _SHORT_ATTACK
        wanted = short[name.attack]
    elif name.role == "strongreject":
        wanted = _STRONGREJECT_ITERATIONS
    return wanted if wanted in curve else max(curve)


def _metrics(
    evaluation: _Evaluation, row: EvaluationRow, curve: Mapping[int, float], headline: int
) -> dict[str, Any]:
    """What `summarise` says of our records, as far as a file tells it."""
    offered = _offered(evaluation.name) if math.isnan(row.num_offered) else int(row.num_offered)
    if math.isnan(row.num_correct_before):
        found = _common_denominator(curve.values(), offered)
        if found is None:
            raise UserError(
                f"{evaluation.source}, line {row.line}: the rates of this victim are shares of no "
                f"number of examples up to {offered}; add the counts, or leave the victim out"
            )
        attacked = found
    else:
        attacked = int(row.num_correct_before)
    broken = round(curve[headline] * attacked)
    interval = wilson_interval(broken, attacked)
    return {
        "variant": "",
        "num_examples": offered,
        "num_correct_before": attacked,
        "num_attacked": attacked,
        "num_failures": 0,
        "num_retokenised": 0,
        "num_broken": broken,
        "accuracy_before": attacked / offered,
        "accuracy_after": row.accuracy_after,
        "attack_success_rate": curve[headline],
        "asr_interval": interval,
        "asr_first_success_at": {},
        "iterations": max(curve),
        "flops_algorithmic": row.flops_per_iteration * max(curve),
        "flops_executed": math.nan,
    }


def _offered(name: FileName) -> int:
    return OFFERED_BEAST if name.attack == "beast" else OFFERED[name.role]


def _common_denominator(values: Iterable[float], largest: int) -> int | None:
    """The largest `n` up to a bound of which every rate is a whole multiple of `1 / n`, if any."""
    distinct = set(values)
    for n in range(largest, 0, -1):
        if all(abs(value * n - round(value * n)) < 1e-6 for value in distinct):
            return n
    return None


def _absences(runs: Iterable[AttackRun]) -> list[str]:
    """Sizes and defences that an experiment has no seed, no cost or no pretraining figure of."""
    runs = list(runs)
    notes = []
    unknown = sorted({run.victim.point for run in runs if math.isnan(run.pretrain_flops)})
    if unknown:
        notes.append(f"pretraining compute of {', '.join(unknown)} is not known")
    trained = [run for run in runs if run.trained_on != UNDEFENDED]
    costless = sorted({run.source for run in trained if math.isnan(run.mean_defence_flops)})
    notes += [
        f"{source}: no training file beside it, defence compute unknown" for source in costless
    ]
    unjoined = [
        run
        for run in trained
        if math.isnan(run.defence_flops) and not math.isnan(run.mean_defence_flops)
    ]
    for source in sorted({run.source for run in unjoined}):
        count = sum(run.source == source for run in unjoined)
        notes.append(
            f"{source}: what the training of {count} victims had cost is unknown; the fits of "
            "offence against defence that take each victim's own cost are made without them"
        )
    seeds: dict[tuple[str, str], set[int]] = {}
    for run in runs:
        seeds.setdefault((run.source, run.victim.point), set()).add(run.victim.seed)
    for source in sorted({source for source, _ in seeds}):
        counts = {point: len(found) for (file, point), found in seeds.items() if file == source}
        if len(set(counts.values())) > 1:
            listed = ", ".join(f"{point} {count}" for point, count in counts.items())
            notes.append(f"{source}: sizes have unequal numbers of seeds: {listed}")
    return notes
