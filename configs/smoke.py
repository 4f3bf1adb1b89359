"""A miniature of the whole study on a laptop CPU.

robustjax study --config=configs/smoke.py --workdir=runs/demo
"""

from ml_collections import ConfigDict

from configs.common import (
    edges_for,
    filled,
    is_generated,
    parse_arg,
    task_settings,
    train_settings,
)
from configs.points import NANO, NANO_FEW_LONG


def get_config(arg: str | None = None) -> ConfigDict:
    """The study.

    Arguments: ``task`` (see ``robustjax data list``), ``seed``, ``points`` for a part of the ladder
    (nano-27k+nano-80k), and ``pretrain`` to train each point as a language model first.
    """
    from robustjax.settings import StudyConfig

    args = parse_arg(arg, task="password_match", seed=0, points="+".join(NANO), pretrain=False)
    generated, edges = is_generated(args["task"]), edges_for(args["task"])
    rows = NANO if generated else NANO_FEW_LONG
    config = ConfigDict()

    config.task = task_settings(args["task"], is_nano=True, num_train=20_000, num_validation=400)
    config.seeds = (args["seed"],)

    # Evaluation: both attacks before hardening and after the last round, GCG after every round.
    config.evaluation = ConfigDict()
    config.evaluation.attacks = {
        "gcg": {"name": "gcg", "num_iterations": 10, "num_candidates": 128},
        "random_token": {
            "name": "random_token",
            "num_iterations": 64,
            "iterations_per_pass": 32,
        },
    }
    config.evaluation.transfer = {
        "before_and_after": {"rounds": "last"},
        "on_the_way": {
            "attacks": ("gcg",),
            "trained_on": ("gcg",),
            "rounds": "all",
            "num_examples": 24,
        },
    }
    config.evaluation.num_examples = 64  # correctly answered ones
    config.evaluation.min_accuracy = 0.9 if generated else 0.0
    config.evaluation.seed = 0
    config.evaluation.companion = ""  # folder of a second model, for attacks that ask one
    config.evaluation.sampler = None  # or a language model for them that is trained first
    config.evaluation.perplexity_filter = None  # or a defence whose detection rates are reported

    # Scaling points.
    names = args["points"].split("+")
    config.points = {name: _point(rows[name], edges, args["pretrain"]) for name in names}

    config.mesh = {"data": 1, "fsdp": 1, "tensor": 1}
    config.workers = 2
    return filled(StudyConfig, config.to_dict())


def _point(row: dict, edges: tuple[int, ...], is_pretrained: bool) -> dict:
    finetune, advtrain, pretrain = row["finetune"], row["advtrain"], row["pretrain"]
    search = {"batch_size": 16, "edges": edges}

    def rounds(attack: dict, start: int, end: int, share: float) -> dict:
        return {
            "attacks": {
                attack["name"]: {
                    "attack": attack,
                    # Attack iterations, first to last round.
                    "schedule": {"start": start, "end": end},
                },
            },
            "num_rounds": 3,
            "examples_per_round": int(share * advtrain["examples"]),
            "pool": {
                "max_examples": int(share * advtrain["sample"]),
                "max_adversarial_share": advtrain.get("adversarial", 0.8),
                "loss_rank_weight": 0.5,
                "decay": 0.005,
            },
            "train": train_settings(advtrain, edges, schedule="cosine", warmup_steps=0),
            "search": search,
        }

    # Weaker than the attacks of the evaluation, and from other starts: cheap texts of many kinds.
    gcg = {"name": "gcg", "num_candidates": 16, "random_start": True}
    random_token = {"name": "random_token", "iterations_per_pass": 4}
    return {
        "finetune": {
            "num_train": finetune["num_train"],
            "train": train_settings(finetune, edges, schedule="cosine", warmup_steps=50),
            "checkpoint_every": 500,
        },
        "advtrain": {
            "gcg": rounds(gcg, 1, 3, share=1.0),
            "random_token": rounds(random_token, 4, 4, share=0.25),
        },
        "search": search,
        "numerics": {
            "param_dtype": "float32",
            "compute_dtype": "float32",
            "accumulation_dtype": "float32",
            "matmul_precision": "highest",
        },
        "remat": "none",
        "pretrain": (
            {
                "objective": "lm",
                "num_train": pretrain["num_train"],
                "train": train_settings(pretrain, edges, schedule="cosine", warmup_steps=50),
                "checkpoint_every": 500,
            }
            if is_pretrained
            else None
        ),
    }
