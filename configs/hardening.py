"""GCG adversarial training of a part of the nano ladder, attacked by GCG before and after it.

robustjax study --config=configs/hardening.py:task=word_length --workdir=runs/hardening

One's own texts are `task=jsonl` with `--config.task.train_path` and `validation_path`.
"""

from ml_collections import ConfigDict

from configs import smoke
from configs.common import filled, is_generated, parse_arg

# Seeds differ widely on word_length; more rounds bring the slow ones down.
WORD_LENGTH_ROUNDS = {"nano-230k": 8, "nano-510k": 8}
# It asks more of these than password_match does: with fewer texts a round they do not harden.
MANY_EXAMPLES = ("nano-230k", "nano-510k")
ROUNDS = 6

POINTS = {True: "nano-230k+nano-510k+nano-830k", False: "nano-27k+nano-80k+nano-230k"}


def get_config(arg: str | None = None) -> ConfigDict:
    """The study.

    Arguments: ``task`` (see ``robustjax data list``), ``points`` (a part of the ladder),
    ``rounds`` (0 takes what suits each point), ``seeds`` (how many) and ``seed`` (the first).
    """
    from robustjax.settings import StudyConfig

    args = parse_arg(arg, task="word_length", points="", rounds=0, seeds=2, seed=0)
    generated = is_generated(args["task"])
    points = args["points"] or POINTS[generated]
    config = smoke.get_config(f"task={args['task']},points={points}")
    config.seeds = tuple(range(args["seed"], args["seed"] + args["seeds"]))
    config.evaluation.min_accuracy = 0.7
    with config.evaluation.unlocked():
        del config.evaluation.attacks["random_token"]
        del config.evaluation.transfer["on_the_way"]
    if not generated:  # longer texts: harder to attack, and each costs more
        config.evaluation.attacks.gcg.num_iterations = 20
        config.evaluation.num_examples = 48
    for name, point in config.points.items():
        with point.unlocked():
            del point.advtrain["random_token"]
        run = point.advtrain.gcg
        suiting = WORD_LENGTH_ROUNDS.get(name, ROUNDS) if generated else ROUNDS
        run.num_rounds = args["rounds"] or suiting
        if not generated:
            run.attacks.gcg.schedule = {"start": 4, "end": 10}
            run.train.epochs = 2
        elif name in MANY_EXAMPLES:
            run.examples_per_round, run.pool.max_examples = 2500, 5000
            if name == "nano-230k":
                point.finetune.train.epochs = 3
    return filled(StudyConfig, config.to_dict())
