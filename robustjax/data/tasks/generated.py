"""What the generated tasks share: their size, and how a split is shuffled and cut."""

import numpy as np
from jaxtyping import Int

from robustjax.data.prompts import ChunkKind
from robustjax.data.tasks.config import TaskConfig
from robustjax.errors import UserError

SPLIT_SIZE = 25_000
"""Examples generated for each of the two splits."""

CHUNK_KINDS = (
    ChunkKind.IMMUTABLE,  # instructions
    ChunkKind.IMMUTABLE,  # the two words
    ChunkKind.OVERWRITABLE,  # empty; the attack text stands here
    ChunkKind.IMMUTABLE,  # answer prompt
)

# Streams of the random generator beside the one that generates the pairs.
_STREAMS = {"train": 1, "validation": 2}


def choose(
    config: TaskConfig, split: str, available: Int[np.ndarray, " N"]
) -> Int[np.ndarray, " M"]:
    """Shuffles a split and takes its first examples.

    Args:
        config: gives the seed and the number to take.
        split: `train` or `validation`.
        available: int [N], ids of the generated examples that may be used.

    Returns:
        int [M], the chosen ids; a smaller M is a prefix of a larger one.

    Raises:
        UserError: the number asked for is 0, or more than there are.
    """
    wanted = config.num_train if split == "train" else config.num_validation
    if not 1 <= wanted <= len(available):
        raise UserError(
            f"task.num_{split}={wanted}: task {config.name!r} has {len(available)} {split} "
            f"examples, choose 1 to {len(available)}"
        )
    order = np.random.default_rng((config.seed, _STREAMS[split])).permutation(len(available))
    return available[order[:wanted]]


def reject_file_settings(config: TaskConfig) -> None:
    """Refuses settings that only a task read from files uses.

    Raises:
        UserError: one of them is set.
    """
    for name in ("train_path", "validation_path", "class_names"):
        if getattr(config, name):
            raise UserError(
                f"task.{name}={getattr(config, name)!r} has no effect on the generated task "
                f"{config.name!r}: leave it empty, or set task.name='jsonl'"
            )
