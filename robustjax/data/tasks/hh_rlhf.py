"""What the two tasks made of hh-rlhf share: pairs of conversations, one of them preferred."""

from collections.abc import Iterator

from robustjax.data.prompts import Example
from robustjax.data.tasks.builder import TaskBuilder, shuffled
from robustjax.data.tasks.rows import read_objects, require_text
from robustjax.data.tasks.sources import Source

_URL = "https://huggingface.co/datasets/Anthropic/hh-rlhf/resolve/main"
_FILES = {"train": "train", "validation": "test"}
_CONTENT = "Conversation 1\n---\n{}\n---\nConversation 2\n---\n{}\n---\n"


def sources(tranche: str) -> dict[str, Source]:
    """The two files of a tranche (`helpful-base`, `harmless-base`)."""
    return {
        split: Source(f"{_URL}/{tranche}/{name}.jsonl.gz", f"{tranche}-{name}.jsonl.gz")
        for split, name in _FILES.items()
    }


class PreferenceBuilder(TaskBuilder, skip_registration=True):  # type: ignore[call-arg]
    """A task that asks which conversation was preferred.

    At even places of the shuffled file the preferred one stands first (label 0), at odd places
    second (label 1).
    """

    def examples(self, split: str) -> Iterator[Example]:
        """The pairs; those with an empty conversation are left out."""
        path = self.found[split].path
        pairs = []
        for line, fields in read_objects(path):
            pair = [require_text(path, line, fields, name) for name in ("chosen", "rejected")]
            pairs.append(pair)
        for place, (index, (chosen, rejected)) in enumerate(shuffled(pairs)):
            label = place % 2
            first, second = (rejected, chosen) if label else (chosen, rejected)
            if first.strip() and second.strip():
                yield self.FACTS.example(index, (_CONTENT.format(first, second),), label)
