"""One attack on one victim.

robustjax attack --config=configs/attack.py:attack=gcg --config.model.path=FOLDER --workdir=W

BEAST needs a language model of the victim's family, which proposes tokens:
--config.companion.path=FOLDER

A chat model, whose answers a judge looks at (see docs/chat_models.md):
robustjax attack --config=configs/attack.py:point=qwen2.5-0.5b-instruct,task=strongreject,attack=gcg
--config.judge=refusal_prefix --workdir=W
"""

from ml_collections import ConfigDict

from configs.common import filled, has_classes, parse_arg, takes_all, task_settings
from configs.points import NANO, PUBLISHED_POINTS, slice_settings

# Where an attack's own defaults are not what a first look asks for.
ATTACKS = {
    "random_token": {"num_iterations": 256, "iterations_per_pass": 32},
    "beam_search": {"num_iterations": 25},  # without gradients it takes more of them
    "beast": {"num_iterations": 10, "beam_width": 10, "branch_factor": 10},  # ten tokens, as GCG's
}


def get_config(arg: str | None = None) -> ConfigDict:
    """The attack.

    Arguments: ``point`` (may be empty if ``--config.model.path`` says what to attack; of published
    models it chooses number formats, batch and mesh), ``task`` (see ``robustjax data list``),
    ``attack`` (any by name) and ``seed``.
    """
    from robustjax.commands.attack import AttackRunConfig

    args = parse_arg(arg, point="", task="password_match", attack="gcg", seed=0)
    # Prompts without classes, and a chat model to answer them.
    is_chat = args["point"].endswith("-instruct") and not has_classes(args["task"])
    row = PUBLISHED_POINTS.get(args["point"], {})
    attack = {"name": args["attack"]} | ATTACKS.get(args["attack"], {})
    if row and args["attack"] == "gcg":
        attack["candidate_chunk"] = row["candidate_chunk"]
    model = {"point": args["point"], "head": "lm" if is_chat else "classifier"}
    values = {
        "model": model | ({"numerics": row["numerics"]} if row else {}),
        "chat": {"apply_template": is_chat},
        "task": task_settings(
            args["task"], is_nano=args["point"] in NANO, num_train=20_000, num_validation=400
        ),
        "attack": attack,
        "num_examples": 0 if takes_all(args["task"]) else 64,
        "seed": args["seed"],
        "search": {"batch_size": row.get("batch_size", 16)},
    }
    if row:
        values |= slice_settings(row)
    return filled(AttackRunConfig, values)
