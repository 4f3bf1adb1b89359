"""A miniature of the whole study on a laptop CPU.

robustjax study --config=configs/smoke.py --workdir=runs/demo
"""

from ml_collections import ConfigDict

from configs.common import parse_arg
from configs.points import NANO

# Widths that token rows are padded to. Prompts of the generated tasks have 41 to 60 tokens.
EDGES = (52, 64, 128, 256, 512, 1024)


def get_config(arg: str | None = None) -> ConfigDict:
    """The study.

    Arguments: ``task`` (password_match, word_length, jsonl), ``seed``, and ``points`` for a part of
    the ladder (nano-27k+nano-80k).
    """
    args = parse_arg(arg, task="password_match", seed=0, points="+".join(NANO))
    generated = args["task"] != "jsonl"
    config = ConfigDict()

    # Data.
    config.task = ConfigDict()
    config.task.name = args["task"]
    config.task.num_train = 20_000 if generated else 0  # 0 takes all
    config.task.num_validation = 400 if generated else 0
    config.task.seed = 0
    config.task.train_path = ""  # jsonl only
    config.task.validation_path = ""
    config.task.instruction = ""  # "" keeps the task's own

    config.seeds = (args["seed"],)

    # Evaluation: both attacks before hardening and after the last round, GCG after every round.
    config.evaluation = ConfigDict()
    config.evaluation.attacks = {
        "gcg": {"name": "gcg", "num_iterations": 10, "num_candidates": 128, "candidate_chunk": 16},
        "random_token": {
            "name": "random_token",
            "num_iterations": 128,
            "iterations_per_pass": 32,
        },
    }
    config.evaluation.every_round = ("gcg",)
    config.evaluation.num_examples = 64  # correctly answered ones
    config.evaluation.min_accuracy = 0.9 if generated else 0.0
    config.evaluation.seed = 0

    # Scaling points.
    config.points = {name: _point(NANO[name], generated) for name in args["points"].split("+")}

    config.mesh = {"data": 1, "fsdp": 1, "tensor": 1}
    return config


def _point(row: dict, generated: bool) -> dict:
    train = {
        "batch_size": row["batch_size"],
        "microbatch_size": row["batch_size"],
        "edges": EDGES,
    }
    optimizer = {"name": "adafactor", "learning_rate": row["learning_rate"], "warmup_steps": 50}
    search = {"batch_size": 16, "edges": EDGES}

    def advtrain(attack: dict, start: int, end: int) -> dict:
        return {
            "attack": attack,
            "schedule": {"start": start, "end": end},  # attack iterations, first to last round
            "num_rounds": 3,
            "examples_per_round": 96,
            "pool": {
                "max_examples": 480,
                "max_adversarial_share": 0.8,
                "loss_rank_weight": 0.5,
                "decay": 0.005,
            },
            "train": {
                **train,
                "batch_size": 8,
                "microbatch_size": 8,
                "epochs": 4,
                "optimizer": {
                    "name": "adafactor",
                    "learning_rate": row["learning_rate"] / 4,
                    "schedule": "constant",
                },
            },
            "search": search,
        }

    return {
        "finetune": {
            "num_train": row["num_train"] if generated else 0,
            "train": {
                **train,
                "epochs": row["epochs"],
                "optimizer": {**optimizer, "schedule": "cosine"},
            },
            "checkpoint_every": 250,
        },
        "advtrain": {
            "gcg": advtrain({"name": "gcg", "candidate_chunk": 16}, 1, 5),
            "random_token": advtrain({"name": "random_token", "iterations_per_pass": 32}, 32, 32),
        },
        "search": search,
    }
