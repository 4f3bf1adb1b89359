"""Read published CSV files into typed rows; every mistake names file, line and column."""

import csv
import dataclasses
import gzip
import math
import zlib
from collections.abc import Iterator
from pathlib import Path

from robustjax.errors import UserError

Number = float | int


@dataclasses.dataclass(frozen=True)
class EvaluationRow:
    """Success of an attack on one victim after one iteration; NaN where a file does not tell.

    Attributes:
        asr: share of the attacked examples that the victim gets wrong.
        num_params: weights of the victim with its head.
        round: adversarial training rounds behind it.
        flops_per_iteration: algorithmic FLOPs an iteration, over all attacked examples.
        num_offered: examples offered.
        num_correct_before: examples answered correctly before, those attacked.
        accuracy_after: correct answers after the attack, as a share of the examples offered.
        model_key: name of the victim without what all share; empty where a file does not tell.
        attack_seed: seed of the attack.
    """

    line: int
    asr: float
    iteration: int
    num_params: int
    seed: int
    round: int
    flops_per_iteration: float
    num_offered: float
    num_correct_before: float
    accuracy_after: float
    model_key: str
    attack_seed: int


@dataclasses.dataclass(frozen=True)
class TrainingRow:
    """What an adversarial training has cost up to the end of a round, algorithmic FLOPs."""

    total_flops: float
    num_params: int
    seed: int
    round: int
    run_id: str
    model_key: str


@dataclasses.dataclass(frozen=True)
class Rows:
    """The rows of a file, and how many it had of which it could make nothing.

    Attributes:
        duplicates: rows equal to an earlier one in every column, which are left out.
        without_seed: rows without a seed, which are left out.
    """

    cells: list["_Cells"]
    duplicates: int
    without_seed: int


EVALUATION_COLUMNS = ("asr", "iteration", "seed_idx", "adv_training_round")
TRAINING_COLUMNS = ("train_total_flops", "adv_training_round", "num_params", "seed_idx")


def read_rows(file: Path, required: tuple[str, ...]) -> Rows:
    """Read a file's distinct rows.

    Columns whose names begin with `Unnamed` are positions of another table and are left out; `/` in
    a name counts as `_`.

    Raises:
        UserError: the file cannot be read, has no row, lacks a column, or has rows of other widths.
    """
    try:
        opener = gzip.open if file.name.endswith(".gz") else open
        with opener(file, "rt", encoding="utf-8", newline="") as stream:
            lines = list(csv.reader(stream))
    except (OSError, EOFError, zlib.error, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{file}: cannot be read: {error}") from error
    if len(lines) < 2:
        raise UserError(f"{file}: has no row; take it out of the folder")
    names = [name.strip().replace("/", "_") for name in lines[0]]
    kept = [i for i, name in enumerate(names) if name and not name.startswith("Unnamed")]
    missing = [name for name in required if name not in names]
    if not {"num_params", "model_size"} & set(names):
        missing.append("num_params")
    if missing:
        raise UserError(f"{file}: column {missing[0]} is missing; it has {', '.join(names)}")
    columns = {names[i]: position for position, i in enumerate(kept)}
    seen: set[tuple[str, ...]] = set()
    cells, duplicates, without_seed = [], 0, 0
    for line, values in enumerate(lines[1:], start=2):
        if len(values) != len(names):
            raise UserError(f"{file}, line {line}: {len(values)} cells, the header {len(names)}")
        row = tuple(values[i] for i in kept)
        if row in seen:
            duplicates += 1
            continue
        seen.add(row)
        cell = _Cells(file, line, columns, row)
        if cell.is_empty("seed_idx"):
            without_seed += 1
        else:
            cells.append(cell)
    return Rows(cells, duplicates, without_seed)


def evaluation_rows(rows: Rows) -> Iterator[EvaluationRow]:
    """Check and convert the rows of an evaluation.

    Raises:
        UserError: a value is no number or lies outside its range.
    """
    for cell in rows.cells:
        offered = cell.number("dataset_n_val", 1, default=math.nan)
        correct = cell.number("adversarial_eval_n_correct_pre_attack", 0, default=math.nan)
        if correct > offered:
            raise UserError(
                f"{cell.where}: adversarial_eval_n_correct_pre_attack is {correct:g}, more than "
                f"dataset_n_val, {offered:g}"
            )
        yield EvaluationRow(
            line=cell.line,
            asr=cell.number("asr", 0, 1),
            iteration=cell.integer("iteration"),
            num_params=cell.num_params(),
            seed=cell.integer("seed_idx"),
            round=cell.integer("adv_training_round"),
            flops_per_iteration=cell.number("flops_per_iteration", 0, default=math.nan),
            num_offered=offered,
            num_correct_before=correct,
            accuracy_after=cell.number("post_attack_accuracy", 0, 1, default=math.nan),
            model_key=_model_key(cell.text("model_name_or_path")),
            attack_seed=cell.integer("evaluation_evaluation_attack_seed", default=0),
        )


def training_rows(rows: Rows) -> Iterator[TrainingRow]:
    """Check and convert the rows of adversarial training runs.

    Stored means and fractions of pretraining are not read: they are computed anew.

    Raises:
        UserError: a value is no number or lies outside its range.
    """
    for cell in rows.cells:
        name = cell.text("training_force_name_to_save") or cell.text("training_save_name")
        yield TrainingRow(
            total_flops=cell.number("train_total_flops", 0),
            num_params=cell.num_params(),
            seed=cell.integer("seed_idx"),
            round=cell.integer("adv_training_round"),
            run_id=cell.text("run_id"),
            model_key=_model_key(cell.text("model_key") or name),
        )


class _Cells:
    """The cells of one row by column."""

    def __init__(
        self, file: Path, line: int, columns: dict[str, int], values: tuple[str, ...]
    ) -> None:
        self.line = line
        self._file, self._columns, self._values = file, columns, values

    @property
    def where(self) -> str:
        return f"{self._file}, line {self.line}"

    def text(self, name: str) -> str:
        """The cell, empty where the file lacks the column."""
        position = self._columns.get(name)
        return "" if position is None else self._values[position]

    def is_empty(self, name: str) -> bool:
        return self.text(name).lower() in ("", "nan")

    def number(
        self, name: str, low: Number, high: Number = math.inf, default: Number | None = None
    ) -> float:
        """A number within bounds; `default`, if there is one, where the cell is empty."""
        if self.is_empty(name) and default is not None:
            return float(default)
        text = self.text(name)
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not low <= value <= high or math.isinf(value):
            bounds = f"in {low:g}..{high:g}" if high < math.inf else f"of at least {low:g}"
            raise UserError(f"{self.where}: {name} is {text!r}, not a number {bounds}")
        return value

    def integer(self, name: str, default: int | None = None) -> int:
        value = self.number(name, 0, default=default)
        if value != int(value):
            raise UserError(f"{self.where}: {name} is {self.text(name)!r}, not an integer")
        return int(value)

    def num_params(self) -> int:
        return self.integer("model_size" if self.is_empty("num_params") else "num_params")


def _model_key(name: str) -> str:
    """A saved model's name without its organisation and the prefix that all have."""
    return name.rpartition("/")[2].removeprefix("robust_llm_")
