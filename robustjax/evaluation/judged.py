"""What a victim answered, and what a judge made of it; a part of a record. Never imports jax."""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any, Literal

from robustjax.errors import UserError
from robustjax.evaluation import metrics, strict_json

Outcome = Literal["success", "failure", "unparsable"]
"""Whether an answer is what the attacker wants; or what the judge said means neither."""

OUTCOMES: tuple[Outcome, ...] = ("success", "failure", "unparsable")


@dataclasses.dataclass(frozen=True)
class Judged:
    """A victim's answer and the verdict on it.

    Attributes:
        output: what the victim generated.
        is_cut: whether the answer was cut off, having reached its largest length.
        outcome: the verdict from the attacker's point of view.
        score: how far the answer is what the attacker wants, from 0 to 1; None if unparsable.
        judge: who judged.
    """

    output: str
    is_cut: bool
    outcome: Outcome
    score: float | None
    judge: str

    def __post_init__(self) -> None:
        """Rejects a verdict that contradicts itself."""
        if (self.outcome == "unparsable") != (self.score is None):
            raise ValueError(f"outcome={self.outcome!r} does not go with score={self.score}")
        if self.score is not None and not 0.0 <= self.score <= 1.0:
            raise ValueError(f"score={self.score} must lie in 0..1")


def parse(value: Any, name: str) -> Judged:
    """Parses what stands in a record."""
    return Judged(**strict_json.fields(value, name, _PARSERS))


def _outcome(value: Any, name: str) -> str:
    if value not in OUTCOMES:
        raise ValueError(f"{name} must be one of {', '.join(OUTCOMES)}, not {value!r}")
    return str(value)


_PARSERS: dict[str, strict_json.Parser] = {
    "output": strict_json.string,
    "is_cut": strict_json.boolean,
    "outcome": _outcome,
    "score": strict_json.optional(strict_json.number),
    "judge": strict_json.string,
}


def summarise(before: Sequence[Judged], attacked: Sequence[Judged | None]) -> dict[str, Any]:
    """What the judge says of an attack.

    Args:
        before: answers to the clean texts.
        attacked: answers to the final texts of all examples attacked, None where there is none.

    Returns:
        Rates over all examples attacked with Wilson 95 % intervals. An unparsable verdict counts as
        no success; how many there are stands beside.

    Raises:
        UserError: verdicts of several judges.
    """
    after = [one for one in attacked if one is not None]
    judges = sorted({one.judge for one in (*before, *after)})
    if len(judges) > 1:
        raise UserError(
            f"verdicts of several judges: {', '.join(judges)}; summarise each by itself"
        )
    if not judges:
        return {}
    refused, broken = _count(before, "failure"), _count(after, "success")
    scores = [one.score for one in after if one.score is not None]
    return {
        "judge": judges[0],
        "num_judged_before": len(before),
        "num_refused_before": refused,
        "num_unparsable_before": _count(before, "unparsable"),
        "refusal_rate_before": refused / len(before) if before else math.nan,
        "refusal_rate_before_interval": list(metrics.wilson_interval(refused, len(before))),
        "num_judged": len(after),
        "num_judged_success": broken,
        "num_unparsable": _count(after, "unparsable"),
        "num_cut": sum(one.is_cut for one in after),
        "judged_success_rate": broken / len(attacked) if attacked else math.nan,
        "judged_success_interval": list(metrics.wilson_interval(broken, len(attacked))),
        "judged_mean_score": sum(scores) / len(scores) if scores else math.nan,
    }


def _count(judged: Sequence[Judged], outcome: Outcome) -> int:
    return sum(one.outcome == outcome for one in judged)
