"""What adversarial training had cost at the victims that published files evaluate."""

import dataclasses
import math
import statistics
from collections.abc import Iterable, Mapping, Sequence

from robustjax.analysis.published_rows import TrainingRow


@dataclasses.dataclass(frozen=True)
class TrainingCosts:
    """Cumulative algorithmic FLOPs of the adversarial trainings of one experiment.

    Attributes:
        mean: by size and round, over all training rows, as Howe et al. 2024 (arXiv 2407.18213) take
            it: trainings that nothing evaluates are in it, and one whose rows are stored under
            several names counts several times.
        by_key: by model key, seed and round, from the last row stored under them.
        by_seed: by part of the experiment, size, seed and round, for evaluations that name no
            models; the mean over distinct runs.
        falls: model key, seed and round where a counter is lower than in a round before. Training
            was resumed without its sum, so its cost is unknown there: `by_key` and `by_seed` have
            no entry.
    """

    mean: Mapping[tuple[int, int], float]
    by_key: Mapping[tuple[str, int, int], float]
    by_seed: Mapping[tuple[str, int, int, int], float]
    falls: Sequence[tuple[str, int, int]]

    def knows(self, key: str, seed: int, round_: int) -> bool:
        """Whether a victim has a training row; one that is not named is not asked for."""
        return not key or (key, seed, round_) in self.by_key or (key, seed, round_) in self.falls

    def own(self, part: str, key: str, num_params: int, seed: int, round_: int) -> float:
        """What the training of a victim had cost; NaN if nothing tells."""
        if key:
            return self.by_key.get((key, seed, round_), math.nan)
        return self.by_seed.get((part, num_params, seed, round_), math.nan)


def training_costs(parts: Mapping[str, Iterable[TrainingRow]]) -> TrainingCosts:
    """Gather the training rows of an experiment.

    Args:
        parts: rows by the part of the experiment (see `FileName.part`), in the order of the files.
    """
    everything = [(part, row) for part, rows in parts.items() for row in rows]
    by_key = {(row.model_key, row.seed, row.round): row.total_flops for _, row in everything}
    peaks: dict[tuple[str, int], float] = {}
    falls = []
    for key, seed, round_ in sorted(by_key):
        total, peak = by_key[key, seed, round_], peaks.get((key, seed), 0.0)
        if total < peak:
            falls.append((key, seed, round_))
        peaks[key, seed] = max(peak, total)
    fallen = set(falls)
    all_rows: dict[tuple[int, int], list[float]] = {}
    of_runs: dict[tuple[str, int, int, int], dict[str, float]] = {}
    for part, row in everything:
        all_rows.setdefault((row.num_params, row.round), []).append(row.total_flops)
        if (row.model_key, row.seed, row.round) not in fallen:
            runs = of_runs.setdefault((part, row.num_params, row.seed, row.round), {})
            runs[row.run_id] = row.total_flops
    return TrainingCosts(
        mean={key: statistics.fmean(values) for key, values in all_rows.items()},
        by_key={key: total for key, total in by_key.items() if key not in fallen},
        by_seed={key: statistics.fmean(runs.values()) for key, runs in of_runs.items()},
        falls=tuple(falls),
    )
