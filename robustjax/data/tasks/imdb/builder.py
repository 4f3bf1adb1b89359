"""IMDB as a TFDS data set."""

import re
from collections.abc import Iterator

from robustjax.data.prompts import Example
from robustjax.data.tasks.archive import read_members
from robustjax.data.tasks.builder import TaskBuilder, shuffled
from robustjax.data.tasks.imdb import FACTS
from robustjax.data.tasks.sources import Source
from robustjax.errors import UserError

_FOLDERS = {"train": "train", "validation": "test"}
_CLASSES = ("neg", "pos")
_NAME = re.compile(r"aclImdb/(train|test)/(neg|pos)/(\d+)_\d+\.txt")


class Imdb(TaskBuilder):
    """The labelled reviews; the owner's test set is validation.

    Before shuffling they stand by class, then by the number in their file's name.
    """

    FACTS = FACTS
    SOURCES = {
        "archive": Source(
            "https://ai.stanford.edu/~amaas/data/sentiment/aclImdb_v1.tar.gz",
            "aclImdb_v1.tar.gz",
            # Computed by the TFDS project, for its own builder of these reviews.
            "c40f74a18d3b61f90feba1e17730e0d38e8b97c05fde7008942e91923d1658fe",
        )
    }

    def examples(self, split: str) -> Iterator[Example]:
        """The reviews."""
        path = self.found["archive"].path
        reviews = []
        for name, data in read_members(path, _NAME.pattern):
            match = _NAME.fullmatch(name)
            assert match is not None
            folder, kind, number = match.groups()
            if folder == _FOLDERS[split]:
                try:
                    text = data.decode("utf-8")
                except UnicodeDecodeError as error:
                    raise UserError(f"{path}: {name} is not UTF-8 ({error.reason})") from error
                reviews.append((_CLASSES.index(kind), int(number), text))
        if not reviews:
            raise UserError(f"{path} has no reviews in aclImdb/{_FOLDERS[split]}: is it another?")
        for index, (label, _, text) in shuffled(sorted(reviews)):
            if text.strip():
                yield FACTS.example(index, (text,), label)


Builder = Imdb
