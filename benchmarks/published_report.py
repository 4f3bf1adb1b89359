"""Time and memory of a whole report on published result files.

python -m benchmarks.published_report --published=FOLDER

Prints a line of JSON: what was read, and what reading, analysis, figures and page took together.
"""

import argparse
import json
import tempfile
import time
from pathlib import Path

from benchmarks.memory import peak_resident_gb
from robustjax.analysis.published_names import ENDINGS
from robustjax.analysis.report import write_published_report


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.published_report")
    parser.add_argument("--published", required=True, type=Path)
    given = parser.parse_args()
    files = [file for file in given.published.iterdir() if file.name.endswith(ENDINGS)]
    with tempfile.TemporaryDirectory() as out:
        start = time.perf_counter()
        page, _ = write_published_report(given.published, out)
        seconds = time.perf_counter() - start
        megabytes = page.stat().st_size / 1e6
    figures = {
        "files": len(files),
        "seconds": round(seconds, 1),
        "peak_resident_gb": round(peak_resident_gb(), 2),
        "page_megabytes": round(megabytes, 1),
    }
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
