"""The numbers behind every figure, as tables: pure functions from stages to rows.

A row is a dict with the same keys throughout its table. Rates carry their seeds, denominators and
interval (`rates.Rate`); proportions are fractions, FLOPs are algorithmic. An attack is named by its
label, options included, so runs with different options never share a row; what its rate is called
in its summary stands in the column `metric`.
"""

import dataclasses
import math
import statistics
from collections.abc import Iterable, Sequence

import numpy as np

from robustjax.analysis import rates
from robustjax.analysis.groups import Group, Row
from robustjax.analysis.labels import base_name
from robustjax.analysis.stages import AttackRun, Victim
from robustjax.evaluation.records import UNDEFENDED

MOST_ITERATIONS = 130
"""Points of a curve in a figure and its table, as Howe et al. 2024 (arXiv 2407.18213) thin it."""


def clean_accuracy(group: Group) -> list[Row]:
    """Clean accuracy of undefended victims and after the last round of each defence.

    Measured on the validation examples where fine-tuning and training say so, otherwise on the
    examples offered to an attack; the column `source` tells which.
    """
    num_validation = {stage.victim: stage.num_validation for stage in group.finetunes}
    measured: dict[tuple[str, Victim], tuple[rates.Count, int, str]] = {}
    for stage in group.finetunes:
        count = _accuracy_count(stage.validation_accuracy, stage.num_validation)
        measured[UNDEFENDED, stage.victim] = (count, 0, "validation")
    for training in group.trainings:
        if training.rounds and training.victim in num_validation:
            last = training.rounds[-1]
            count = _accuracy_count(last.accuracy, num_validation[training.victim])
            measured[training.trained_on, training.victim] = (count, last.round, "validation")
    for attack in group.attack_names:
        for trained_on in (UNDEFENDED, *group.defences):
            for run in group.last_runs(attack, trained_on):
                offered = run.metrics["num_examples"]
                count = rates.Count(run.metrics["num_correct_before"], offered, offered)
                measured.setdefault((trained_on, run.victim), (count, run.round, "attack records"))

    rows: list[Row] = []
    for trained_on in (UNDEFENDED, *group.defences):
        for point in group.sizes:
            found = [
                value
                for (condition, victim), value in sorted(measured.items())
                if condition == trained_on and victim.point == point
            ]
            if found:
                counts, rounds, sources = zip(*found, strict=True)
                rows.append(
                    {
                        **group.identity(point),
                        "trained_on": trained_on,
                        "round": span(rounds),
                        "source": " and ".join(sorted(set(sources))),
                        **dataclasses.asdict(rates.combine(counts)),
                    }
                )
    return rows


def asr_against_size(group: Group) -> list[Row]:
    """ASR of the final text: each attack, undefended and after the last round of each defence."""
    return [
        row
        for attack in group.attack_names
        for trained_on in (UNDEFENDED, *group.defences)
        for row in _final_rows(group, group.last_runs(attack, trained_on), attack, trained_on)
    ]


def asr_against_round(group: Group) -> list[Row]:
    """ASR of the final text after each evaluated round; round 0 is the undefended victim."""
    return [
        row
        for attack, trained_on, same_round in _evaluated_rounds(group)
        for row in _final_rows(group, same_round, attack, trained_on)
    ]


def asr_against_defence_compute(group: Group) -> list[Row]:
    """The same rows without round 0, whose compute of 0 has no place on a logarithmic axis."""
    return [row for row in asr_against_round(group) if row["defence_flops"] > 0]


