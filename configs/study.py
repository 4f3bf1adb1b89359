"""The plan of Howe et al. 2024 for one scaling point: clean training, both hardenings, transfer.

robustjax study --config=configs/study.py:point=pythia-70m,task=imdb --workdir=runs/pythia-70m

Fine-tuned models are attacked with GCG for 10 iterations and with 1280 random texts, hardened ones
with GCG for 128 iterations after ten rounds (geometrically spaced), at the end of the text and
inside it, and after the last round at its beginning. With `sampler`, a language model of the
family, BEAST is run as well: sampler=pythia-14m. --dry_run tells what it takes.

Batches, number formats and meshes are those of the point's row in configs/points.py: trained models
have one layout, and those that are attacked when training is over another.

The whole study is a sweep over this config, a job for each model, task, training attack and seed:

python -m launch.sweep print --config=configs/study.py --workdir=gs://BUCKET/study
"""

from collections.abc import Iterator

from ml_collections import ConfigDict

from configs.advtrain import SCHEDULES
from configs.common import EDGES, WIDER_EDGES, filled, parse_arg, task_settings, train_settings
from configs.points import (
    OTHER_ROUNDS,
    PUBLISHED,
    PUBLISHED_POINTS,
    ROUNDS,
    slice_settings,
    training_model,
)

HARDENINGS = {
    "gcg": {"name": "gcg", "candidate_chunk": 32},
    "random_token": {"name": "random_token", "iterations_per_pass": 32},
}
BEAST = {"name": "beast", "num_iterations": 25, "beam_width": 7, "branch_factor": 7}
SWEPT_TASKS = ("imdb", "spam", "password_match", "word_length")
SWEPT_SEEDS = 5


def sweep() -> Iterator[str]:
    """The arguments of each job: every Pythia, four tasks, either training attack, five seeds."""
    for point in (point for point in ROUNDS if point.startswith("pythia-")):
        for task in SWEPT_TASKS:
            for attack in HARDENINGS:
                for seed in range(SWEPT_SEEDS):
                    yield f"point={point},task={task},attack={attack},seed={seed},seeds=1"


def get_config(arg: str | None = None) -> ConfigDict:
    """The study.

    Arguments: ``point``, ``task`` (see ``robustjax data list``), ``attack`` (what is trained
    against, gcg+random_token; with one of them, the clean model meets only that one), ``seeds``
    (how many), ``seed`` (the first) and ``sampler`` (a language model for BEAST: a scaling point or
    a folder).
    """
    from robustjax.settings import StudyConfig

    args = parse_arg(
        arg,
        point="pythia-70m",
        task="imdb",
        attack="gcg+random_token",
        seeds=5,
        seed=0,
        sampler="",
    )
    hardened = tuple(args["attack"].split("+"))
    if unknown := sorted(set(hardened) - HARDENINGS.keys()):
        raise ValueError(f"argument attack={unknown[0]!r} must be one of {', '.join(HARDENINGS)}")
    edges = (*EDGES, *WIDER_EDGES)
    row = PUBLISHED_POINTS.get(args["point"], {})
    attacks = {name: dict(attack) for name, attack in HARDENINGS.items()}
    if row:
        attacks["gcg"]["candidate_chunk"] = row["candidate_chunk"]
    config = ConfigDict()
    config.task = task_settings(args["task"], is_nano=False, num_train=20_000, num_validation=500)
    config.seeds = tuple(range(args["seed"], args["seed"] + args["seeds"]))

    config.evaluation = _evaluation(hardened, attacks, args["sampler"])
    rounds = ROUNDS.get(args["point"], {})
    search = {"batch_size": row.get("batch_size", 16), "edges": edges}

    def training(epochs: int, schedule: str) -> dict:
        settings = PUBLISHED | {"epochs": epochs}
        train = train_settings(settings, edges, schedule=schedule, warmup_steps=0)
        return train | ({"microbatch_size": row["microbatch_size"]} if row else {})

    def hardening(name: str) -> dict:
        return {
            "attacks": {name: {"attack": attacks[name], "schedule": SCHEDULES[name]}},
            "num_rounds": rounds.get(name, OTHER_ROUNDS),
            "examples_per_round": 200,
            "pool": {
                "max_examples": 1000,
                "max_adversarial_share": 0.8,
                "loss_rank_weight": 0.5,
                "decay": 0.005,
            },
            "train": training(1, "constant"),
            "search": search,
        }

    config.points = ConfigDict(allow_dotted_keys=True)  # as in pythia-1.4b
    config.points[args["point"]] = ConfigDict(
        {
            "finetune": {
                "num_train": PUBLISHED["num_train"],
                "train": training(PUBLISHED["epochs"], "linear"),
                "checkpoint_every": 500,
            },
            "advtrain": {name: hardening(name) for name in hardened},
            "search": search,
            **training_model(row),
        }
    )
    if row:
        config.mesh = slice_settings(row, is_trained=True)["mesh"]
        # Left open where they are those of training: one override is then enough for both.
        if (attack_mesh := slice_settings(row)["mesh"]) != config.mesh.to_dict():
            config.attack_mesh = attack_mesh
        if row["numerics"] != row["train_numerics"]:
            config.points[args["point"]].attack_numerics = row["numerics"]
    return filled(StudyConfig, config.to_dict())


def _evaluation(hardened: tuple[str, ...], attacks: dict[str, dict], sampler: str) -> ConfigDict:
    """What is measured: before hardening, after some rounds, and where the attack may stand."""
    is_whole = set(hardened) == HARDENINGS.keys()
    evaluation = ConfigDict()
    evaluation.attacks = {"gcg": attacks["gcg"] | {"num_iterations": 10}}
    if "random_token" in hardened:
        evaluation.attacks.random_token = attacks["random_token"] | {"num_iterations": 1280}
    long = {"attacks": ("gcg",), "iterations": 128}
    evaluation.transfer = {
        "finetuned": {"trained_on": ("none",)} | ({} if is_whole else {"attacks": hardened}),
        "hardened": {"trained_on": hardened, "rounds": "spaced", "positions": (1.0, 0.9)} | long,
        "beginning": {"trained_on": hardened, "positions": (0.0,)} | long,
    }
    if sampler:
        evaluation.attacks.beast = BEAST
        evaluation.transfer.beast = {"attacks": ("beast",)}
        if not is_whole:  # one of the two meets the clean model
            met = ("none", *hardened) if "gcg" in hardened else hardened
            evaluation.transfer.beast.trained_on = met
    evaluation.num_examples = 200
    evaluation.min_accuracy = 0.6
    evaluation.seed = 0
    evaluation.companion = sampler
    evaluation.sampler = None
    evaluation.perplexity_filter = None
    return evaluation
