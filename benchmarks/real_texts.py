"""Every attack on real texts, end to end: the commands that a user types, on labelled files.

python -m benchmarks.real_texts --train=FILE --validation=FILE --workdir=W [--points=A+B]

Each scaling point becomes a classifier of the texts with `robustjax finetune` (a published shape
starts from random weights), a language model with the same tokenizer proposes to BEAST, and
`robustjax attack` runs every attack at the end of the texts, at 0.9 and at their beginning. Budgets
are small: what counts is that it works, not how strong it is. Prints a line of JSON for each run;
killed, the same command goes on.
"""

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.in_turn import ROOT
from benchmarks.random_model import write_random_model
from robustjax.data.tasks import TaskConfig, load_task
from robustjax.data.tokens import train_byte_bpe
from robustjax.runtime.runlog import read_json

NANO = ("nano-27k", "nano-80k", "nano-230k", "nano-510k", "nano-830k")
POINTS = (*NANO, "pythia-70m")
VOCAB = 8_000
"""Of the tokenizer of a published shape, which is trained on the texts."""

TRAINING = {
    "nano": ["--config.finetune.num_train=800", "--config.finetune.train.epochs=3"],
    "published": [
        "--config.finetune.num_train=160",
        "--config.finetune.train.epochs=1",
        "--config.finetune.train.optimizer.learning_rate=3e-4",
    ],
    "lm": ["--config.objective=lm", "--config.finetune.train.epochs=3"],
}
ATTACKS = {
    "random_token": ["--config.attack.num_iterations=64"],
    "gcg": ["--config.attack.num_iterations=5", "--config.attack.num_candidates=64"],
    "beam_search": ["--config.attack.num_iterations=5"],
    "beast": ["--config.attack.num_iterations=5"],
}
TEXTS = 100
"""That a model answers before any is attacked."""

BATCH = 4
"""Examples attacked at once: at the beginning of long texts, all of a text is scored anew."""

POSITIONS = (1.0, 0.9, 0.0)
"""As a fraction of the characters of a text: suffix, infix, prefix."""

REPORTED = (
    "validation_perplexity",
    "validation_accuracy",
    "accuracy_before",
    "num_attacked",
    "num_failures",
    "num_retokenised",
    "attack_success_rate",
)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.real_texts")
    for name in ("train", "validation", "workdir"):
        parser.add_argument(f"--{name}", required=True, type=lambda path: Path(path).resolve())
    parser.add_argument("--points", default="+".join(POINTS))
    parser.add_argument("--num_examples", default=8, type=int)
    given = parser.parse_args()
    for point in given.points.split("+"):
        for line in runs(given, point):
            print(json.dumps({"point": point} | line), flush=True)


def runs(given: argparse.Namespace, point: str) -> Iterator[dict[str, Any]]:
    """All runs of one scaling point, each when it is asked for."""
    task = [f"--config.task.{name}_path={getattr(given, name)}" for name in ("train", "validation")]
    folder = given.workdir / point
    if point in NANO:
        companion = given.workdir / "proposes"
        which, flags = "point=nano-27k,task=jsonl", [*task, *TRAINING["lm"]]
        yield {"run": "lm"} | run(companion, "finetune", which, flags)
        which, flags = f"point={point},task=jsonl", [*task, *TRAINING["nano"]]
    else:
        companion = folder / "random"
        write_model(point, companion, given)
        which = "task=jsonl"
        flags = [*task, f"--config.model.path={companion}", *TRAINING["published"]]
    yield {"run": "finetune"} | run(folder / "model", "finetune", which, flags)
    for attack, budget in ATTACKS.items():
        flags = [*task, *budget, f"--config.model.path={folder / 'model'}"]
        flags.append(f"--config.task.num_validation={TEXTS}")
        flags.append(f"--config.num_examples={given.num_examples}")
        flags.append(f"--config.search.batch_size={min(BATCH, given.num_examples)}")
        if attack == "beast":
            flags.append(f"--config.companion.path={companion}")
        for position in POSITIONS:
            workdir = folder / f"{attack}-{position}"
            at = f"--config.attack.position={position}"
            figures = run(workdir, "attack", f"task=jsonl,attack={attack}", [*flags, at])
            yield {"run": attack, "position": position} | figures


def write_model(point: str, folder: Path, given: argparse.Namespace) -> None:
    """A model of random weights that reads with a tokenizer of the texts, unless it is there."""
    if (folder / "tokenizer.json").exists():
        return
    paths = {"train_path": str(given.train), "validation_path": str(given.validation)}
    texts = [example.text for example in load_task(TaskConfig("jsonl", **paths)).train]
    write_random_model(point, folder, "float32")
    train_byte_bpe(texts, VOCAB).save(folder)


def run(workdir: Path, name: str, which: str, flags: list[str]) -> dict[str, Any]:
    """Runs a command to its end; returns what its summary says and the seconds it took."""
    started = time.monotonic()
    program = [sys.executable, "-m", "robustjax", name, f"--config=configs/{name}.py:{which}"]
    done = subprocess.run(
        [*program, f"--workdir={workdir}", *flags], cwd=ROOT, capture_output=True, text=True
    )
    if done.returncode:
        raise SystemExit(done.stderr)
    summary = read_json(workdir / "summary.json")
    figures = {field: summary[field] for field in REPORTED if field in summary}
    return figures | {"seconds": round(time.monotonic() - started)}


if __name__ == "__main__":
    main()
