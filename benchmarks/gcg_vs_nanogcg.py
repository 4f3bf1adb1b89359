"""GCG against nanoGCG 0.3.0 on the same weights, prompt, target and number of candidates.

python -m benchmarks.gcg_vs_nanogcg PYTHON_WITH_NANOGCG [POINT ...]

Both sides run in processes of their own, in turn, three times: a prefix of 200 tokens, ten attack
tokens, 128 candidates, the target a language model should say, filter and prefix cache on, float32,
one example. Prints a line of JSON for each scaling point; the classifier stands beside it without a
ratio, since nanoGCG has none.
"""

import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.gcg_case import bench_tokenizer, write_case

POINTS = ("pythia-14m", "pythia-70m", "pythia-160m")
HERE = Path(__file__).parent
RUNS = 3


def main() -> None:
    nanogcg, *names = sys.argv[1:]
    tokenizer = bench_tokenizer()
    for point in names or POINTS:
        with tempfile.TemporaryDirectory() as scratch:
            folder = Path(scratch)
            write_case(point, folder, 200, tokenizer)
            theirs, ours, classifier = [], [], []
            for _ in range(RUNS):
                ours.append(run(sys.executable, "-m", "benchmarks.gcg_ours", scratch))
                theirs.append(run(nanogcg, str(HERE / "gcg_nanogcg.py"), scratch, "4"))
                classifier.append(
                    run(sys.executable, "-m", "benchmarks.gcg_ours", scratch, "--classifier")
                )
        result = {
            "point": point,
            "ratio": round(median(theirs, "milliseconds") / median(ours, "milliseconds"), 2),
            "nanogcg": medians(theirs),
            "ours": medians(ours),
            "ours_classifier": medians(classifier),
        }
        print(json.dumps(result), flush=True)


def run(*command: str) -> dict[str, float]:
    """A side's figures."""
    done = subprocess.run(command, cwd=HERE.parent, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(done.stderr)
    return json.loads(done.stdout.splitlines()[-1])


def median(runs: list[dict[str, float]], name: str) -> float:
    return statistics.median(one[name] for one in runs)


def medians(runs: list[dict[str, float]]) -> dict[str, Any]:
    """Of each figure."""
    return {name: round(median(runs, name), 3) for name in runs[0]}


if __name__ == "__main__":
    main()
