"""Attack records: one JSON line an attacked example, and what follows from them.

Every number of a report is recomputed from these lines, so reading is strict: a line that is not
exactly a record stops the program and names itself. Text is written as ASCII with escapes, hence
any Python string comes back unchanged and a record never holds a raw line break. Numbers that are
not finite are written as null and read back as NaN. This module never imports jax.
"""

import dataclasses
import logging
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from robustjax.errors import UserError
from robustjax.evaluation import judged, metrics, strict_json
from robustjax.evaluation.judged import Judged
from robustjax.evaluation.strict_json import canonical_json, write_text_atomic

__all__ = [
    "UNDEFENDED",
    "AttackRecord",
    "IterationRecord",
    "RateNames",
    "append_records",
    "canonical_json",
    "options",
    "rate_names",
    "read_complete_records",
    "read_records",
    "summarise",
    "write_records",
    "write_text_atomic",
]

UNDEFENDED = "none"
"""What a victim is "trained on" that was not hardened."""

_LOG = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class IterationRecord:
    """State of one attacked example after one attack iteration.

    Attributes:
        loss: attack loss of the current text.
        success: whether the current text fools the victim.
        slot_text: text in the attack slot.
        num_valid: candidates that survived the retokenisation filter.
        logits: class logits of the current text; None for a language model.
    """

    loss: float
    success: bool
    slot_text: str
    num_valid: int
    logits: list[float] | None = None


@dataclasses.dataclass(frozen=True)
class AttackRecord:
    """Everything an attack left behind about one example.

    Attributes:
        example_id: index of the example in its split.
        label: true class.
        target_label: class the attacker aims for (of a language model, its answer's).
        correct_before: whether the victim was right about the clean text. If not, an evaluation
            does not attack it (`attacked_text` None, no iterations).
        attacked_text: the final text, or None if there was no attack.
        success: whether the final text fools the victim.
        logits: class logits of the final text, or None; None for a language model.
        clean_logits: class logits of the clean text; empty for a language model.
        iterations: index `k` is the state after attack iteration `k + 1`.
        num_retokenised: draws whose text did not fit its slot after retokenisation and was redrawn.
        position: place of the attack slot in the modifiable text; 1.0 is a suffix, 0.0 a prefix.
        seed: attack seed.
        flops_algorithmic: attack FLOPs by the convention of Howe et al. 2024 (arXiv 2407.18213).
        flops_executed: attack FLOPs of the dot products that ran.
        failure: why the example could not be attacked, or None.
        target_logprobs: log-probability of each token of the text that a language model should go
            on with, after the final text; None for a classifier, or if there was no attack.
        clean_target_logprobs: the same after the clean text.
        attack: name of the attack.
        variant: names of the options in use that change its algorithm, joined by `+`.
        clean_flops_algorithmic: FLOPs of asking the victim about the clean text, which are not
            part of the attack's.
        clean_flops_executed: the same of the dot products that ran.
        judged: what the victim answers to the final text and what a judge makes of it, where
            answers are generated; None if there was no attack.
        clean_judged: the same of the clean text.

    Raises:
        ValueError: a success is claimed without an attacked text or beside a failure.
    """

    example_id: int
    label: int
    target_label: int
    correct_before: bool
    attacked_text: str | None
    success: bool
    logits: list[float] | None
    clean_logits: list[float]
    iterations: list[IterationRecord]
    num_retokenised: int
    position: float
    seed: int
    flops_algorithmic: int
    flops_executed: int
    failure: str | None
    target_logprobs: list[float] | None = None
    clean_target_logprobs: list[float] | None = None
    attack: str = ""
    variant: str = ""
    clean_flops_algorithmic: int = 0
    clean_flops_executed: int = 0
    judged: Judged | None = None
    clean_judged: Judged | None = None

    def __post_init__(self) -> None:
        """Reject a success that cannot have happened."""
        if self.success and (self.attacked_text is None or self.failure is not None):
            raise ValueError("success=true needs an attacked_text and no failure")

    @property
    def attacked(self) -> bool:
        """Whether the example belongs to the denominator of the attack success rate."""
        return self.correct_before and self.failure is None

    @property
    def first_success_iteration(self) -> int | None:
        """First attack iteration (1-based) whose text fooled the victim, or None."""
        return next((k for k, step in enumerate(self.iterations, 1) if step.success), None)


