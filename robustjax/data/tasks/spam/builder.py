"""Spam as a TFDS data set."""

from collections.abc import Iterator

from robustjax.data.prompts import Example
from robustjax.data.tasks.builder import TaskBuilder, shuffled
from robustjax.data.tasks.rows import read_objects, require_text
from robustjax.data.tasks.sources import Source
from robustjax.data.tasks.spam import FACTS
from robustjax.errors import UserError

_URL = "https://huggingface.co/datasets/SetFit/enron_spam/resolve/main"


class Spam(TaskBuilder):
    """Subject and body of each e-mail, in one text; the owner's test set is validation."""

    FACTS = FACTS
    SOURCES = {
        "train": Source(f"{_URL}/train.jsonl", "enron_spam-train.jsonl"),
        "validation": Source(f"{_URL}/test.jsonl", "enron_spam-test.jsonl"),
    }

    def examples(self, split: str) -> Iterator[Example]:
        """The e-mails; empty ones are left out."""
        path = self.found[split].path
        mails = []
        for line, fields in read_objects(path):
            if fields.get("label") not in (0, 1):
                raise UserError(f"{path}, line {line + 1}: field 'label' is neither 0 nor 1")
            mails.append((require_text(path, line, fields, "text"), int(fields["label"])))
        for index, (text, label) in shuffled(mails):
            if text.strip():
                yield FACTS.example(index, (text,), label)


Builder = Spam
