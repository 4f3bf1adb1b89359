"""Tasks as data sets of TFDS, built and read without TensorFlow.

Each row has the fields of `robustjax.data.prompts.ROW_FIELDS` and the example's id, in the order in
which examples are taken. Importing this module imports TFDS, which takes a moment.
"""

import abc
import logging
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar

import numpy as np
import tensorflow_datasets as tfds

from robustjax.data.prompts import Example
from robustjax.data.tasks import sources
from robustjax.data.tasks.facts import TaskFacts
from robustjax.data.tasks.generated import Generated
from robustjax.data.tasks.sources import Found, Source

_TEXTS = ("instructions", "answer_prompt", "gen_target", "proxy_gen_target")
_LABELS = ("clf_label", "proxy_clf_label")
_SHUFFLE_SEED = 0


class TaskBuilder(tfds.core.GeneratorBasedBuilder, skip_registration=True):  # type: ignore[call-arg]
    """A task's builder; a subclass says where rows come from."""

    VERSION = tfds.core.Version("1.0.0")
    FACTS: ClassVar[TaskFacts]
    SOURCES: ClassVar[Mapping[str, Source]] = {}
    manual_dir: str = ""
    """Folder of files downloaded by hand; set before the data set is prepared."""
    found: Mapping[str, Found] = {}
    """The owner's files, once they are here."""

    @property
    def root(self) -> str:
        """The folder of all data sets."""
        return str(self._data_dir_root)

    def is_prepared(self) -> bool:
        """Whether the data set is there; unlike TFDS, without a warning if it is not."""
        log = logging.getLogger("absl")
        level = log.level
        log.setLevel(logging.ERROR)
        try:
            return super().is_prepared()
        finally:
            log.setLevel(level)

    def _info(self) -> tfds.core.DatasetInfo:
        text = tfds.features.Text()
        fields: dict[str, Any] = {"example_id": np.int64, "content": tfds.features.Sequence(text)}
        fields |= dict.fromkeys(_LABELS, np.int64) | dict.fromkeys(_TEXTS, text)
        return tfds.core.DatasetInfo(
            builder=self,
            description=self.FACTS.summary,
            homepage=self.FACTS.homepage,
            license=self.FACTS.licence,
            features=tfds.features.FeaturesDict(fields),
            disable_shuffling=True,  # the order is the task's own
            metadata=tfds.core.MetadataDict(),
        )

    def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
        self.found = sources.find(self.SOURCES, dl_manager, self.root, self.manual_dir)
        self.info.metadata.update(self._provenance())
        return {split: self._generate_examples(split) for split in self.FACTS.sizes}

    def _provenance(self) -> dict[str, Any]:
        return {"files": {self.SOURCES[n].url: one.sha256 for n, one in self.found.items()}}

    def _generate_examples(self, split: str) -> Iterator[tuple[int, dict[str, Any]]]:
        for position, example in enumerate(self.examples(split)):
            yield position, to_row(example)

    @abc.abstractmethod
    def examples(self, split: str) -> Iterator[Example]:
        """The examples of a split in their order, from the files in `found`."""


class GeneratedBuilder(TaskBuilder, skip_registration=True):  # type: ignore[call-arg]
    """A builder of a generated task."""

    @staticmethod
    @abc.abstractmethod
    def generate(seed: int) -> Generated:
        """The data set of a seed."""

    def _provenance(self) -> dict[str, Any]:
        return self.generate(_SHUFFLE_SEED).source

    def examples(self, split: str) -> Iterator[Example]:
        """All examples of seed 0."""
        return self.generate(_SHUFFLE_SEED).examples(split)


def shuffled(rows: list[Any]) -> Iterator[tuple[int, Any]]:
    """Rows in the order of the published data sets, each with where its owner has it.

    That is the permutation of numpy's generator with seed 0 (Howe et al. 2024).
    """
    for index in np.random.default_rng(_SHUFFLE_SEED).permutation(len(rows)):
        yield int(index), rows[index]


def to_row(example: Example) -> dict[str, Any]:
    """The stored form of an example."""
    return {
        "example_id": example.example_id,
        "instructions": example.instructions,
        "content": list(example.content),
        "answer_prompt": example.answer_prompt,
        "clf_label": example.label,
        "proxy_clf_label": example.target_label,
        "gen_target": example.gen_target,
        "proxy_gen_target": example.proxy_gen_target,
    }


def from_row(row: Mapping[str, Any]) -> Example:
    """The example of a stored row, as TFDS gives it."""
    texts = {name: row[name].decode("utf-8") for name in _TEXTS}
    return Example(
        example_id=int(row["example_id"]),
        content=tuple(chunk.decode("utf-8") for chunk in row["content"]),
        label=int(row["clf_label"]),
        target_label=int(row["proxy_clf_label"]),
        **texts,
    )
