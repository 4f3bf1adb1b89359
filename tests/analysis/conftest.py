"""A synthetic study on disk, as the runs of this program would leave it."""

import dataclasses
import json
import math
import shutil
from pathlib import Path

import numpy as np
import pytest

from robustjax.evaluation.records import (
    AttackRecord,
    IterationRecord,
    canonical_json,
    summarise,
    write_records,
)

SIZES = {
    "nano-28k": 28_320,
    "nano-120k": 121_472,
    "nano-480k": 481_024,
    "nano-900k": 913_664,
    "nano-3m": 3_215_104,
}
TRAINING_ITERATIONS = {"gcg": (2, 3, 4), "random_token": (3, 4, 5)}
EVALUATION_ITERATIONS = {"gcg": 8, "random_token": 10}


@dataclasses.dataclass(frozen=True)
class Plan:
    """What the synthetic study contains."""

    sizes: dict[str, int] = dataclasses.field(default_factory=lambda: dict(SIZES))
    seeds: tuple[int, ...] = (0,)
    attacks: tuple[str, ...] = ("gcg", "random_token")
    defences: tuple[str, ...] = ("gcg", "random_token")
    num_rounds: int = 3
    num_examples: int = 64
    num_validation: int = 128
    iterations: dict[str, int] = dataclasses.field(
        default_factory=lambda: dict(EVALUATION_ITERATIONS)
    )
    task: str = "spam"
    family: str = "nano"
    fixed_asr: float | None = None


def success_logit(attack, size, defence, training_round, iteration):
    """Base-10 log-odds that an attack has worked: larger models and defences lower them."""
    strength = {"gcg": 0.9, "random_token": -0.1}[attack]
    slope = {"gcg": 1.9, "random_token": 0.5}[attack]
    held = {"gcg": 0.75, "random_token": 0.35}.get(defence, 0.0)
    return (
        strength
        - 0.35 * math.log10(size / 28_000)
        + slope * math.log10(iteration / EVALUATION_ITERATIONS[attack])
        - held * training_round ** (0.8)
    )


def make_records(plan, attack, size, defence, training_round, seed, variant=""):
    """Records of one attack run; about one example in twelve is wrong before."""
    rng = np.random.default_rng([seed, training_round, size, len(attack), len(defence)])
    num_iterations = plan.iterations[attack]
    records = []
    for example_id in range(plan.num_examples):
        correct = bool(rng.random() > 0.085)
        threshold, wobble = rng.random(), rng.random(num_iterations)
        label, flops = example_id % 2, 0
        iterations = []
        if correct:
            for k in range(1, num_iterations + 1):
                odds = 10 ** success_logit(attack, size, defence, training_round, k)
                works = bool(threshold < odds / (1 + odds) and wobble[k - 1] > 0.03)
                if plan.fixed_asr is not None:
                    works = plan.fixed_asr == 1.0
                iterations.append(IterationRecord(1.5 - odds / (1 + odds), works, "! x", 110))
            flops = 2 * size * 90 * (100 if attack == "gcg" else 1) * num_iterations
        records.append(
            AttackRecord(
                example_id=example_id,
                label=label,
                target_label=1 - label,
                correct_before=correct,
                attacked_text=f"text {example_id} ! x" if correct else None,
                success=iterations[-1].success if iterations else False,
                logits=[0.5, -0.5] if correct else None,
                clean_logits=[1.0, -1.0],
                iterations=iterations,
                num_retokenised=0,
                position=1.0,
                seed=0,
                flops_algorithmic=flops,
                flops_executed=flops // 3,
                failure=None,
                attack=attack,
                variant=variant,
            )
        )
    return records


def write_stage(folder, summary, records=None, done=True):
    """One stage folder."""
    folder.mkdir(parents=True)
    if records is not None:
        write_records(folder / "attack_records.jsonl", records)
        summary = {**summarise(records), **summary}
    (folder / "summary.json").write_text(canonical_json(summary, indent=1))
    if done:
        (folder / "DONE").write_text("")


