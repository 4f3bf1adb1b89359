"""A config: the whole study in miniature, small enough to be run again and again by tests.

robustjax study --config=tests/tiny_study.py --workdir=W
"""

from ml_collections import ConfigDict

from configs.common import parse_arg

EDGES = (64, 1024)  # generated prompts fit the first, so a point compiles one train step


def get_config(arg: str | None = None) -> ConfigDict:
    """Two evaluation attacks, two rounds of hardening.

    Arguments: ``rounds``, ``points`` for more than the smallest scaling point, and ``pretrain``.
    """
    args = parse_arg(arg, rounds=2, points="nano-27k", pretrain=False)
    num_rounds = args["rounds"]
    gcg = {
        "name": "gcg",
        "num_iterations": 2,
        "num_candidates": 16,
        "candidate_chunk": 16,
        "num_tokens": 4,
    }
    random_token = {
        "name": "random_token",
        "num_iterations": 8,
        "iterations_per_pass": 8,
        "num_tokens": 4,
    }
    # Copied wherever they stand: a config keeps shared dicts shared, also when one is overridden.
    train = {
        "epochs": 1,
        "batch_size": 8,
        "microbatch_size": 4,
        "edges": EDGES,
        "optimizer": {"learning_rate": 1e-2},
    }
    search = {"batch_size": 4, "edges": EDGES}
    config = ConfigDict()
    config.task = {
        "name": "word_length",
        "num_train": 48,
        "num_validation": 64,
        "seed": 0,
        "train_path": "",
        "validation_path": "",
        "too_long": "refuse",
    }
    config.seeds = (0,)
    config.evaluation = {
        "attacks": {"gcg": gcg, "random_token": random_token},
        "transfer": {
            "before_and_after": {"rounds": "last"},
            "on_the_way": {
                "attacks": ("gcg",),
                "trained_on": ("gcg",),
                "rounds": "all",
                "num_examples": 6,
            },
        },
        "num_examples": 8,
        "min_accuracy": 0.0,
        "seed": 0,
    }
    config.points = {
        name: {
            "finetune": {"train": {**train}, "checkpoint_every": 2, "num_train": 0},
            "advtrain": {
                "gcg": {
                    "attacks": {
                        "gcg": {
                            "attack": {**gcg},
                            "schedule": {"start": 1, "end": 2 if num_rounds > 1 else 1},
                        },
                    },
                    "checkpoint_every": 2,
                    "num_rounds": num_rounds,
                    "examples_per_round": 8,
                    "pool": {"max_examples": 24, "max_adversarial_share": 0.5},
                    "train": {**train},
                    "search": {**search},
                }
            },
            "search": search,
            "pretrain": (
                {"objective": "lm", "train": {**train}, "checkpoint_every": 2}
                if args["pretrain"]
                else None
            ),
        }
        for name in args["points"].split("+")
    }
    config.mesh = {"data": 1, "fsdp": 1, "tensor": 1}
    config.workers = 1
    return config
