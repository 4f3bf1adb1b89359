"""A nano chat model trained on requests and refusals, attacked, judged and reported.

python -m benchmarks.chat_model [--folder=FOLDER]

Runs the commands of docs/chat_models.md one after the other, each in a process of its own, and
prints a line of JSON: what came of it, and the seconds that each command and all of them took.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parents[1]
ATTACKS = ("gcg", "beast")


def commands(folder: Path) -> dict[str, list[str]]:
    """Arguments of Python, by what they do."""
    data = [
        f"--config.task.train_path={folder}/train.jsonl",
        f"--config.task.validation_path={folder}/validation.jsonl",
    ]
    chat = ["--config.chat.apply_template=True"]
    train = [
        *("robustjax", "finetune", "--config=configs/finetune.py:point=nano-230k,task=jsonl"),
        *("--config.objective=lm", *chat, "--config.chat.template_file=examples/chat.jinja"),
        *(*data, f"--workdir={folder}/model"),
    ]
    attacks = {
        attack: [
            *("robustjax", "attack", f"--config=configs/attack.py:task=jsonl,attack={attack}"),
            *("--config.model.head=lm", f"--config.model.path={folder}/model", *chat, data[1]),
            *("--config.judge=refusal_prefix", "--config.generation.max_new_tokens=16"),
            "--config.num_examples=32",
            f"--workdir={folder}/{attack}",
        ]
        for attack in ATTACKS
    }
    where = [f"{folder}/{name}" for name in ATTACKS]
    return (
        {"data": ["examples.secret_word", str(folder)], "train": train}
        | attacks
        | {"report": ["robustjax", "report", *where, f"--out={folder}/report"]}
    )


def run(folder: Path) -> dict:
    """Runs them all."""
    seconds = {}
    for name, arguments in commands(folder).items():
        start = time.perf_counter()
        subprocess.run([sys.executable, "-m", *arguments], check=True, cwd=ROOT, stdout=sys.stderr)
        seconds[name] = round(time.perf_counter() - start, 1)
    figures: dict = {}
    for attack in ATTACKS:
        summary = json.loads((folder / attack / "summary.json").read_text())
        figures["refusal_rate_before"] = summary["refusal_rate_before"]
        figures[attack] = {
            "attacked": summary["num_attacked"],
            "judged_success_rate": round(summary["judged_success_rate"], 3),
            "interval": [round(bound, 3) for bound in summary["judged_success_interval"]],
        }
    return figures | {"seconds": seconds, "seconds_in_all": round(sum(seconds.values()), 1)}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.chat_model")
    parser.add_argument("--folder", type=Path)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        print(json.dumps(run((given.folder or Path(temporary)).resolve())))


if __name__ == "__main__":
    main()
