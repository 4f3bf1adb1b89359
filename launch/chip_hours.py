"""What jobs cost on TPU slices: a job's work, times what `robustjax plan` found for its model.

The figures are those that `python -m benchmarks.plans` keeps in benchmarks/results/plans.json: for
a scaling point its slice, and the time bounds of the programs compiled for it. They are bounds: the
host's work, compiling, and waiting for a slice come on top.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from launch.job_work import JobWork

CANDIDATES = 128
"""Candidates of GCG, each of which a plan's iteration scores."""

SECONDS_AN_HOUR = 3600

# A slice as `robustjax plan` and as gcloud name it; older names count cores, two a chip.
_TYPES = {"v5e": ("v5litepod", 1), "v6e": ("v6e", 1), "v5p": ("v5p", 2), "v4": ("v4", 2)}


class Cost(NamedTuple):
    """The slice that a job runs on and how long it takes.

    Attributes:
        tpu_type: as gcloud names it, such as `v5litepod-8`.
        chips: of that slice.
        chip_hours: chips times hours, of the whole job.
    """

    tpu_type: str
    chips: int
    chip_hours: float


class Plans:
    """The plans of scaling points; some may be missing.

    Args:
        rows: of plans.json.
    """

    def __init__(self, rows: list[dict[str, Any]] | None = None):
        self._rows = {row["point"]: row for row in rows or []}

    def cost(self, work: JobWork | None) -> Cost | None:
        """What a job costs; None if its work, its model or one of its attacks has no figure."""
        row = self._rows.get(work.point) if work is not None else None
        if work is None or row is None:
            return None
        attack, training = row["attack"], row["training"]
        propose, score = (
            _chip_seconds(attack, name, row["batch_size"])
            for name in ("propose", "score_replacements")
        )
        # An iteration of RandomToken scores one text.
        iteration = {"gcg": propose + score, "random_token": score / CANDIDATES}
        if not work.iterations.keys() <= iteration.keys():
            return None
        seconds = work.texts * _chip_seconds(training, "train_step", row["microbatch_size"])
        seconds += sum(iteration[name] * count for name, count in work.iterations.items())
        slice_type = tpu_type(attack["topology"], attack["chips"])
        return Cost(slice_type, attack["chips"], seconds / SECONDS_AN_HOUR)


def tpu_type(topology: str, chips: int) -> str:
    """The name that gcloud has for a slice, as `v5litepod-16` for `v5e:4x4`."""
    generation, cores = _TYPES[topology.partition(":")[0]]
    return f"{generation}-{cores * chips}"


def _chip_seconds(plan: Mapping[str, Any], program: str, examples: int) -> float:
    """The bound of a program, for one of the examples that it does at once."""
    return plan["chips"] * plan["programs"][program]["seconds"]["bound"] / examples


def read_plans(path: Path) -> Plans:
    """Reads plans.json.

    Raises:
        SystemExit: it is missing or holds something else.
    """
    try:
        plans = Plans(json.loads(path.read_text())["rows"])
        for point in plans._rows:
            plans.cost(JobWork(point, 1.0, {"gcg": 1.0, "random_token": 1.0}))
    except FileNotFoundError:
        raise SystemExit(f"sweep: --plans={path}: no such file") from None
    except (ValueError, TypeError, KeyError) as error:
        raise SystemExit(f"sweep: --plans={path}: not a table of plans ({error!r})") from error
    return plans
