"""What an example is: a text in chunks, exactly one of which an attack may touch.

The record format and the chunk kinds follow Howe et al. 2024 (arXiv 2407.18213): an example is
`instructions + content chunks + answer prompt`, and the model reads the concatenation.
"""

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from robustjax.errors import UserError

ANSWER_PROMPT = "\n\nAnswer:"

ROW_FIELDS = (
    "instructions",
    "content",
    "answer_prompt",
    "clf_label",
    "proxy_clf_label",
    "gen_target",
    "proxy_gen_target",
)


class ChunkKind(enum.Enum):
    """What an attack may do to a chunk of the prompt."""

    IMMUTABLE = 0
    """Nothing."""
    PERTURBABLE = 1
    """Insert text into it; the chunk's own text stays, so its meaning does."""
    OVERWRITABLE = 2
    """Replace it: the attack text stands in its place."""


def modifiable_index(chunk_kinds: tuple[ChunkKind, ...]) -> int:
    """Returns the index of the one chunk an attack may touch.

    Raises:
        ValueError: not exactly one chunk is modifiable.
    """
    found = [i for i, kind in enumerate(chunk_kinds) if kind is not ChunkKind.IMMUTABLE]
    if len(found) != 1:
        raise ValueError(
            f"chunk_kinds={[kind.name for kind in chunk_kinds]} has {len(found)} modifiable "
            "chunks: exactly one must be PERTURBABLE or OVERWRITABLE"
        )
    return found[0]


@dataclass(frozen=True, slots=True)
class Example:
    """One labelled prompt.

    Attributes:
        example_id: stable name of the example inside its split; it keys the attack's randomness, so
            it does not change when the split is shuffled or cut.
        instructions: what the model is told to do (may be empty).
        content: the example's own chunks.
        answer_prompt: the text after which the answer would stand.
        label: index of the correct class.
        target_label: index of the wrong class the attacker aims for.
        gen_target: text of the correct answer, with its leading space.
        proxy_gen_target: text of the answer the attacker aims for.
    """

    example_id: int
    instructions: str
    content: tuple[str, ...]
    answer_prompt: str
    label: int
    target_label: int
    gen_target: str
    proxy_gen_target: str

    @property
    def chunks(self) -> tuple[str, ...]:
        """All chunks in order; `text` is their concatenation."""
        return (self.instructions, *self.content, self.answer_prompt)

    @property
    def text(self) -> str:
        """The whole prompt as the model reads it when nobody attacks."""
        return "".join(self.chunks)

    @classmethod
    def from_row(cls, row: Mapping[str, Any], example_id: int) -> "Example":
        """Builds an example from a row in the stored record format.

        Args:
            row: a mapping with the fields `ROW_FIELDS`; further fields are ignored.
            example_id: the example's id inside its split.

        Raises:
            UserError: a field is missing or has the wrong type, or the target label is the label.
        """
        for name in ROW_FIELDS:
            if name not in row:
                raise UserError(
                    f"field {name!r} is missing: a row needs the fields {', '.join(ROW_FIELDS)}"
                )
        content = row["content"]
        if not isinstance(content, (list, tuple)) or not content:
            raise UserError(f"field 'content' is {content!r}: expected a non-empty list of texts")
        for position, chunk in enumerate(content):
            _require_text(f"content[{position}]", chunk)
        for name in ("instructions", "answer_prompt", "gen_target", "proxy_gen_target"):
            _require_text(name, row[name])
        label = require_label("clf_label", row["clf_label"])
        target_label = require_label("proxy_clf_label", row["proxy_clf_label"])
        if label == target_label:
            raise UserError(
                f"fields 'clf_label' and 'proxy_clf_label' are both {label}: "
                "the second must be the wrong class that an attack aims for"
            )
        return cls(
            example_id=example_id,
            instructions=row["instructions"],
            content=tuple(content),
            answer_prompt=row["answer_prompt"],
            label=label,
            target_label=target_label,
            gen_target=row["gen_target"],
            proxy_gen_target=row["proxy_gen_target"],
        )


