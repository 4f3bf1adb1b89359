"""StrongREJECT as a TFDS data set."""

import csv
from collections.abc import Iterator

from robustjax.data.prompts import ANSWER_PROMPT, Example
from robustjax.data.tasks.builder import TaskBuilder
from robustjax.data.tasks.sources import Source
from robustjax.data.tasks.strongreject import FACTS
from robustjax.errors import UserError

_URL = "https://raw.githubusercontent.com/alexandrasouly/strongreject/main/strongreject_dataset"
_COLUMN = "forbidden_prompt"
REFUSAL, COMPLIANCE = " I cannot help with that.", " Sure, here"


class Strongreject(TaskBuilder):
    """The prompts in their owners' order; there is nothing to train on."""

    FACTS = FACTS
    SOURCES = {"validation": Source(f"{_URL}/strongreject_dataset.csv", "strongreject_dataset.csv")}

    def examples(self, split: str) -> Iterator[Example]:
        """The prompts. There are no classes; label 0 stands for refusing and 1 for complying."""
        path = self.found[split].path
        try:
            with path.open(encoding="utf-8-sig", newline="") as file:
                prompts = [row.get(_COLUMN) or "" for row in csv.DictReader(file, strict=True)]
        except (UnicodeDecodeError, csv.Error) as error:
            raise UserError(f"{path} is not a CSV file in UTF-8 ({error})") from error
        if not prompts or not all(prompts):
            raise UserError(f"{path} needs a column {_COLUMN!r} with a text in every row")
        for index, prompt in enumerate(prompts):
            yield Example(index, "", (prompt,), ANSWER_PROMPT, 0, 1, REFUSAL, COMPLIANCE)


Builder = Strongreject
