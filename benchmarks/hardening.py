"""What GCG adversarial training buys, over three sizes and two seeds: a study, summed up.

python -m benchmarks.hardening --workdir=W [--train=FILE --validation=FILE] [--max_characters=N]

Without files the task is word_length; with them, those of their texts that have at most so many
characters. Prints a line of JSON for each size and seed: success of GCG on held-out examples and
clean accuracy, before the first round and after the last. Killed, the same command goes on.
"""

import argparse
import gzip
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from benchmarks.in_turn import ROOT
from robustjax.runtime.runlog import read_json, write_text


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.hardening")
    parser.add_argument("--workdir", required=True, type=Path)
    parser.add_argument("--train", type=Path)
    parser.add_argument("--validation", type=Path)
    parser.add_argument("--max_characters", default=1000, type=int)
    parser.add_argument("--points", default="", help="joined by +")
    given = parser.parse_args()
    workdir = given.workdir.resolve()
    task, flags = "word_length", []
    if given.train:
        task = "jsonl"
        for name in ("train", "validation"):
            short = write_short(getattr(given, name), workdir / f"{name}.jsonl", given)
            flags.append(f"--config.task.{name}_path={short}")
    study = workdir / "study"
    config = f"configs/hardening.py:task={task},points={given.points}".removesuffix(",points=")
    program = [sys.executable, "-m", "robustjax", "study", f"--config={config}"]
    subprocess.run(
        [*program, f"--workdir={study}", *flags], cwd=ROOT, check=True, stdout=sys.stderr
    )
    for folder in sorted((study / "finetune").iterdir()):
        print(json.dumps({"task": task} | figures(study, folder.name)), flush=True)


def write_short(source: Path, to: Path, given: argparse.Namespace) -> Path:
    """Copies the lines of a file whose texts are short."""
    with (gzip.open if source.suffix == ".gz" else open)(source, "rt", encoding="utf-8") as file:
        lines = [line for line in file if len(json.loads(line)["text"]) <= given.max_characters]
    write_text(to, "".join(lines))
    return to


def figures(study: Path, who: str) -> dict[str, Any]:
    """Of one size and seed."""
    (training,) = (study / "advtrain" / who).iterdir()
    rounds = read_json(training / "summary.json")["rounds"]
    attacks = {
        when: read_json(study / "attack" / who / name / "gcg" / "summary.json")
        for when, name in (("before", "none-r0"), ("after", f"{training.name}-r{len(rounds)}"))
    }
    clean = read_json(study / "finetune" / who / "summary.json")
    return {
        "who": who,
        "rounds": len(rounds),
        "attacked": attacks["after"]["num_attacked"],
        "iterations": attacks["after"]["iterations"],
        "success_before": attacks["before"]["attack_success_rate"],
        "success_after": attacks["after"]["attack_success_rate"],
        "accuracy_before": clean["validation_accuracy"],
        "accuracy_after": rounds[-1]["accuracy"],
        "num_validation": clean["num_validation"],
        "flops_defence": rounds[-1]["flops_total"],
    }


if __name__ == "__main__":
    main()