def write_attack(
    folder, plan, point, seed, attack, defence="none", training_round=0, changes=None, variant=""
):
    """An attack stage; changes replace entries of its summary."""
    size = plan.sizes[point]
    search = TRAINING_ITERATIONS.get(defence, ())[:training_round]
    summary = {
        "kind": "attack",
        "point": point,
        "model_family": plan.family,
        "num_params": size,
        "task": plan.task,
        "victim_seed": seed,
        "attack": attack,
        "attack_config": {"num_iterations": plan.iterations[attack]},
        "trained_on": defence,
        "round": training_round,
        "defence_flops": sum(round_flops(size, defence, k)[0] + round_flops(size, defence, k)[1]
                             for k in search),
        "pretrain_flops": 6 * size * 200_000_000,
        "position": 1.0,
    }  # fmt: skip
    records = make_records(plan, attack, size, defence, training_round, seed, variant)
    write_stage(folder, {**summary, **(changes or {})}, records)


def round_flops(size, defence, iterations):
    """Search and training FLOPs of one round."""
    return 2 * size * 90 * (100 if defence == "gcg" else 1) * iterations * 80, 6 * size * 90 * 400


def write_study(root, plan):
    """A whole study below `root`."""
    for point, size in plan.sizes.items():
        for seed in plan.seeds:
            victim = {
                "point": point,
                "model_family": plan.family,
                "num_params": size,
                "task": plan.task,
                "victim_seed": seed,
            }
            name = f"{point}-s{seed}"
            accuracy = min(0.99, round(0.9 + 0.02 * math.log10(size / 28_000), 2))
            write_stage(
                root / "finetune" / name,
                {
                    "kind": "finetune",
                    **victim,
                    "validation_accuracy": round(accuracy * plan.num_validation)
                    / plan.num_validation,
                    "num_validation": plan.num_validation,
                    "flops_algorithmic": 10**9,
                },
            )
            for attack in plan.attacks:
                folder = root / "attack" / name / "none-r0" / attack
                write_attack(folder, plan, point, seed, attack)
            for defence in plan.defences:
                write_stage(
                    root / "advtrain" / name / defence,
                    {
                        "kind": "advtrain",
                        **victim,
                        "trained_on": defence,
                        "num_rounds": plan.num_rounds,
                        "rounds": training_rounds(plan, size, defence, accuracy),
                    },
                )
                for training_round in range(1, plan.num_rounds + 1):
                    for attack in plan.attacks:
                        folder = root / "attack" / name / f"{defence}-r{training_round}" / attack
                        write_attack(folder, plan, point, seed, attack, defence, training_round)
    (root / "manifest.json").write_text(
        json.dumps(
            {
                "versions": {"jax": "0.10.2", "numpy": "2.4.6"},
                "git_commit": "0123456789abcdef0123456789abcdef01234567-dirty",
                "config_hash": "feedface" * 4,
                "started": "never to be shown",
            }
        )
    )


def training_rounds(plan, size, defence, accuracy):
    """The `rounds` of an adversarial training summary."""
    rounds, total = [], 0
    for number, iterations in enumerate(TRAINING_ITERATIONS[defence][: plan.num_rounds], 1):
        search, training = round_flops(size, defence, iterations)
        total += search + training
        rounds.append(
            {
                "round": number,
                "attack_iterations": iterations,
                "num_adversarial": 80 * number,
                "num_clean": 320,
                "pool_size": 80 * number,
                "flops_attack": search,
                "flops_train": training,
                "flops_total": total,
                "accuracy": round(accuracy - 0.01 * number, 2),
                "train_loss": 0.4 / number,
            }
        )
    return rounds


@pytest.fixture(scope="session")
def shared_study(tmp_path_factory):
    """Path of a study that tests only read; keyword arguments change the plan."""
    written = {}

    def get(**changes) -> Path:
        key = repr(sorted(changes.items()))
        if key not in written:
            written[key] = tmp_path_factory.mktemp("study")
            write_study(written[key], Plan(**changes))
        return written[key]

    return get


@pytest.fixture
def study(shared_study, tmp_path):
    """A study of the test's own, below `tmp_path`."""

    def copy(name="study", **changes) -> Path:
        return Path(shutil.copytree(shared_study(**changes), tmp_path / name))

    return copy


@pytest.fixture
def lone_attack(tmp_path):
    """Write the workdir of a single attack run."""

    def write(name="workdir", attack="gcg", plan=None, variant="", **changes) -> Path:
        folder = tmp_path / name
        plan = plan or Plan()
        write_attack(folder, plan, "nano-28k", 0, attack, changes=changes, variant=variant)
        return folder

    return write
