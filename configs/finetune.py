"""Clean training of one model.

robustjax finetune --config=configs/finetune.py:point=nano-27k,task=password_match --workdir=runs/m
"""

from ml_collections import ConfigDict

from configs.common import (
    WIDER_EDGES,
    edges_for,
    filled,
    is_generated,
    parse_arg,
    task_settings,
    train_settings,
)
from configs.points import (
    NANO,
    NANO_FEW_LONG,
    PUBLISHED,
    PUBLISHED_POINTS,
    slice_settings,
    training_model,
)


def get_config(arg: str | None = None) -> ConfigDict:
    """The training.

    Arguments: ``point`` (nano-* from scratch, others from their published weights; empty if
    ``--config.model.path`` says where to start), ``task`` (see ``robustjax data list``) and
    ``seed``. ``--config.objective=lm`` trains a language model of the task's texts.
    """
    from robustjax.commands.finetune import FinetuneRunConfig

    args = parse_arg(arg, point="", task="password_match", seed=0)
    rows = NANO if is_generated(args["task"]) else NANO_FEW_LONG
    is_nano = args["point"] in rows
    row = rows[args["point"]]["finetune"] if is_nano else PUBLISHED
    published = PUBLISHED_POINTS.get(args["point"], {})
    values = {
        "model": {"point": args["point"]} | training_model(published),
        "task": task_settings(args["task"], is_nano=is_nano, num_train=20_000, num_validation=400),
        "objective": "classifier",
        "finetune": {
            "num_train": row["num_train"],
            "train": train_settings(
                row,
                edges_for(args["task"]) + WIDER_EDGES,
                schedule="cosine" if is_nano else "linear",
                warmup_steps=50 if is_nano else 0,
            ),
        },
        "seed": args["seed"],
    }
    if published:
        values["finetune"]["train"]["microbatch_size"] = published["microbatch_size"]
        values |= slice_settings(published, is_trained=True)
    config = filled(FinetuneRunConfig, values)
    del config.finetune.objective  # it stands one level higher
    return config
