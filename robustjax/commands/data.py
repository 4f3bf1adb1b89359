"""`robustjax data`: which tasks there are, building them, and looking at their examples."""

import dataclasses
import os
import sys
from collections.abc import Iterator
from typing import Any, NamedTuple

from robustjax.data.prompts import ChunkKind, Example, Task, slot_place
from robustjax.data.tasks import FACTS, TaskConfig, load_task, stored
from robustjax.data.tasks.facts import TaskFacts
from robustjax.errors import UserError

_COLOURS = {"instruction": "36", "content": "0", "attackable": "32", "slot": "7;31", "answer": "34"}
"""What a terminal shows a span in (SGR codes)."""
_MEANINGS = {
    "instruction": "what the model is told",
    "content": "the example's own text, which an attack may not touch",
    "attackable": "the example's own text, into which an attack may insert",
    "slot": "where the attack's text goes",
    "answer": "after which the answer would stand",
}
_SLOT = "[attack]"


class Span(NamedTuple):
    """A part of a prompt: one of the kinds above, and its text."""

    kind: str
    text: str


def list_tasks(data_dir: str = "") -> str:
    """A table of the tasks.

    Args:
        data_dir: where their data sets are looked for; see `TaskConfig`.
    """
    rows = [("task", "train", "validation", "classes", "data", "what is asked")]
    for facts in FACTS.values():
        sizes = (facts.sizes.get(split, "-") for split in ("train", "validation"))
        classes = " / ".join(name.strip() for name in facts.class_names) or "-"
        rows.append((facts.name, *sizes, classes, _state(facts, data_dir), facts.summary))
    rows.append(("jsonl", "-", "-", "yours", "your files", "what your own files ask"))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ("  ".join(map(str.ljust, row, widths)).rstrip() for row in rows)
    return "\n".join(lines)


def _state(facts: TaskFacts, data_dir: str) -> str:
    if facts.is_generated:
        return "generated"
    return "prepared" if stored.find(facts, data_dir).is_prepared() else "not prepared"


def prepare_task(name: str, data_dir: str = "", manual_dir: str = "") -> str:
    """Builds the data set of a named task, unless it is there; returns its folder.

    Raises:
        UserError: there is no such task, or its data set cannot be built.
    """
    if name not in FACTS:
        raise UserError(f"--task={name}: choose one of {', '.join(FACTS)}")
    builder = stored.prepare(FACTS[name], data_dir, manual_dir)
    for split, info in builder.info.splits.items():
        print(f"data: {name} {split}: {info.num_examples:,} examples", file=sys.stderr)
    return str(builder.data_dir)


def show_examples(
    config: TaskConfig, split: str, count: int, position: float, is_coloured: bool
) -> str:
    """The first examples of a split, with what is what.

    Args:
        config: the task.
        split: `train` or `validation`.
        count: how many.
        position: of the attack, in [0, 1].
        is_coloured: whether spans are told apart by colour rather than by tags.

    Raises:
        UserError: the task cannot be loaded, or has fewer examples.
    """
    if not 0.0 <= position <= 1.0:
        raise UserError(f"--position={position}: must lie in [0, 1] (1 = suffix, 0 = prefix)")
    if count < 1:
        raise UserError(f"--n={count}: must be at least 1")
    task = load_task(_asks_only_for(config, split, count))
    examples = task.split(split)[:count]
    if len(examples) < count:
        raise UserError(f"--n={count}: task {task.name!r} has {len(examples)} {split} examples")
    parts = [_legend(is_coloured)]
    for example in examples:
        parts.append(_heading(task, split, example))
        shown = (_paint(span, is_coloured) for span in spans(example, task.chunk_kinds, position))
        parts.append("".join(shown))
    return "\n\n".join(parts)


def _asks_only_for(config: TaskConfig, split: str, count: int) -> TaskConfig:
    """The task with as few examples as can be; your own files are read whole in any case."""
    if config.name not in FACTS or split not in FACTS[config.name].sizes:
        return config
    sizes: dict[str, Any] = {
        f"num_{one}": count if one == split else 1 for one in FACTS[config.name].sizes
    }
    return dataclasses.replace(config, **sizes)


def spans(example: Example, chunk_kinds: tuple[ChunkKind, ...], position: float) -> Iterator[Span]:
    """The parts of a prompt in order, the slot among them; without it they are the prompt.

    Args:
        example: the prompt.
        chunk_kinds: what an attack may do to each chunk.
        position: of the attack, in [0, 1].
    """
    index, head, tail = slot_place(example, chunk_kinds, position)
    last = len(example.chunks) - 1
    for place, chunk in enumerate(example.chunks):
        if place == index:
            yield from (Span("attackable", head), Span("slot", _SLOT), Span("attackable", tail))
        elif place == 0:
            yield Span("instruction", chunk)
        else:
            yield Span("answer" if place == last else "content", chunk)


def _heading(task: Task, split: str, example: Example) -> str:
    right, wrong = (text.strip() for text in (example.gen_target, example.proxy_gen_target))
    where = f"{task.name} {split} {example.example_id}"
    return f"--- {where}: {right!r}, attacked toward {wrong!r}, {len(example.text):,} characters"


def _legend(is_coloured: bool) -> str:
    lines = (
        f"{_paint(Span(kind, kind), True) if is_coloured else f'<{kind}>'}: {meaning}"
        for kind, meaning in _MEANINGS.items()
    )
    return "\n".join(lines)


def _paint(span: Span, is_coloured: bool) -> str:
    if not span.text:
        return ""
    text = _harmless(span.text)
    if not is_coloured:
        return f"<{span.kind}>{text}</{span.kind}>"
    # A terminal paints to the edge of the window unless each line is painted by itself.
    lines = text.split("\n")
    return "\n".join(f"\x1b[{_COLOURS[span.kind]}m{line}\x1b[0m" if line else "" for line in lines)


def _harmless(text: str) -> str:
    """Control characters as escapes: a text from the internet may not steer a terminal."""
    return "".join(
        one if one in "\n\t" or one.isprintable() else one.encode("unicode_escape").decode()
        for one in text
    )


def wants_colour(choice: str) -> bool:
    """Whether stdout is painted (`auto`: a terminal, and the user has not set NO_COLOR)."""
    if choice == "auto":
        return sys.stdout.isatty() and not os.environ.get("NO_COLOR")
    return choice == "always"
