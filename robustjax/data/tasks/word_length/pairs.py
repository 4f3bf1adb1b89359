"""The pairs of WordLength.

Two independent draws with replacement, ties to FIRST (Howe et al. 2024, arXiv 2407.18213), from our
own word list. Unlike there, a pair that occurs in training, in either order, is left out of
validation and another one takes its place.
"""

import numpy as np
from jaxtyping import Bool, Int

from robustjax.data.prompts import Example
from robustjax.data.tasks import words
from robustjax.data.tasks.generated import SPLIT_SIZE, Generated
from robustjax.data.tasks.word_length import FACTS

_SPARE = 1000  # pairs drawn beyond the two splits; a few are needed


def generate(seed: int) -> Generated:
    """The data set of a seed.

    Raises:
        UserError: wordfreq's list is another one.
    """
    vocabulary = words.load_words()
    rng = np.random.default_rng(seed)
    sizes = 2 * SPLIT_SIZE, 2 * SPLIT_SIZE, (_SPARE, 2)
    first, second, spare = (rng.integers(len(vocabulary), size=size) for size in sizes)
    pairs = np.stack([first, second], axis=1)

    def is_seen(some: Int[np.ndarray, "N 2"]) -> Bool[np.ndarray, " N"]:
        """Whether training has a pair, in either order."""
        # One number for each unordered pair.
        train, asked = (x.min(1) * len(vocabulary) + x.max(1) for x in (pairs[:SPLIT_SIZE], some))
        return np.isin(asked, train)

    leaked = SPLIT_SIZE + np.flatnonzero(is_seen(pairs[SPLIT_SIZE:]))
    pairs[leaked] = spare[~is_seen(spare)][: len(leaked)]

    def example(split: str, number: int) -> Example:
        row = number + (SPLIT_SIZE if split == "validation" else 0)
        a, b = (vocabulary[word] for word in pairs[row])
        content = (f"Word 1: {a}\nWord 2: {b}\n---\n", "")
        return FACTS.example(number, content, int(len(b) > len(a)))

    source = words.describe() | {"leaked_pairs_replaced": len(leaked)}
    return Generated(seed, example, source)