def accuracy_against_round(group: Group) -> list[Row]:
    """Accuracy on clean texts and under attack after each evaluated round.

    Both are shares of the examples offered. Under attack it is the median over seeds and its range.
    """
    rows: list[Row] = []
    for attack, trained_on, same_round in _evaluated_rounds(group):
        for point, runs in by_point(group, same_round):
            clean = [
                _accuracy_count(run.metrics["accuracy_before"], run.num_examples) for run in runs
            ]
            after = [run.metrics[run.rate_names.accuracy] for run in runs]
            rows.append(
                {
                    **group.identity(point),
                    "attack": attack,
                    "trained_on": trained_on,
                    "round": runs[0].round,
                    "defence_flops": mean(run.mean_defence_flops for run in runs),
                    **dataclasses.asdict(rates.combine(clean)),
                    "under_attack": rates.median(after),
                    "under_attack_low": min(after),
                    "under_attack_high": max(after),
                }
            )
    return rows


def asr_against_attack_compute(group: Group, attack: str) -> list[Row]:
    """ASR after each iteration against cumulative attack compute, after the last round."""
    rows: list[Row] = []
    for trained_on in (UNDEFENDED, *group.defences):
        for _, runs in by_point(group, group.last_runs(attack, trained_on)):
            rows += attack_curve(group, runs)
    return rows


def attack_curve(group: Group, runs: Sequence[AttackRun]) -> list[Row]:
    """The rows of one attack, defence and size: a row an iteration, at most `MOST_ITERATIONS`.

    `attack_flops` are those of an attacked example; the fraction of pretraining is, as in Howe et
    al. 2024 (arXiv 2407.18213), that of the whole attacked set. Attacks that leave broken examples
    alone have no rows: their iterations do not cost the same.
    """
    runs = [run for run in runs if not run.is_cut_short]
    rows: list[Row] = []
    for iteration in _thinned({iteration for run in runs for iteration in run.curve}):
        reached = [run for run in runs if iteration in run.curve]
        whole = iteration * mean(run.flops_per_iteration for run in reached)
        rows.append(
            {
                **group.identity(reached[0].victim.point),
                "attack": reached[0].attack,
                "trained_on": reached[0].trained_on,
                "round": span([run.round for run in reached]),
                "iteration": iteration,
                "metric": reached[0].rate_names.at,
                "attack_flops": iteration * mean(run.flops_per_example for run in reached),
                "attack_fraction_of_pretraining": _ratio(
                    whole, mean(run.pretrain_flops for run in reached)
                ),
                **dataclasses.asdict(rates.combine([asr_count(run, iteration) for run in reached])),
            }
        )
    return rows


def _thinned(iterations: set[int]) -> list[int]:
    """Those that equal one of `MOST_ITERATIONS` evenly spaced quantiles; all if they are few."""
    ordered = sorted(iterations)
    if len(ordered) <= MOST_ITERATIONS:
        return ordered
    shares = np.linspace(0, 1, MOST_ITERATIONS)
    return [int(k) for k in np.unique(np.quantile(ordered, shares, method="nearest"))]


def transfer_across_attacks(group: Group) -> list[Row]:
    """ASR of an attack on victims trained on it, on another attack, and on nothing.

    GCG attacks only, where there are any: does a cheap defence hold against a strong attack?
    """
    strong = [name for name in group.attack_names if base_name(name) == "gcg"] or group.attack_names
    rows = [row for row in asr_against_size(group) if row["attack"] in strong]
    crossed = {
        row["attack"] for row in rows if row["trained_on"] not in (UNDEFENDED, row["attack"])
    }
    return [row for row in rows if row["attack"] in crossed]


def transfer_across_iterations(group: Group) -> list[Row]:
    """ASR at the iterations trained against and at the last one evaluated, after the last round.

    Only victims evaluated for more iterations than any of their training rounds used appear.
    """
    trained = {
        (stage.victim, stage.trained_on): max(entry.attack_iterations for entry in stage.rounds)
        for stage in group.trainings
        if stage.rounds
    }
    rows: list[Row] = []
    for attack in group.attack_names:
        runs = group.last_runs(attack, base_name(attack))
        for point, same_size in by_point(group, runs):
            pairs = [
                (run, trained[run.victim, run.trained_on])
                for run in same_size
                if (run.victim, run.trained_on) in trained
            ]
            pairs = [(run, few) for run, few in pairs if few < run.headline_iteration]
            many = [(run, run.headline_iteration) for run, _ in pairs]
            for series, chosen in (("trained", pairs), ("last", many)):
                if chosen:
                    counts = [asr_count(run, iteration) for run, iteration in chosen]
                    rows.append(
                        {
                            **group.identity(point),
                            "attack": attack,
                            "trained_on": base_name(attack),
                            "round": span([run.round for run, _ in chosen]),
                            "series": series,
                            "iteration": span([iteration for _, iteration in chosen]),
                            "metric": chosen[0][0].rate_names.at,
                            **dataclasses.asdict(rates.combine(counts)),
                        }
                    )
    return rows


