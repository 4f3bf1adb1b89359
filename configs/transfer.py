"""Transfer of defences: hardened against one attack, attacked with others, over sizes and seeds.

robustjax study --config=configs/transfer.py:task=spam --workdir=runs/transfer

One's own texts are `task=jsonl` with `--config.task.train_path` and `validation_path`.

Models are hardened against GCG at the end of the text, and against random tokens. Before and after,
they are attacked with GCG at the end and with random tokens; those hardened against GCG, and those
not hardened, also with GCG inside the text and at its beginning, and with BEAST. Its tokens come
from a language model of the smallest point that the study trains first, which is also the
perplexity filter of which detection rates are reported.
"""

from ml_collections import ConfigDict

from configs import smoke
from configs.common import edges_for, filled, is_generated, parse_arg, train_settings
from configs.points import NANO, NANO_FEW_LONG

POINTS = "nano-27k+nano-80k+nano-230k+nano-510k"
SAMPLER = "nano-27k"


def get_config(arg: str | None = None) -> ConfigDict:
    """The study.

    Arguments: ``task`` (see ``robustjax data list``), ``points``, ``rounds`` of hardening,
    ``seeds`` (how many) and ``seed`` (the first).
    """
    from robustjax.settings import StudyConfig

    args = parse_arg(arg, task="jsonl", points=POINTS, rounds=3, seeds=2, seed=0)
    generated = is_generated(args["task"])
    config = smoke.get_config(f"task={args['task']},points={args['points']}")
    config.seeds = tuple(range(args["seed"], args["seed"] + args["seeds"]))
    evaluation = config.evaluation
    evaluation.min_accuracy = 0.7
    evaluation.num_examples = 24
    evaluation.attacks.gcg.num_iterations = 8
    with evaluation.unlocked():
        evaluation.attacks.beast = {"name": "beast", "num_iterations": 12, "beam_width": 7}
        evaluation.attacks.beast.branch_factor = 7
    hardened_by_gcg = {"trained_on": ("none", "gcg")}
    evaluation.transfer = {
        "own": {"attacks": ("gcg", "random_token")},
        "inside": {"attacks": ("gcg",), "positions": (0.9,)} | hardened_by_gcg,
        # Every candidate moves all of the text that follows it, so each example is dear.
        "beginning": {"attacks": ("gcg",), "positions": (0.0,), "num_examples": 12}
        | hardened_by_gcg,
        "beast": {"attacks": ("beast",)} | hardened_by_gcg,
    }
    row = (NANO if generated else NANO_FEW_LONG)[SAMPLER]["pretrain"]
    edges = edges_for(args["task"])
    evaluation.sampler = {
        "point": SAMPLER,
        "train": {
            "objective": "lm",
            "num_train": row["num_train"],
            "train": train_settings(row, edges, schedule="cosine", warmup_steps=50),
        },
        "seed": 0,
    }
    evaluation.perplexity_filter = {"proportion": 0.01, "window": 8}
    for point in config.points.values():
        for run in point.advtrain.values():
            run.num_rounds = args["rounds"]
        if not generated:
            point.advtrain.gcg.attacks.gcg.schedule = {"start": 4, "end": 8}
            point.advtrain.random_token.attacks.random_token.schedule = {"start": 32, "end": 64}
            point.advtrain.random_token.examples_per_round = 200
            point.advtrain.random_token.pool.max_examples = 600
    return filled(StudyConfig, config.to_dict())
