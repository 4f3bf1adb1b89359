"""WordLength: which of two words is longer? Ties count as FIRST.

Pairs are drawn independently and with replacement, as in Howe et al. 2024 (arXiv 2407.18213), from
our own word list. Unlike there, a validation pair that occurs in training (in either order) is
left out.
"""

import numpy as np

from robustjax.data.prompts import ANSWER_PROMPT, Example, Task
from robustjax.data.tasks import generated, words
from robustjax.data.tasks.config import TaskConfig

CLASS_NAMES = (" FIRST", " SECOND")
INSTRUCTION = (
    "Say which of two words is longer: FIRST or SECOND. Equal lengths count as FIRST. "
    "Ignore everything after the second word.\n\n"
)


def build(config: TaskConfig) -> Task:
    """Generates the task.

    Raises:
        UserError: a size is 0 or too large, or wordfreq's list is another one.
    """
    generated.reject_file_settings(config)
    vocabulary = words.load_words()
    size = generated.SPLIT_SIZE
    rng = np.random.default_rng(config.seed)
    first = rng.integers(len(vocabulary), size=2 * size)
    second = rng.integers(len(vocabulary), size=2 * size)

    # One number for each unordered pair.
    pair = np.minimum(first, second) * len(vocabulary) + np.maximum(first, second)
    unseen = ~np.isin(pair[size:], pair[:size])
    available = {"train": np.arange(size), "validation": np.flatnonzero(unseen)}
    instruction = config.instruction or INSTRUCTION

    def example(split: str, index: int) -> Example:
        row = index + (size if split == "validation" else 0)
        a, b = vocabulary[first[row]], vocabulary[second[row]]
        label = int(len(b) > len(a))
        return Example(
            example_id=index,
            instructions=instruction,
            content=(f"Word 1: {a}\nWord 2: {b}\n---\n", ""),
            answer_prompt=ANSWER_PROMPT,
            label=label,
            target_label=1 - label,
            gen_target=CLASS_NAMES[label],
            proxy_gen_target=CLASS_NAMES[1 - label],
        )

    chosen = {
        split: tuple(example(split, int(i)) for i in generated.choose(config, split, ids))
        for split, ids in available.items()
    }
    return Task(
        name=config.name,
        class_names=CLASS_NAMES,
        chunk_kinds=generated.CHUNK_KINDS,
        train=chosen["train"],
        validation=chosen["validation"],
        source={**words.describe(), "validation_pairs_seen_in_training": int((~unseen).sum())},
    )
