"""Peak resident memory of converting a large model: it should stay near the model's own size.

python -m benchmarks.convert_memory [POINT]

Writes a folder of the shape of pythia-2.8b (random bfloat16, 5.6 GB in several files), converts it
to our format in a process of its own and prints one line of JSON. Needs twice that on the disk.
"""

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.memory import peak_resident_gb
from benchmarks.random_model import write_random_model
from robustjax.cli import main as robustjax


def main() -> None:
    if sys.argv[1:2] == ["--convert"]:
        status = robustjax(["convert", *sys.argv[2:]])
        print(peak_resident_gb())
        sys.exit(status)
    point = sys.argv[1] if len(sys.argv) > 1 else "pythia-2.8b"
    with tempfile.TemporaryDirectory() as scratch:
        source, target = Path(scratch) / "hf", Path(scratch) / "ours"
        num_bytes = write_random_model(point, source)
        started = time.perf_counter()
        command = [sys.executable, "-m", "benchmarks.convert_memory", "--convert"]
        converted = subprocess.run(
            [*command, f"--from={source}", f"--to={target}"],
            check=True,
            stdout=subprocess.PIPE,
            text=True,
        )
        seconds = time.perf_counter() - started
        peak = float(converted.stdout.splitlines()[-1])
        verified = json.loads((target / "conversion.json").read_text())["verified"]
    result = {
        "point": point,
        "files_gb": round(num_bytes / 1e9, 3),
        "peak_resident_gb": round(peak, 3),
        "seconds": round(seconds, 1),
        "verified": verified,
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
