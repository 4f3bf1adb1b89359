"""Tasks made of a list of words: a whole data set is a function of its seed."""

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from jaxtyping import Int

from robustjax.data.prompts import Example, Task
from robustjax.data.tasks.config import TaskConfig, taken
from robustjax.data.tasks.facts import TaskFacts

SPLIT_SIZE = 25_000
"""Examples of each of the two splits."""

# Streams of the random generator beside the one that generates the pairs.
_STREAMS = {"train": 1, "validation": 2}


@dataclasses.dataclass(frozen=True)
class Generated:
    """A generated data set.

    Attributes:
        seed: what it was generated from.
        example: the example of a split and an id in 0..`SPLIT_SIZE` - 1.
        source: where it came from, ready for JSON.
    """

    seed: int
    example: Callable[[str, int], Example]
    source: dict[str, Any]

    def order(self, split: str) -> Int[np.ndarray, " N"]:
        """The ids of a split, shuffled by the seed."""
        return np.random.default_rng((self.seed, _STREAMS[split])).permutation(SPLIT_SIZE)

    def examples(self, split: str, count: int = SPLIT_SIZE) -> Iterator[Example]:
        """The first examples of a shuffled split."""
        return (self.example(split, int(number)) for number in self.order(split)[:count])


def load(config: TaskConfig, facts: TaskFacts, generate: Callable[[int], Generated]) -> Task:
    """The task in memory; nothing is written.

    Args:
        config: gives the seed and how many examples to take; 0 takes all.
        facts: what is known of the task.
        generate: makes the data set of a seed.

    Raises:
        UserError: more examples are asked for than there are, or wordfreq's list is another one.
    """
    counts = {split: taken(config, split, SPLIT_SIZE) for split in _STREAMS}
    whole = generate(config.seed)
    train, validation = (list(whole.examples(split, n)) for split, n in counts.items())
    return facts.task(train, validation, whole.source)
