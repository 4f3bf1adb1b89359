"""Adversarial training of one model.

robustjax advtrain --config=configs/advtrain.py:attack=gcg --config.model.path=FOLDER --workdir=W

``attack`` names an attack, several joined by + (each gets a part of a round's examples), or
``embedding``, which searches no texts. BEAST needs a language model of the victim's family:
--config.companion.path=FOLDER
"""

from ml_collections import ConfigDict

from configs.common import (
    WIDER_EDGES,
    edges_for,
    filled,
    is_generated,
    parse_arg,
    takes_all,
    task_settings,
    train_settings,
)
from configs.points import (
    NANO,
    NANO_FEW_LONG,
    OTHER_ROUNDS,
    PUBLISHED,
    PUBLISHED_POINTS,
    ROUNDS,
    slice_settings,
    training_model,
)

# Iterations of the first and the last round, as in Howe et al. 2024; of beam search and BEAST, for
# which the paper has none, those of GCG, and the tokens of a slot.
SCHEDULES = {
    "gcg": {"start": 8, "end": 64},
    "random_token": {"start": 1024, "end": 2048},
    "beam_search": {"start": 8, "end": 64},
    "beast": {"start": 25},
}
# Weak attacks from many different starts, as in configs/smoke.py.
NANO_SCHEDULES = {
    "gcg": {"start": 1, "end": 3},
    "random_token": {"start": 4},
    "beam_search": {"start": 2},
    "beast": {"start": 5},
}
NANO_ATTACKS = {
    "gcg": {"num_candidates": 16, "random_start": True},
    "random_token": {"iterations_per_pass": 4},
}
NANO_ROUNDS = 5


def get_config(arg: str | None = None) -> ConfigDict:
    """The training.

    Arguments: ``point`` (may be empty if ``--config.model.path`` says what to harden; it chooses
    the rounds, of the nano ladder the learning rate, and of published models number formats and
    mesh), ``task`` (see ``robustjax data list``), ``attack`` (see above) and ``seed``.
    """
    from robustjax.commands.advtrain import AdvtrainRunConfig

    args = parse_arg(arg, point="", task="password_match", attack="gcg", seed=0)
    task, point = args["task"], args["point"]
    is_nano = point in NANO
    edges = edges_for(task) + WIDER_EDGES
    row = PUBLISHED_POINTS.get(point, {})
    search = {"batch_size": row.get("batch_size", 16), "edges": edges}
    names = args["attack"].split("+")
    advtrain = {
        "num_rounds": NANO_ROUNDS
        if is_nano
        else max(ROUNDS.get(point, {}).get(name, OTHER_ROUNDS) for name in names),
        "search": search,
        **(_nano(task, point, edges) if is_nano else _published(edges)),
    }
    if names == ["embedding"]:
        advtrain["embedding"] = {}
    else:
        schedules, attacks = (NANO_SCHEDULES, NANO_ATTACKS) if is_nano else (SCHEDULES, {})
        if row:
            attacks = {"gcg": {"candidate_chunk": row["candidate_chunk"]}}
        advtrain["attacks"] = {
            name: {
                "attack": {"name": name} | attacks.get(name, {}),
                "schedule": schedules.get(name, {}),
            }
            for name in names
        }
    values = {
        "model": {"point": point} | training_model(row),
        "task": task_settings(task, is_nano=is_nano, num_train=20_000, num_validation=400),
        "advtrain": advtrain,
        "evaluation": {
            "attacks": {"gcg": {"name": "gcg", "num_iterations": 10}},
            "num_examples": 0 if takes_all(task) else 64,
            "search": search,
        },
        "seed": args["seed"],
    }
    if row:
        advtrain["train"]["microbatch_size"] = row["microbatch_size"]
        values["evaluation"]["attacks"]["gcg"]["candidate_chunk"] = row["candidate_chunk"]
        values |= slice_settings(row, is_trained=True)
    return filled(AdvtrainRunConfig, values)


def _published(edges: tuple[int, ...]) -> dict:
    """As in Howe et al. 2024."""
    row = PUBLISHED | {"epochs": 1}
    return {"train": train_settings(row, edges, schedule="constant", warmup_steps=0)}


def _nano(task: str, point: str, edges: tuple[int, ...]) -> dict:
    row = (NANO if is_generated(task) else NANO_FEW_LONG)[point]["advtrain"]
    return {
        "examples_per_round": row["examples"],
        "pool": {
            "max_examples": row["sample"],
            "max_adversarial_share": row.get("adversarial", 0.8),
        },
        "train": train_settings(row, edges, schedule="cosine", warmup_steps=0),
    }
