"""What names a data set: the settings of `load_task`."""

from dataclasses import dataclass

from robustjax.errors import UserError


@dataclass(frozen=True)
class TaskConfig:
    """Settings of a task.

    Attributes:
        name: one of `robustjax.data.tasks.TASKS`.
        num_train: training examples to take, from the start of the shuffled split; 0 takes all.
        num_validation: the same for validation.
        train_path: file of the `jsonl` task; may be empty when only validation is needed.
        validation_path: file of the `jsonl` task.
        seed: seed of generation and shuffling; it picks the data set, not the run.
        class_names: answer texts of a `jsonl` task's classes (default: taken from the rows, or
            " CLASS0", " CLASS1", ...).
        instruction: overrides what the model is told, for every task whose rows do not carry it.
        too_long: what becomes of examples that do not fit the model's context together with an
            attack: "refuse" stops, "drop" leaves them out and counts them.
        data_dir: where data sets made of the owners' files are built, local or `gs://`; empty takes
            what TFDS does (`TFDS_DATA_DIR`, or tensorflow_datasets in the home folder).
        manual_dir: folder with the owners' files, for a machine that cannot download them.
    """

    name: str
    num_train: int = 0
    num_validation: int = 0
    train_path: str = ""
    validation_path: str = ""
    seed: int = 0
    class_names: tuple[str, ...] = ()
    instruction: str = ""
    too_long: str = "refuse"
    data_dir: str = ""
    manual_dir: str = ""


def taken(config: TaskConfig, split: str, available: int) -> int:
    """How many examples of a split are taken.

    Raises:
        UserError: more are asked for than there are.
    """
    wanted: int = getattr(config, f"num_{split}")
    if wanted > available:
        raise UserError(
            f"task.num_{split}={wanted}: task {config.name!r} has {available} {split} examples "
            "(0 takes all of them)"
        )
    return wanted or available
