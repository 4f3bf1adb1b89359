"""Adversarial training that is killed and preempted at many moments, against one that ran straight.

    python -m tests.advtrain_kills FOLDER [--seed=N]

Prints every moment and what happened there, then what differs in the end, which should be nothing.
Run by test_advtrain_kill.py.
"""

import argparse
import random
import signal
import sys
from pathlib import Path

from robustjax.runtime.interrupts import PREEMPTED_STATUS
from tests.commands.short import HARDENING, TRAINING
from tests.killing import DIE_AT, differences, move_results, start

# A round: two batches of an attack of two iterations, two passes of three updates.
LONGER = (
    *HARDENING,
    # How far a kill sets a run back depends on how much of a save it left: a fast machine is done
    # with two rounds before the last moments.
    "--config.advtrain.num_rounds=3",
    "--config.advtrain.examples_per_round=8",
    "--config.advtrain.checkpoint_every=2",
    "--config.advtrain.attacks.gcg.schedule.start=2",
    "--config.advtrain.pool.max_examples=24",
    "--config.advtrain.pool.max_adversarial_share=0.5",
    "--config.advtrain.train.epochs=2",
)

# What kills, and at which time in its process. Each process goes on where the one before ended.
KILLS = (
    ("stage-claimed", 1),  # between stages: the workdir itself
    ("attack-iteration", 1),  # inside the evaluation before the first round
    ("stage-finished", 1),  # between the evaluation and the first round
    ("attack-iteration", 2),  # in the attack of round 1
    ("attack-torn", 1),
    ("training-torn", 2),  # in the training of round 1
    ("saving-arrays", 1),  # while it saves
    ("training", 5),
    ("saving-marker", 1),
    ("saving-model", 1),
    ("stage-claimed", 2),  # after round 1
    ("attack-torn", 2),  # in the attack of round 2
    ("training", 1),
    ("saving-marker", 2),
    ("stage-unmarked", 1),
)
PREEMPTIONS = (
    ("preempted-attack", 1),  # in the evaluation before the first round
    ("preempted-attack", 2),  # in the attack of round 1
    ("preempted-training", 2),
    ("preempted-saving", 1),
    ("preempted-training", 3),
)
ENDS = {-signal.SIGKILL: "killed", PREEMPTED_STATUS: "preempted", 0: "done"}


def make_model(folder: Path) -> Path:
    """A classifier to start from."""
    config = "configs/finetune.py:point=nano-27k,task=word_length"
    run("-m", "robustjax", command="finetune", config=config, workdir=folder, flags=TRAINING)
    return folder


def run(*program: str, expected: int = 0, **options: object) -> None:
    """Runs a command to its end, which must be the one expected."""
    process = start(*program, **options)
    _, err = process.communicate()
    if process.returncode != expected:
        raise SystemExit(f"{program}: status {process.returncode}, not {expected}\n{err}")


def harden(*program: str, model: Path, workdir: Path, expected: int = 0) -> None:
    config = "configs/advtrain.py:point=nano-27k,task=word_length"
    flags = (*LONGER, f"--config.model.path={model}")
    run(
        *(program or ("-m", "robustjax")),
        **{"command": "advtrain", "config": config, "workdir": workdir, "flags": flags},
        expected=expected,
    )


def interrupted(
    model: Path, straight: Path, workdir: Path, moments: tuple, expected: int, seed: int
) -> list[str]:
    """Interrupts a run at all moments, finishes it; returns what differs from the straight one."""
    for index, (moment, count) in enumerate(moments):
        print(f"{ENDS[expected]} at {moment} {count}", flush=True)
        program = (DIE_AT, moment, str(count), str(seed + index))
        harden(*program, model=model, workdir=workdir, expected=expected)
    harden(model=model, workdir=workdir)
    found = differences(straight, workdir)
    move_results(workdir, workdir.with_name(ENDS[expected]))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.advtrain_kills")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seed", type=int, default=random.randrange(2**31))
    given = parser.parse_args()
    folder = given.folder.resolve()
    print(f"seed {given.seed}", flush=True)
    model, workdir = make_model(folder / "model"), folder / "hardened"
    harden(model=model, workdir=workdir)
    straight = folder / "straight"
    move_results(workdir, straight)
    failed = False
    for moments, expected in ((KILLS, -signal.SIGKILL), (PREEMPTIONS, PREEMPTED_STATUS)):
        found = interrupted(model, straight, workdir, moments, expected, given.seed)
        print(f"{ENDS[expected]} {len(moments)} times; differs: {found or 'nothing'}", flush=True)
        failed |= bool(found)
    sys.exit(int(failed))


if __name__ == "__main__":
    main()
