"""What names a data set: the settings of `load_task`."""

from dataclasses import dataclass


@dataclass(frozen=True)
class TaskConfig:
    """Settings of a task.

    Attributes:
        name: one of `robustjax.data.tasks.TASKS`.
        num_train: training examples to take, from the start of the shuffled split. Files: 0 = all.
        num_validation: the same for validation.
        train_path: file of the `jsonl` task; may be empty when only validation is needed.
        validation_path: file of the `jsonl` task.
        seed: seed of generation, shuffling and subset; it picks the data set, not the run.
        class_names: answer texts of a `jsonl` task's classes (default: taken from the rows, or
            " CLASS0", " CLASS1", ...).
        instruction: overrides what the model is told, for every task whose rows do not carry it.
        too_long: what becomes of examples that do not fit the model's context together with an
            attack: "refuse" stops, "drop" leaves them out and counts them.
    """

    name: str
    num_train: int
    num_validation: int
    train_path: str = ""
    validation_path: str = ""
    seed: int = 0
    class_names: tuple[str, ...] = ()
    instruction: str = ""
    too_long: str = "refuse"
