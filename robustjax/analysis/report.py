"""From folders of records to `index.html`, figures, tables and fits.

Nothing in the output depends on when or where it was made: the same records give the same bytes.
"""

import csv
import io
import math
import os
import re
import shutil
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path

from robustjax.analysis import fits, page, plots, sections, tables
from robustjax.analysis.groups import Group, Row
from robustjax.analysis.groups import groups as split_groups
from robustjax.analysis.load import Study, load_study
from robustjax.errors import UserError
from robustjax.evaluation.pretraining import Source
from robustjax.evaluation.records import canonical_json

FIGURE_STEMS = (
    "clean_accuracy", "asr_vs_size", "asr_vs_attack_compute", "asr_vs_round",
    "asr_vs_defence_compute", "transfer_attack", "transfer_iterations", "transfer_matrix",
)  # fmt: skip
"""How the names of figures begin; PNG and CSV files of an older report are recognised by them."""


def write_report(
    paths: Iterable[str | os.PathLike[str]],
    out_dir: str | os.PathLike[str],
    title: str | None = None,
    pretraining: Source = "corrected",
) -> Path:
    """Write a report on everything finished in some folders.

    Args:
        paths: workdirs of studies or single runs, searched at any depth.
        out_dir: made if missing. Figures and tables of an older report in it are replaced, and
            removed where this report has none; other files stay.
        title: headline of the page.
        pretraining: whose figures are taken for the pretraining of published models.

    Returns:
        The path of `index.html`, which holds all figures and needs no other file.

    Raises:
        UserError: the records are missing, damaged or contradictory (see `load_study`), or
            `out_dir` is a file.
    """
    out_dir = Path(out_dir)
    if out_dir.exists() and not out_dir.is_dir():
        raise UserError(f"{out_dir} is a file; give a folder for the report")
    files = _render(load_study(paths, pretraining), title)
    out_dir.mkdir(parents=True, exist_ok=True)
    # Everything is on the disk before the first old file goes, so a full disk destroys nothing.
    staging = Path(tempfile.mkdtemp(prefix=".report-", dir=out_dir.resolve().parent))
    try:
        for name, content in files.items():
            (staging / name).write_bytes(content)
        for name in files:  # the page comes last: it never describes files that are not there yet
            os.replace(staging / name, out_dir / name)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    for file in sorted(out_dir.iterdir()):
        if _is_ours(file.name) and file.name not in files:
            file.unlink()
    return out_dir / "index.html"


def _render(study: Study, title: str | None) -> dict[str, bytes]:
    """All files of the report by name, the page last."""
    groups = split_groups(study)
    planned = [(group, plots.all_figures(group)) for group in groups]
    drawn = [(group, [figure for figure in all_ if figure.png]) for group, all_ in planned]
    undrawn = [
        (group, figure.title) for group, all_ in planned for figure in all_ if not figure.png
    ]
    files: dict[str, bytes] = {}
    rows_of: dict[str, list[Row]] = {}
    for (_, figures), slug in zip(drawn, _slugs(groups), strict=True):
        for figure in figures:
            files[f"{figure.stem}-{slug}.png"] = figure.png
            rows_of.setdefault(figure.stem, []).extend(figure.rows)
    for stem, build in _TABLES.items():
        rows = [row for group in groups for row in build(group)]
        if rows:
            rows_of[stem] = rows
    files.update({f"{stem}.csv": csv_bytes(rows) for stem, rows in rows_of.items()})
    slopes = {
        "definition": fits.ATTACK_SLOPE_DEFINITION,
        "fits": [fit for group in groups for fit in fits.attack_slopes(group)],
    }
    if slopes["fits"]:
        files["fits.json"] = (canonical_json({"attack_slopes": slopes}, indent=2) + "\n").encode()
    files["index.html"] = _page(study, drawn, undrawn, title).encode("utf-8")
    return files


_TABLES = {
    "headline": lambda group: tables.headline(group) if group.attacks else [],
    "training_rounds": tables.training_rounds,
    "attack_runs": tables.attack_runs,
}


def _page(
    study: Study,
    drawn: Sequence[tuple[Group, Sequence[plots.ReportFigure]]],
    undrawn: Sequence[tuple[Group, str]],
    title: str | None,
) -> str:
    groups = [group for group, _ in drawn]
    parts = [
        ("run", "What was run", sections.what_was_run(groups)),
        ("results", "Headline results", sections.headline(groups)),
        ("figures", "Figures", sections.figures(drawn)),
    ]
    if study.attacks:
        parts.append(("slopes", "Attack scaling slopes", sections.slopes(groups)))
    if study.trainings:
        parts.append(("training", "Adversarial training", sections.training(groups)))
    if study.attacks:
        parts.append(("runs", "Attack runs", sections.runs(groups)))
    parts.append(("gaps", "Failures and gaps", sections.gaps(study, undrawn)))
    parts.append(("provenance", "Definitions and versions", sections.provenance(study)))
    tasks = ", ".join(sorted({group.task for group in groups}))
    heading = title or f"Robustness against attack and defence compute: {tasks}"
    return page.document(heading, sections.subtitle(groups), parts)


def csv_bytes(rows: Sequence[Row]) -> bytes:
    """A table as CSV (UTF-8, line feeds); numbers in full precision, NaN as an empty cell."""
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=list(rows[0]), lineterminator="\n")
    writer.writeheader()
    for row in rows:
        writer.writerow(
            {
                key: "" if isinstance(value, float) and math.isnan(value) else value
                for key, value in row.items()
            }
        )
    return text.getvalue().encode("utf-8")


def _slugs(groups: Sequence[Group]) -> list[str]:
    """A part of a file name for each group, no two alike."""
    slugs: list[str] = []
    for group in groups:
        slug = re.sub(r"[^A-Za-z0-9._]+", "_", f"{group.model_family}_{group.task}")
        slugs.append(slug if slug not in slugs else f"{slug}_{len(slugs)}")
    return slugs


def _is_ours(name: str) -> bool:
    known = (*FIGURE_STEMS, *_TABLES)
    return name.endswith((".png", ".csv")) and name.startswith(known)