def write_records(path: str | os.PathLike[str], records: Iterable[AttackRecord]) -> None:
    """Write a whole record file, atomically."""
    write_text_atomic(path, "".join(lines_of(records)))


def append_records(path: str | os.PathLike[str], records: Iterable[AttackRecord]) -> None:
    """Add records to a file, made if missing; on return they are on the disk.

    Raises:
        UserError: the file ends in the middle of a line (`read_complete_records` mends it).
    """
    data = "".join(lines_of(records)).encode("ascii")
    with open(path, "ab+") as file:
        if file.tell():
            file.seek(-1, os.SEEK_END)
            if file.read(1) != b"\n":
                raise UserError(f"{path} ends in the middle of a line; mend it before appending")
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def lines_of(records: Iterable[AttackRecord]) -> list[str]:
    """The lines that records have in a file."""
    return [_line(record) for record in records]


def of_lines(lines: Iterable[str]) -> list[AttackRecord]:
    """The records of lines that `lines_of` made."""
    return _parse_lines("records of another process", (line.encode("ascii") for line in lines))


def read_records(path: str | os.PathLike[str]) -> list[AttackRecord]:
    """Read a record file in which every line must be sound.

    Raises:
        UserError: the file is missing, or names the first line that is not a record or that repeats
            an (example_id, seed) pair.
    """
    lines = _read_bytes(path).split(b"\n")
    if not lines[-1]:
        lines.pop()
    return _parse_lines(path, lines)


def read_complete_records(path: str | os.PathLike[str]) -> list[AttackRecord]:
    """Read what an interrupted run wrote, and cut off a torn last line so that it can go on.

    Only a last line without its line break can be torn; damage anywhere else is an error. A missing
    file is an empty one. Afterwards the file holds exactly the returned records; what was cut off
    is told to the user.

    Raises:
        UserError: names the first line before the torn one that is not a record.
    """
    if not Path(path).exists():
        return []
    *complete, tail = _read_bytes(path).split(b"\n")
    records = _parse_lines(path, complete)
    if tail:
        _LOG.warning(
            "%s: line %d is cut off after %d bytes; the %d whole records before it are kept, "
            "and the run goes on after them",
            *(path, len(complete) + 1, len(tail), len(records)),
        )
        with open(path, "rb+") as file:
            file.truncate(sum(len(line) + 1 for line in complete))
            os.fsync(file.fileno())
    return records


class RateNames(NamedTuple):
    """What the rates of an attack are called in its summary.

    Attributes:
        rate: share of the attacked examples that the final text breaks.
        interval: Wilson 95 % interval of it.
        at: the same share after each iteration.
        accuracy: share of all examples that are answered correctly after the attack.
        iterations_for_success: first iteration at which that share reaches each decile.
        log_probs: of the true label after each iteration, see `metrics.log_prob_metrics`.
    """

    rate: str
    interval: str
    at: str
    accuracy: str
    iterations_for_success: str
    log_probs: dict[str, str]


_SHOWN = {"keep_best": "best", "stop_at_success": "stopped"}
"""Options that change which text a rate looks at, and the word for it in the rate's name."""


def options(variant: str) -> list[str]:
    """Names of the options in a variant."""
    return variant.split("+") if variant else []


def rate_names(variant: str) -> RateNames:
    """The names of the rates of an attack, which depend on the options in use.

    As a rule a rate after an iteration looks at the text of that very iteration. With ``keep_best``
    it looks at the best text so far, with ``stop_at_success`` at the first successful one once
    there is one. These are other quantities, so they have other names: ``asr_best_at``,
    ``asr_stopped_at``, or ``asr_best_stopped_at``. ``asr_first_success_at`` and what follows from
    it mean the same whatever the options.
    """
    mine = options(variant)
    words = "".join(f"_{word}" for option, word in _SHOWN.items() if option in mine)
    return RateNames(
        f"attack_success_rate{words}",
        f"asr{words}_interval",
        f"asr{words}_at",
        f"accuracy_after{words}",
        f"iterations_for_success{words}",
        {name: f"{name}{words}_at" for name in metrics.LOG_PROB_METRICS},
    )


