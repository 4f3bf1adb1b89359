"""`robustjax study --dry_run`: a study's stages, what they cost, and how long they take here."""

import functools
import sys
from collections.abc import Sequence
from pathlib import Path

from robustjax.attacks.frame import abstract_inputs
from robustjax.data.tasks import load_task, require_classes
from robustjax.evaluation.flops import Flops
from robustjax.models.transformer import Definition
from robustjax.planning import rates
from robustjax.planning.work import usual_programs
from robustjax.runtime.progress import format_seconds
from robustjax.settings import PointConfig, StudyConfig
from robustjax.study_plan import PlannedStage, Planner

_TRAINING = ("pretrain", "finetune", "sampler", "advtrain")
_HEADER = ("stage", "", "algorithmic", "executed", "time")


def print_forecast(config: StudyConfig, workdir: str | Path) -> None:
    """Prints the stages, their FLOPs and how long they take on this device; runs none of them.

    Algorithmic and executed FLOPs are upper bounds. Times are executed FLOPs at the rate at which
    this device ran programs of the point on zeros, compilation and the host's work left out; of a
    point that is too large to be measured here, at the rate of one large product.

    Raises:
        UserError: whatever would keep the study from being run.
    """
    require_classes(config.task)
    planner = Planner(config, load_task(config.task), Path(workdir))
    stages = planner.plan()
    clock = _Clock(planner, config)
    rows, left = [_HEADER], 0.0
    total = Flops(0, 0)
    for planned in stages:
        cost = planned.cost()
        total = Flops(total.algorithmic + cost.algorithmic, total.executed + cost.executed)
        is_done = planned.stage.is_done()
        seconds, is_bound = clock.seconds(planned, cost)
        left += 0.0 if is_done else seconds
        rows.append(
            (planned.name, "done" if is_done else "", *_shown(cost), _time(seconds, is_bound))
        )
    rows.append(("total", "", *_shown(total), ""))
    print(_table(rows))
    processes = f", by {config.workers} processes side by side" if config.workers > 1 else ""
    print(
        f"{len(stages)} stages; about {format_seconds(left / config.workers)} left on this device"
        f"{processes}, without compilation and the host's work"
    )


class _Clock:
    """Turns FLOPs into seconds, by rates that are measured once for each point and kind of work."""

    def __init__(self, planner: Planner, config: StudyConfig):
        self._planner, self._config = planner, config

    def seconds(self, planned: PlannedStage, cost: Flops) -> tuple[float, bool]:
        """How long a stage takes, and whether that is a lower bound."""
        if not cost.executed:
            return 0.0, False
        is_training = planned.name.split("/")[0] in _TRAINING
        rate, is_bound = self._rate(planned.point, is_training)
        return cost.executed / rate, is_bound

    @functools.cache  # noqa: B019 - lives as long as the command
    def _rate(self, point: str, is_training: bool) -> tuple[float, bool]:
        definition = self._planner.definition(point)
        if not rates.is_small(definition):
            return rates.yardstick(), True
        print(f"study: measuring {point}", file=sys.stderr)
        return (self._of_training if is_training else self._of_attacks)(point, definition), False

    def _of_training(self, point: str, definition: Definition) -> float:
        config = self._settings(point).finetune.train
        width = self._planner.typical_width(config.edges)
        micro = config.microbatch_size
        rows = config.batch_size // micro, micro
        return rates.rate_of([rates.gradient_program(definition, rows, width)])

    def _of_attacks(self, point: str, definition: Definition) -> float:
        """Of the first attack that works without a second model, on prompts of a typical width."""
        search = self._settings(point).search
        attacks = self._config.evaluation.attacks.values()
        attack = next((one for one in attacks if not one.needs_companion), None)
        if attack is None:
            return self._of_training(point, definition)
        shape = (self._planner.typical_width(search.edges), 8, 0)
        inputs = abstract_inputs(definition, shape, search.batch_size)
        _, each = usual_programs(attack, inputs)
        return rates.rate_of(each.values())

    def _settings(self, point: str) -> PointConfig:
        """Of the sampler, which has none of its own, those of some other point."""
        points = self._config.points
        return points.get(point) or next(iter(points.values()))


def _shown(cost: Flops) -> tuple[str, str]:
    return (f"{cost.algorithmic:.2e}", f"{cost.executed:.2e}") if cost.algorithmic else ("", "")


def _time(seconds: float, is_bound: bool) -> str:
    if not seconds:
        return ""
    return f"{'at least ' if is_bound else ''}{format_seconds(seconds)}"


def _table(rows: Sequence[tuple[str, ...]]) -> str:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for row in rows:
        cells = [
            cell.ljust(width) if place < 2 else cell.rjust(width)
            for place, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)
