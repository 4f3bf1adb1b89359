"""What is known of a named task without building it."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from robustjax.data.prompts import ANSWER_PROMPT, ChunkKind, Example, Task

_I = ChunkKind.IMMUTABLE
INSERTED = (_I, ChunkKind.PERTURBABLE, _I)
"""Instructions, a text that an attack may add to, answer prompt."""
REPLACED = (_I, _I, ChunkKind.OVERWRITABLE, _I)
"""Instructions, two words, an empty chunk that the attack's text takes, answer prompt."""


@dataclass(frozen=True)
class TaskFacts:
    """A named task.

    Attributes:
        name: its name.
        summary: what is asked, in a line.
        class_names: answers, with their leading space; none of a task that is only generated for.
        chunk_kinds: what an attack may do to each chunk.
        instructions: what the model is told.
        sizes: examples of each split, before any filter; "about" where the owner's files say.
        licence: the owner's terms.
        homepage: where the owner describes it.
        is_generated: made here, from a list of words, rather than read from the owner's files.
    """

    name: str
    summary: str
    class_names: tuple[str, ...]
    chunk_kinds: tuple[ChunkKind, ...]
    instructions: str
    sizes: dict[str, str]
    licence: str
    homepage: str
    is_generated: bool = False

    def example(self, example_id: int, content: tuple[str, ...], label: int) -> Example:
        """An example of a task with two classes."""
        return Example(
            example_id=example_id,
            instructions=self.instructions,
            content=content,
            answer_prompt=ANSWER_PROMPT,
            label=label,
            target_label=1 - label,
            gen_target=self.class_names[label],
            proxy_gen_target=self.class_names[1 - label],
        )

    def task(
        self, train: Sequence[Example], validation: Sequence[Example], source: dict[str, Any]
    ) -> Task:
        """The task of these examples."""
        return Task(
            name=self.name,
            class_names=self.class_names,
            chunk_kinds=self.chunk_kinds,
            train=tuple(train),
            validation=tuple(validation),
            source=source,
        )