def summarise(records: Sequence[AttackRecord]) -> dict[str, Any]:
    """Metrics of one attack on one victim, a pure function of its records.

    Rates of the attack are over the examples attacked: right before the attack and not failed. What
    they are called depends on the options in use, see `rate_names`. The accuracy after the attack
    is over all examples; one that failed counts as wrong there, because nothing shows that it would
    have held. Rates without a denominator are NaN. Curves are mappings from the iteration to the
    value, with the clean texts at 0; decile tables are mappings from "0.0", "0.1", ... "1.0".
    Log-probabilities are given of classifiers only, and what a judge says where there was one.

    Raises:
        UserError: records of different attacks or options, or attacked examples with histories of
            different lengths.
    """
    variant = _only_variant(records)
    attacked = [record for record in records if record.attacked]
    num_iterations = _only_length(attacked)
    success = np.array(
        [[step.success for step in record.iterations] for record in attacked], dtype=bool
    ).reshape(len(attacked), num_iterations)
    first_success = metrics.first_success_curve(success)
    curve = metrics.asr_curve(success)
    num_broken = sum(record.success for record in attacked)
    num_ever_broken = int(success.any(1).sum())
    num_correct_before = sum(record.correct_before for record in records)
    names = rate_names(variant)
    return {
        "variant": variant,
        "num_examples": len(records),
        "num_correct_before": num_correct_before,
        "num_attacked": len(attacked),
        "num_failures": sum(record.failure is not None for record in records),
        "num_broken": num_broken,
        "num_retokenised": sum(record.num_retokenised for record in records),
        "accuracy_before": _ratio(num_correct_before, len(records)),
        "accuracy_before_interval": _interval(num_correct_before, len(records)),
        names.accuracy: _ratio(len(attacked) - num_broken, len(records)),
        names.rate: _ratio(num_broken, len(attacked)),
        names.interval: _interval(num_broken, len(attacked)),
        names.at: _by_iteration(curve),
        names.iterations_for_success: _by_decile(metrics.iterations_for_success(curve)),
        "asr_first_success_at": _by_iteration(first_success),
        "asr_first_success_interval": _interval(num_ever_broken, len(attacked)),
        "iterations_for_first_success": _by_decile(metrics.iterations_for_success(first_success)),
        "average_initial_breach": _by_decile(
            metrics.average_initial_breach(
                [record.first_success_iteration for record in attacked], decile / 10
            )
            for decile in range(11)
        ),
        **_log_probs(attacked, names),
        "iterations": num_iterations,
        "flops_algorithmic": sum(record.flops_algorithmic for record in records),
        "flops_executed": sum(record.flops_executed for record in records),
        "clean_flops_algorithmic": sum(record.clean_flops_algorithmic for record in records),
        "clean_flops_executed": sum(record.clean_flops_executed for record in records),
        **judged.summarise(
            [record.clean_judged for record in records if record.clean_judged is not None],
            [record.judged for record in attacked],
        ),
    }


def _only_variant(records: Sequence[AttackRecord]) -> str:
    kinds = sorted({(record.attack, record.variant) for record in records})
    if len(kinds) > 1:
        found = ", ".join("+".join(filter(None, kind)) or "(no name)" for kind in kinds)
        raise UserError(f"records of different attacks: {found}; summarise each by itself")
    return kinds[0][1] if kinds else ""


def _only_length(attacked: Sequence[AttackRecord]) -> int:
    lengths = sorted({len(record.iterations) for record in attacked})
    if len(lengths) > 1:
        raise UserError(
            f"iterations: attacked examples have {lengths} iterations; all need as many"
        )
    return lengths[0] if lengths else 0


