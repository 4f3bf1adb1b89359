"""Your own data: JSONL, JSONL.gz or Parquet files.

A row is an object in one of two forms, one form for both files:

* `{"text": ..., "label": 0}`: the text is the chunk that is attacked, by insertion.
* the stored record format of `robustjax.data.prompts.ROW_FIELDS`. The last content chunk is the one
  that is attacked: replaced when it is empty in every row, else by insertion.

Every error names the file and the line.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from robustjax.data.prompts import (
    ANSWER_PROMPT,
    ROW_FIELDS,
    ChunkKind,
    Example,
    Task,
    require_label,
)
from robustjax.data.tasks.config import TaskConfig, taken
from robustjax.data.tasks.rows import read_objects, sha256
from robustjax.errors import UserError

_SHUFFLE_STREAM = 1


@dataclass(frozen=True)
class _Row:
    """A parsed line: where it stands, and its fields."""

    path: str
    index: int
    fields: dict[str, Any]

    @property
    def is_record(self) -> bool:
        is_plain = "text" in self.fields and "label" in self.fields
        return not is_plain and any(name in self.fields for name in ROW_FIELDS)

    @property
    def label(self) -> int:
        return self.fields["clf_label" if self.is_record else "label"]

    def error(self, message: str) -> UserError:
        return UserError(f"{self.path}, line {self.index + 1}: {message}")


def build(config: TaskConfig) -> Task:
    """Reads the task from `config.train_path` and `config.validation_path`.

    Validation keeps the order of its file. `example_id` is the 0-based line of the file.

    Raises:
        UserError: a file or a line is not as described above; the message says which.
    """
    if not config.validation_path:
        raise UserError("task.validation_path is empty: task 'jsonl' needs a JSONL file")
    train, train_source = _read(config.train_path) if config.train_path else ([], None)
    validation, validation_source = _read(config.validation_path)
    num_classes = _count_classes(train, validation, config)
    _check_one_form([*train, *validation])

    if validation[0].is_record:
        class_names = config.class_names or _names_from_rows([*train, *validation], num_classes)
        kinds = _record_kinds([*train, *validation])
    else:
        class_names = config.class_names or _default_names(num_classes)
        kinds = (ChunkKind.IMMUTABLE, ChunkKind.PERTURBABLE, ChunkKind.IMMUTABLE)

    examples = {
        "train": [_example(row, class_names, config) for row in train],
        "validation": [_example(row, class_names, config) for row in validation],
    }
    seen = {example.text for example in examples["train"]}
    duplicated = sum(example.text in seen for example in examples["validation"])
    order = np.random.default_rng((config.seed, _SHUFFLE_STREAM)).permutation(len(train))
    shuffled = [examples["train"][i] for i in order]
    return Task(
        name=config.name,
        class_names=class_names,
        chunk_kinds=kinds,
        train=tuple(shuffled[: taken(config, "train", len(shuffled))]),
        validation=tuple(examples["validation"][: taken(config, "validation", len(validation))]),
        source={
            "train_file": train_source,
            "validation_file": validation_source,
            "validation_texts_seen_in_training": duplicated,
        },
    )


def _read(path_text: str) -> tuple[list[_Row], dict[str, Any]]:
    """Returns the rows of a file, and its name, hash and size."""
    path = Path(path_text).expanduser()
    rows = [
        _Row(path_text, index, _checked(path_text, index, fields))
        for index, fields in read_objects(path, path_text)
    ]
    if not rows:
        raise UserError(f"{path_text} is empty: it needs one JSON object a line")
    return rows, {"file": path.name, "sha256": sha256(path), "rows": len(rows)}


def _checked(path: str, index: int, fields: dict[str, Any]) -> dict[str, Any]:
    """The fields of a row, checked as far as that can be done without the rest of the file."""
    where = f"{path}, line {index + 1}"
    row = _Row(path, index, fields)
    if row.is_record:
        # Builds it once only for its checks; class names are not known yet.
        try:
            example = Example.from_row(fields, index)
        except UserError as error:
            raise UserError(f"{where}: {error}") from None
        if not example.text.strip():
            raise row.error("the prompt is empty")
        return fields
    for name in ("text", "label"):
        if name not in fields:
            raise row.error(f"field {name!r} is missing: a row needs 'text' and 'label'")
    text = fields["text"]
    if not isinstance(text, str) or not text.strip():
        raise row.error(f"field 'text' is {text!r}: expected a text that is not empty")
    try:
        text.encode("utf-8")
        require_label("label", fields["label"])
    except UnicodeEncodeError:
        raise row.error("field 'text' holds a lone surrogate: it is not valid Unicode") from None
    except UserError as error:
        raise row.error(str(error)) from None
    return fields


def _count_classes(train: Sequence[_Row], validation: Sequence[_Row], config: TaskConfig) -> int:
    """Returns N after checking that the labels are 0..N-1.

    Class names fix N when they are given; else the training file does (or the validation file
    when it is alone). A validation file may lack classes: attacking one class only is legitimate.
    """
    defining = train or validation
    present = sorted({row.label for row in defining})
    where = defining[0].path
    if len(present) == 1 and not (config.class_names and not train):
        raise UserError(
            f"{where}: every label is {present[0]}: at least two classes are needed"
            + ("" if train else " (or set task.class_names)")
        )
    num_classes = len(config.class_names) or len(present)
    if not config.class_names and present != list(range(num_classes)):
        raise UserError(
            f"{where}: labels are {_shorten(present)}, not 0..{num_classes - 1}: renumber them"
        )
    for row in [*train, *validation]:
        targets = [row.label, row.fields["proxy_clf_label"]] if row.is_record else [row.label]
        if max(targets) >= num_classes:
            raise row.error(
                f"label {max(targets)} is not in 0..{num_classes - 1}: "
                + (
                    f"task.class_names has {num_classes} names"
                    if config.class_names
                    else f"{where} has {num_classes} classes"
                )
            )
    return num_classes


def _check_one_form(rows: Sequence[_Row]) -> None:
    first = rows[0]
    for row in rows:
        if row.is_record != first.is_record:
            raise row.error(
                f"has another form than {first.path}, line {first.index + 1}: "
                "use 'text' and 'label' in every row, or the record format in every row"
            )
        if row.is_record and len(row.fields["content"]) != len(first.fields["content"]):
            raise row.error(
                f"field 'content' has {len(row.fields['content'])} chunks, "
                f"{first.path}, line {first.index + 1} has {len(first.fields['content'])}"
            )


def _record_kinds(rows: Sequence[_Row]) -> tuple[ChunkKind, ...]:
    num_content = len(rows[0].fields["content"])
    is_always_empty = all(row.fields["content"][-1] == "" for row in rows)
    last = ChunkKind.OVERWRITABLE if is_always_empty else ChunkKind.PERTURBABLE
    return (*[ChunkKind.IMMUTABLE] * num_content, last, ChunkKind.IMMUTABLE)


def _default_names(num_classes: int) -> tuple[str, ...]:
    return tuple(f" CLASS{label}" for label in range(num_classes))


def _names_from_rows(rows: Sequence[_Row], num_classes: int) -> tuple[str, ...]:
    """Takes the class names from the rows' targets, when each class has one target of its own."""
    targets: dict[int, set[str]] = {label: set() for label in range(num_classes)}
    for row in rows:
        targets[row.label].add(row.fields["gen_target"])
    names = tuple(next(iter(found)) for found in targets.values() if len(found) == 1)
    return names if len(set(names)) == num_classes else _default_names(num_classes)


def _example(row: _Row, class_names: tuple[str, ...], config: TaskConfig) -> Example:
    if row.is_record:
        return Example.from_row(row.fields, row.index)
    target_label = (row.label + 1) % len(class_names)
    return Example(
        example_id=row.index,
        instructions=config.instruction,
        content=(row.fields["text"],),
        answer_prompt=ANSWER_PROMPT,
        label=row.label,
        target_label=target_label,
        gen_target=class_names[row.label],
        proxy_gen_target=class_names[target_label],
    )


def _shorten(labels: list[int]) -> str:
    return str(labels) if len(labels) <= 10 else f"{labels[:10]} and {len(labels) - 10} more"
