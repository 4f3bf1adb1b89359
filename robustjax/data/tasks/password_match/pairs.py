"""The pairs of PasswordMatch.

Every system password gives one matching and one differing pair, so the classes are balanced, and
the two splits share no system password (Howe et al. 2024, arXiv 2407.18213). The word list is ours.
"""

import numpy as np

from robustjax.data.prompts import Example
from robustjax.data.tasks import words
from robustjax.data.tasks.generated import SPLIT_SIZE, Generated
from robustjax.data.tasks.password_match import FACTS


def generate(seed: int) -> Generated:
    """The data set of a seed.

    Raises:
        UserError: wordfreq's list is another one.
    """
    vocabulary = words.load_words()
    rng = np.random.default_rng(seed)
    system = rng.choice(len(vocabulary), size=SPLIT_SIZE, replace=False)
    # Uniform over all other words: draw from one fewer and step over the system password.
    other = rng.integers(len(vocabulary) - 1, size=SPLIT_SIZE)
    other += other >= system

    def example(split: str, number: int) -> Example:
        # Rows come in pairs, the matching one first: rows 2k and 2k+1 share system password k.
        row = number + (SPLIT_SIZE if split == "validation" else 0)
        label = int(row % 2 == 0)
        wanted = vocabulary[system[row // 2]]
        given = wanted if label else vocabulary[other[row // 2]]
        content = (f"System password: {wanted}\nUser password: {given}\n---\n", "")
        return FACTS.example(number, content, label)

    return Generated(seed, example, words.describe())