def _log_probs(attacked: Sequence[AttackRecord], names: RateNames) -> dict[str, dict[str, float]]:
    """Curves of how much probability is left to the true label; none of a language model."""
    # In one order, so that the sums come out the same to the last bit whatever order they came in.
    ordered = sorted(attacked, key=lambda record: (record.example_id, record.seed))
    logits = [
        [record.clean_logits, *(step.logits for step in record.iterations)] for record in ordered
    ]
    if not logits or not all(one for history in logits for one in history):
        return {}
    curves = metrics.log_prob_metrics(
        np.array(logits).swapaxes(0, 1), [record.label for record in ordered]
    )
    return {names.log_probs[name]: _by_iteration(curve) for name, curve in curves.items()}


def _interval(successes: int, n: int) -> list[float]:
    return list(metrics.wilson_interval(successes, n))


def _by_decile(values: Iterable[float | int | None]) -> dict[str, float | int | None]:
    return {f"{decile / 10:.1f}": value for decile, value in enumerate(values)}


def _ratio(numerator: int, denominator: int) -> float:
    return numerator / denominator if denominator else math.nan


def _by_iteration(curve: np.ndarray) -> dict[str, float]:
    return {str(iteration): float(rate) for iteration, rate in enumerate(curve)}


def _line(record: AttackRecord) -> str:
    fields = {**vars(record), "iterations": [vars(step) for step in record.iterations]}
    for name in _JUDGED_PARSERS:  # left out where nothing is judged
        verdict = fields.pop(name)
        fields |= {} if verdict is None else {name: vars(verdict)}
    return canonical_json(fields) + "\n"


def _read_bytes(path: str | os.PathLike[str]) -> bytes:
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise UserError(f"cannot read attack records {path}: {error.strerror}") from error


def _parse_lines(path: str | os.PathLike[str], lines: Iterable[bytes]) -> list[AttackRecord]:
    records = []
    seen: dict[tuple[int, int], int] = {}
    for number, line in enumerate(lines, 1):
        try:
            record = _record(strict_json.parse_json(line), "record")
            key = (record.example_id, record.seed)
            if key in seen:
                raise ValueError(
                    f"example_id {key[0]} with seed {key[1]} is on line {seen[key]} too"
                )
        except (ValueError, OverflowError, RecursionError) as error:
            raise UserError(f"{path}, line {number}: not an attack record: {error}") from error
        seen[key] = number
        records.append(record)
    return records


def _iteration(value: Any, name: str) -> IterationRecord:
    return IterationRecord(**strict_json.fields(value, name, _ITERATION_PARSERS))


def _record(value: Any, name: str) -> AttackRecord:
    return AttackRecord(**strict_json.fields(value, name, _RECORD_PARSERS, _JUDGED_PARSERS))


_ITERATION_PARSERS: Mapping[str, strict_json.Parser] = {
    "loss": strict_json.number,
    "success": strict_json.boolean,
    "slot_text": strict_json.string,
    "num_valid": strict_json.integer,
    "logits": strict_json.optional(strict_json.list_of(strict_json.number)),
}

_RECORD_PARSERS: Mapping[str, strict_json.Parser] = {
    "example_id": strict_json.integer,
    "label": strict_json.integer,
    "target_label": strict_json.integer,
    "correct_before": strict_json.boolean,
    "attacked_text": strict_json.optional(strict_json.string),
    "success": strict_json.boolean,
    "logits": strict_json.optional(strict_json.list_of(strict_json.number)),
    "clean_logits": strict_json.list_of(strict_json.number),
    "iterations": strict_json.list_of(_iteration),
    "num_retokenised": strict_json.integer,
    "position": strict_json.number,
    "seed": strict_json.integer,
    "flops_algorithmic": strict_json.integer,
    "flops_executed": strict_json.integer,
    "failure": strict_json.optional(strict_json.string),
    "target_logprobs": strict_json.optional(strict_json.list_of(strict_json.number)),
    "clean_target_logprobs": strict_json.optional(strict_json.list_of(strict_json.number)),
    "attack": strict_json.string,
    "variant": strict_json.string,
    "clean_flops_algorithmic": strict_json.integer,
    "clean_flops_executed": strict_json.integer,
}

_JUDGED_PARSERS: Mapping[str, strict_json.Parser] = {
    "judged": strict_json.optional(judged.parse),
    "clean_judged": strict_json.optional(judged.parse),
}