@dataclass(frozen=True)
class Task:
    """A labelled data set, cut into a training and a validation split.

    Attributes:
        name: the task's name.
        class_names: the answer text of each class, with its leading space; none of prompts that
            have no right answer and are only generated for, whose labels say nothing then.
        chunk_kinds: what an attack may do to each chunk; exactly one chunk is modifiable.
        train: training examples, shuffled (empty when the task has only a validation file).
        validation: validation examples.
        source: where the data came from (hashes, counts, versions), ready for JSON.
    """

    name: str
    class_names: tuple[str, ...]
    chunk_kinds: tuple[ChunkKind, ...]
    train: tuple[Example, ...]
    validation: tuple[Example, ...]
    source: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Checks the invariants that every later stage leans on."""
        modifiable_index(self.chunk_kinds)
        if len(self.class_names) == 1 or len(set(self.class_names)) != len(self.class_names):
            raise ValueError(
                f"class_names={self.class_names} of task {self.name!r}: "
                "at least two different names are needed"
            )
        for split, examples in (("train", self.train), ("validation", self.validation)):
            for example in examples:
                self._check(split, example)

    def _check(self, split: str, example: Example) -> None:
        where = f"{split} example {example.example_id} of task {self.name!r}"
        if len(example.content) + 2 != len(self.chunk_kinds):
            raise ValueError(
                f"{where} has {len(example.content) + 2} chunks, "
                f"but chunk_kinds names {len(self.chunk_kinds)}"
            )
        if not self.class_names:
            return
        for name, value in (("label", example.label), ("target_label", example.target_label)):
            if not 0 <= value < self.num_classes:
                raise ValueError(f"{where} has {name}={value}: not in 0..{self.num_classes - 1}")

    @property
    def num_classes(self) -> int:
        """Number of classes."""
        return len(self.class_names)

    def split(self, name: str) -> tuple[Example, ...]:
        """Returns the split called `name` and insists that it has examples.

        Args:
            name: `train` or `validation`.

        Raises:
            UserError: there is no such split, or it is empty.
        """
        if name not in ("train", "validation"):
            raise UserError(f"split={name!r} does not exist: choose 'train' or 'validation'")
        examples: tuple[Example, ...] = self.train if name == "train" else self.validation
        if not examples:
            remedy = f"set task.{name}_path" if self.name == "jsonl" else "take another split"
            raise UserError(f"task {self.name!r} has no {name} examples: {remedy}")
        return examples


def split_at_slot(
    example: Example, chunk_kinds: tuple[ChunkKind, ...], position: float
) -> tuple[str, str]:
    """Returns the text before and the text after the attack slot; see `slot_place`.

    Returns:
        `(before, after)`; an attack text `s` gives the prompt `before + s + after`.
    """
    index, head, tail = slot_place(example, chunk_kinds, position)
    chunks = example.chunks
    return "".join(chunks[:index]) + head, tail + "".join(chunks[index + 1 :])


def slot_place(
    example: Example, chunk_kinds: tuple[ChunkKind, ...], position: float
) -> tuple[int, str, str]:
    """Returns where the attack slot lies.

    The slot lies in the one modifiable chunk. A PERTURBABLE chunk of n characters is cut after
    `int(n * position)` characters, so 1.0 makes the attack a suffix of that chunk, 0.0 a prefix of
    it and 0.9 an infix (words may be cut). An OVERWRITABLE chunk is dropped, whatever the position.
    (Howe et al. 2024, arXiv 2407.18213.)

    Args:
        example: the example to attack.
        chunk_kinds: the task's chunk kinds, one for each of `example.chunks`.
        position: where to cut, in [0, 1].

    Returns:
        The chunk's index, and its texts before and after the slot.

    Raises:
        ValueError: `position` is outside [0, 1], or `chunk_kinds` does not fit the example.
    """
    if not 0.0 <= position <= 1.0:
        raise ValueError(f"position={position}: must lie in [0, 1] (1 = suffix, 0 = prefix)")
    chunks = example.chunks
    if len(chunk_kinds) != len(chunks):
        raise ValueError(
            f"chunk_kinds names {len(chunk_kinds)} chunks, the example has {len(chunks)}"
        )
    index = modifiable_index(chunk_kinds)
    text = chunks[index] if chunk_kinds[index] is ChunkKind.PERTURBABLE else ""
    cut = int(len(text) * position)
    return index, text[:cut], text[cut:]


def require_label(name: str, value: Any) -> int:
    """Returns `value` if it is an integer class index; booleans and floats are not.

    Raises:
        UserError: it is something else, or negative.
    """
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise UserError(f"field {name!r} is {value!r}: expected an integer class index, 0 or more")
    return value


def _require_text(name: str, value: Any) -> None:
    if not isinstance(value, str):
        raise UserError(f"field {name!r} is {value!r}: expected a text")
    try:
        value.encode("utf-8")
    except UnicodeEncodeError:
        # json accepts "\ud800"; no tokenizer does, and it would fail far from here.
        raise UserError(f"field {name!r} holds a lone surrogate: it is not valid Unicode") from None
