"""What jobs cost on a TPU slice: figures of `robustjax plan`, in a table file.

    {"rows": [{"point": "pythia-70m", "task": "imdb", "attack": "gcg",
               "tpu_type": "v5litepod-8", "chips": 8, "chip_hours": 12.5}]}

A row is for the jobs whose axes are as it says; an axis that it does not name may be anything. Of
several rows the one that names most counts, of these the last.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

_FIGURES = ("tpu_type", "chips", "chip_hours")


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


class Table:
    """The figures that there are; those of a job may be missing."""

    def __init__(self, rows: list[dict] | None = None):
        self._rows = rows or []

    def cost(self, axes: Mapping[str, str]) -> Cost | None:
        """The figures of a job; None if there are none.

        Args:
            axes: what the job is, such as its point, task, attack and seed.
        """
        best: tuple[int, dict] | None = None
        for row in self._rows:
            named = {name: value for name, value in row.items() if name not in _FIGURES}
            fits = all(axes.get(name) == str(value) for name, value in named.items())
            if fits and (best is None or len(named) >= best[0]):
                best = len(named), row
        return None if best is None else Cost(**{name: best[1][name] for name in _FIGURES})


def read_table(path: Path) -> Table:
    """Reads a table file.

    Raises:
        SystemExit: it is missing or is not such a table.
    """
    try:
        rows = json.loads(path.read_text())["rows"]
        for row in rows:
            cost = Cost(**{name: row[name] for name in _FIGURES})
            if not (isinstance(cost.tpu_type, str) and cost.chips > 0 and cost.chip_hours >= 0):
                raise ValueError(f"{row}: chips and chip_hours must be positive")
    except FileNotFoundError:
        raise SystemExit(f"sweep: --plans={path}: no such file") from None
    except (ValueError, TypeError, KeyError) as error:
        raise SystemExit(f"sweep: --plans={path}: not a table of plans ({error!r})") from error
    return Table(rows)
