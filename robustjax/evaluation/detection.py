"""How well a filter tells attacked texts from clean ones, as pure functions of numbers.

Definitions follow Howe et al. 2024 (arXiv 2407.18213). A rate without a denominator is NaN. This
module never imports jax.
"""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from robustjax.errors import UserError
from robustjax.evaluation import strict_json
from robustjax.evaluation.metrics import ArrayLike, wilson_interval
from robustjax.evaluation.records import AttackRecord, canonical_json, write_text_atomic

Aggregate = Literal["max", "mean"]


class TextScores(NamedTuple):
    """What a filter gives the texts of one example.

    Attributes:
        clean: of the clean text.
        attacked: of the final text of the attack; None if there was no attack.
    """

    clean: float
    attacked: float | None


SCORES_FILE = "perplexity_scores.jsonl"
"""One line an example: `example_id` and its `TextScores`."""


def write_scores(path: Path, scores: Mapping[int, TextScores]) -> None:
    """Writes the scores of an attack's examples."""
    lines = [{"example_id": i} | score._asdict() for i, score in scores.items()]
    write_text_atomic(path, "".join(canonical_json(line) + "\n" for line in lines))


def read_scores(path: Path) -> dict[int, TextScores]:
    """Reads them again.

    Raises:
        UserError: names the line that is no such line.
    """
    scores = {}
    for number, line in enumerate(path.read_bytes().splitlines(), 1):
        try:
            found = strict_json.fields(strict_json.parse_json(line), "score", _PARSERS)
        except ValueError as error:
            raise UserError(f"{path}, line {number}: not a score: {error}") from error
        scores[found["example_id"]] = TextScores(found["clean"], found["attacked"])
    return scores


_PARSERS: Mapping[str, strict_json.Parser] = {
    "example_id": strict_json.integer,
    "clean": strict_json.number,
    "attacked": strict_json.optional(strict_json.number),
}


def window_score(losses: ArrayLike, window: int, aggregate: Aggregate) -> float:
    """How unlikely the unlikeliest (or the average) window of a text is.

    The text is cut into whole windows from its beginning and once more from its end, so that no
    token is left out; a text shorter than a window is one.

    Args:
        losses: negative log-likelihood of each token but the first, in nats.
        window: tokens of a window.
        aggregate: over the windows of a cut, and over the two cuts.

    Returns:
        The aggregate of the windows' mean losses.

    Raises:
        ValueError: there is no loss.
    """
    losses = np.asarray(losses, np.float64)
    if not losses.size:
        raise ValueError("a text of one token has nothing that could be unlikely")
    width = min(window, losses.size)
    whole = losses.size // width * width
    combine = np.max if aggregate == "max" else np.mean
    cuts = (losses[:whole], losses[losses.size - whole :])
    return float(combine([combine(cut.reshape(-1, width).mean(1)) for cut in cuts]))


def detection_metrics(
    records: Sequence[AttackRecord], scores: Mapping[int, TextScores], threshold: float
) -> dict[str, Any]:
    """What a filter makes of an attack: a text is flagged if its score exceeds the threshold.

    Rates after the attack are over the examples attacked, rates before it over all that have a
    score. The filter only flags; it changes no answer.

    Args:
        records: of the attack.
        scores: by example id.
        threshold: of the filter.
    """
    clean = np.array([score.clean > threshold for score in scores.values()], bool)
    attacked = [record for record in records if record.attacked]
    flagged = np.array([_attacked_score(scores, one) > threshold for one in attacked], bool)
    broken = np.array([record.success for record in attacked], bool)
    missed = int((broken & ~flagged).sum())
    return {
        "num_flagged_before": int(clean.sum()),
        "num_flagged_after": int(flagged.sum()),
        "true_positive_rate": _mean(flagged),
        "true_positive_rate_interval": list(wilson_interval(int(flagged.sum()), len(flagged))),
        "false_negative_rate": _mean(~flagged),
        "true_negative_rate": _mean(~clean),
        "false_positive_rate": _mean(clean),
        "false_positive_rate_interval": list(wilson_interval(int(clean.sum()), len(clean))),
        "attack_success_rate_unflagged": _mean(broken & ~flagged),
        "attack_success_rate_unflagged_interval": list(wilson_interval(missed, len(attacked))),
        "robustness_rate": _mean(flagged | ~broken),
        "accuracy_unflagged": _mean(~broken[~flagged]),
        "flagged_but_correct_rate": _mean(~broken[flagged]),
        "unflagged_but_wrong_rate": _mean(broken[~flagged]),
    }


def _attacked_score(scores: Mapping[int, TextScores], record: AttackRecord) -> float:
    score = scores[record.example_id].attacked
    if score is None:
        raise ValueError(f"example_id {record.example_id} was attacked, but its text has no score")
    return score


def _mean(flags: np.ndarray) -> float:
    return float(flags.mean()) if flags.size else math.nan
