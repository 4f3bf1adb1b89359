"""Which examples fit a context with an attack in them; decided before anything is computed."""

import dataclasses
from collections.abc import Sequence

import numpy as np
from jaxtyping import Int

from robustjax.data.prompts import ChunkKind, Example, Task, split_at_slot
from robustjax.data.tokens import Tokenizer
from robustjax.errors import UserError

SPLITS = ("train", "validation")
_NAMED = 3  # examples that a message lists


def fit(
    task: Task, tokenizer: Tokenizer, room: int, policy: str, positions: Sequence[float] = (1.0,)
) -> Task:
    """Refuses or drops the examples that are too long.

    Args:
        task: the data.
        tokenizer: what the model reads with.
        room: tokens that an example may have, the attack's slot not counted.
        policy: "refuse" or "drop".
        positions: where attacks put their slots; none if there is no attack.

    Returns:
        The task without the dropped examples; `source["dropped_too_long"]` counts them by split.

    Raises:
        UserError: an example does not fit and the policy is "refuse"; a split or a class would be
            dropped altogether.
    """
    kept: dict[str, tuple[Example, ...]] = {}
    where = "beside an attack" if positions else "into the model's context"
    for split in SPLITS:
        examples: tuple[Example, ...] = getattr(task, split)
        lengths = needed_tokens(examples, task.chunk_kinds, tokenizer, positions)
        long = np.flatnonzero(lengths > room)
        if len(long) and policy == "refuse":
            first = long[0]
            raise UserError(
                f"{split} example {examples[first].example_id} of task {task.name!r} has "
                f"{lengths[first]} tokens, {room} fit {where}; {len(long)} of "
                f"{len(examples)} {split} examples are too long: shorten them, or set "
                "task.too_long=drop to leave them out"
            )
        kept[split] = tuple(e for e, n in zip(examples, lengths, strict=True) if n <= room)
        lost = {e.label for e in examples} - {e.label for e in kept[split]}
        if lost:
            raise UserError(
                f"no {split} example of class {min(lost)} of task {task.name!r} has at most {room} "
                f"tokens, which is what fits {where}; shorten them"
            )
    dropped = {split: len(getattr(task, split)) - len(kept[split]) for split in SPLITS}
    source = task.source | {"dropped_too_long": dropped}
    return dataclasses.replace(
        task, train=kept["train"], validation=kept["validation"], source=source
    )


def named_difference(given: Sequence[Example], kept: Sequence[Example]) -> str:
    """How many were left out, and the ids of the first: "5 (3, 7, 9, ...)"."""
    ids = {example.example_id for example in kept}
    left_out = [str(e.example_id) for e in given if e.example_id not in ids]
    if not left_out:
        return "0"
    shown = left_out[:_NAMED] + ["..."] * (len(left_out) > _NAMED)
    return f"{len(left_out)} ({', '.join(shown)})"


def needed_tokens(
    examples: Sequence[Example],
    chunk_kinds: tuple[ChunkKind, ...],
    tokenizer: Tokenizer,
    positions: Sequence[float],
) -> Int[np.ndarray, " N"]:
    """Tokens of each example, whole and cut open at each position: a cut can cost a few more."""
    needed = _lengths(tokenizer, [example.text for example in examples])
    for position in sorted(set(positions)):
        cuts = [split_at_slot(example, chunk_kinds, position) for example in examples]
        before = _lengths(tokenizer, [cut[0] for cut in cuts])
        needed = np.maximum(needed, before + _lengths(tokenizer, [cut[1] for cut in cuts]))
    return needed


def _lengths(tokenizer: Tokenizer, texts: list[str]) -> Int[np.ndarray, " N"]:
    return np.array([len(ids) for ids in tokenizer.encode(texts)], np.int64)