def headline(group: Group) -> list[Row]:
    """One row a size: clean accuracy and ASR before and after the defence against the same attack.

    The attack is GCG where it was run, the defence training on that attack where there is one.
    Before is round 0 of the same experiment where that was measured, with as many iterations.
    Intervals are Wilson's over all seeds pooled.
    """
    attack = next(iter(group.attack_names), None)
    defence = next(iter(group.defences), None)
    if attack is not None and base_name(attack) in group.defences:
        defence = base_name(attack)
    runs = [run for run in group.attacks if run.attack == attack]
    accuracy = {(row["point"], row["trained_on"]): row for row in clean_accuracy(group)}
    asr = {
        (row["point"], row["trained_on"]): row
        for row in asr_against_size(group)
        if row["attack"] == attack
    }
    if attack is not None and defence is not None:
        zero = [run for run in group.runs(attack, defence) if run.round == 0]
        for row in _final_rows(group, zero, attack, UNDEFENDED):
            asr[row["point"], UNDEFENDED] = row
    rows: list[Row] = []
    for point in group.sizes:
        row = {
            **group.identity(point),
            "attack": attack or "",
            "metric": next((run.rate_names.rate for run in runs), ""),
            "trained_on": defence or "",
        }
        for when, condition in (("before", UNDEFENDED), ("after", defence)):
            clean, broken = accuracy.get((point, condition)), asr.get((point, condition))
            row[f"accuracy_{when}"] = clean["pooled"] if clean else math.nan
            row[f"accuracy_n_{when}"] = clean["trials"] if clean else 0
            row[f"seeds_{when}"] = broken["num_seeds"] if broken else 0
            row[f"round_{when}"] = broken["round"] if broken else ""
            row[f"iterations_{when}"] = broken["iterations"] if broken else ""
            row[f"attacked_{when}"] = broken["trials"] if broken else 0
            for column in ("pooled", "pooled_low", "pooled_high"):
                row[f"asr_{column}_{when}"] = broken[column] if broken else math.nan
        row["intervals_overlap"] = _overlap(row)
        rows.append(row)
    return rows


def training_rounds(group: Group) -> list[Row]:
    """Every round of every adversarial training."""
    return [
        {
            **group.identity(stage.victim.point),
            "seed": stage.victim.seed,
            "trained_on": stage.trained_on,
            **dataclasses.asdict(entry),
        }
        for stage in group.trainings
        for entry in stage.rounds
    ]


_DETECTION = ("true_positive_rate", "false_positive_rate", "attack_success_rate_unflagged")
"""What of a filter's metrics stands in the table of attack runs."""


def attack_runs(group: Group) -> list[Row]:
    """Every attack run with its recomputed metrics; `metric` says what its `asr` is called."""
    columns = (
        "num_examples", "num_correct_before", "num_attacked", "num_failures", "num_retokenised",
        "accuracy_before",
    )  # fmt: skip
    return [
        {
            **group.identity(run.victim.point),
            "seed": run.victim.seed,
            "attack": run.attack,
            "attack_seed": run.attack_seed,
            "trained_on": run.trained_on,
            "round": run.round,
            **{column: run.metrics[column] for column in columns},
            "accuracy_after": run.metrics[run.rate_names.accuracy],
            "metric": run.rate_names.rate,
            "asr": run.metrics[run.rate_names.rate],
            "asr_low": run.metrics[run.rate_names.interval][0],
            "asr_high": run.metrics[run.rate_names.interval][1],
            "iterations": run.headline_iteration,
            "asr_first_success": first_success(run, run.headline_iteration),
            "attack_flops": run.metrics["flops_algorithmic"],
            "attack_flops_executed": run.metrics["flops_executed"],
            "defence_flops": run.defence_flops,
            **{f"filter_{name}": run.detection.get(name, math.nan) for name in _DETECTION},
            "source": run.source,
        }
        for run in group.attacks
    ]


def _final_rows(
    group: Group, runs: Sequence[AttackRun], attack: str, trained_on: str
) -> Iterable[Row]:
    for point, same_size in by_point(group, runs):
        defence_flops = mean(run.mean_defence_flops for run in same_size)
        pretrain_flops = mean(run.pretrain_flops for run in same_size)
        yield {
            **group.identity(point),
            "attack": attack,
            "trained_on": trained_on,
            "round": span([run.round for run in same_size]),
            "iterations": span([run.headline_iteration for run in same_size]),
            "metric": same_size[0].rate_names.rate,
            "defence_flops": defence_flops,
            "defence_fraction_of_pretraining": _ratio(defence_flops, pretrain_flops),
            **dataclasses.asdict(rates.combine([_final_count(run) for run in same_size])),
        }


def by_point(group: Group, runs: Sequence[AttackRun]) -> Iterable[tuple[str, list[AttackRun]]]:
    """Runs by scaling point in order of size; points without any are left out."""
    for point in group.sizes:
        same_size = [run for run in runs if run.victim.point == point]
        if same_size:
            yield point, same_size


def _accuracy_count(accuracy: float, n: int) -> rates.Count:
    return rates.Count(0, 0, 0) if math.isnan(accuracy) else rates.Count(round(accuracy * n), n, n)


def _final_count(run: AttackRun) -> rates.Count:
    return asr_count(run, run.headline_iteration)


def asr_count(run: AttackRun, iteration: int) -> rates.Count:
    """How many examples the text of an iteration broke."""
    attacked = run.num_attacked
    successes = round(run.curve[iteration] * attacked) if attacked else 0
    return rates.Count(successes, attacked, run.num_examples)


def first_success(run: AttackRun, iteration: int) -> float:
    """Share broken at an iteration or before; NaN where nothing tells."""
    return float(run.metrics["asr_first_success_at"].get(str(iteration), math.nan))


def _overlap(row: Row) -> str:
    low = max(row["asr_pooled_low_before"], row["asr_pooled_low_after"])
    high = min(row["asr_pooled_high_before"], row["asr_pooled_high_after"])
    if not (row["attacked_before"] and row["attacked_after"]):
        return ""
    return "yes" if low <= high else "no"


def span(values: Sequence[int]) -> int | str:
    """The one value, or `low-high` if there are several."""
    return values[0] if len(set(values)) == 1 else f"{min(values)}-{max(values)}"


def mean(values: Iterable[float]) -> float:
    """Arithmetic mean; NaN of nothing."""
    values = list(values)
    return statistics.fmean(values) if values else math.nan


def _ratio(numerator: float, denominator: float) -> float:
    return numerator / denominator if denominator else math.nan


def _evaluated_rounds(group: Group) -> Iterable[tuple[str, str, list[AttackRun]]]:
    """Attack, defence and the runs of a round, round by round.

    Round 0 is what was measured before the first one with the same attack, else the undefended.
    """
    for attack in group.attack_names:
        for trained_on in group.defences:
            runs = group.runs(attack, trained_on)
            if runs and all(run.round for run in runs):
                runs = group.runs(attack, UNDEFENDED) + runs
            for number in sorted({run.round for run in runs}):
                yield attack, trained_on, [run for run in runs if run.round == number]
