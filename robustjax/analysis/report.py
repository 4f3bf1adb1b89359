"""From folders of records, or published files, to `index.html`, figures, tables and fits.

Nothing in the output depends on when or where it was made: the same records give the same bytes.
"""

import csv
import io
import math
import os
import re
import shutil
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from robustjax.analysis import (
    canvas,
    efficiency,
    fit_sections,
    fits,
    judged_plots,
    offence,
    page,
    plots,
    sections,
    tables,
    task_plots,
)
from robustjax.analysis.figure import ReportFigure
from robustjax.analysis.fit_sections import Fits
from robustjax.analysis.groups import Group, Row
from robustjax.analysis.groups import groups as split_groups
from robustjax.analysis.labels import family_name
from robustjax.analysis.load import Study, load_study
from robustjax.analysis.published import load_published
from robustjax.errors import UserError
from robustjax.evaluation.pretraining import Source
from robustjax.evaluation.records import canonical_json

FIGURE_STEMS = (
    "clean_accuracy", "asr_vs_size", "asr_vs_attack_compute", "slope_vs_size", "asr_vs_round",
    "asr_after_rounds", "asr_vs_defence_compute", "accuracy_vs_round", "asr_at_budgets",
    "offence_vs_defence", "transfer_attack", "transfer_iterations", "transfer_matrix",
    task_plots.STEM, judged_plots.STEM,
)  # fmt: skip
"""How the names of figures begin; files of an older report are recognised by them."""

FIGURE_ENDINGS = (".png", ".svg", ".pdf", ".csv")

Drawn = Sequence[tuple[str, str, Sequence[ReportFigure]]]
"""What figures are about, the end of their files' names, and those that have something to show."""


def write_report(
    paths: Iterable[str | os.PathLike[str]],
    out_dir: str | os.PathLike[str],
    title: str | None = None,
    pretraining: Source = "corrected",
    for_a_paper: bool = False,
) -> Path:
    """Write a report on everything finished in some folders.

    Args:
        paths: workdirs of studies or single runs, searched at any depth.
        out_dir: made if missing. Figures and tables of an older report in it are replaced, and
            removed where this report has none; other files stay.
        title: headline of the page.
        pretraining: whose figures are taken for the pretraining of published models.
        for_a_paper: also write each panel as PDF of 3.5 x 2.5 inches, with legend and without.

    Returns:
        The path of `index.html`, which holds all figures and needs no other file.

    Raises:
        UserError: the records are missing, damaged or contradictory (see `load_study`), or
            `out_dir` is a file.
    """
    return _write(load_study(paths, pretraining), Path(out_dir), title, for_a_paper)


def write_published_report(
    folder: str | os.PathLike[str],
    out_dir: str | os.PathLike[str],
    title: str | None = None,
    pretraining: Source = "corrected",
    for_a_paper: bool = False,
) -> tuple[Path, tuple[str, ...]]:
    """Write the same report on published result files.

    Args:
        folder: where they are, see `load_published`.
        out_dir: as `write_report` has it, like the others.
        title: headline of the page.
        pretraining: whose figures are taken for the pretraining of published models.
        for_a_paper: also write PDF files.

    Returns:
        The path of `index.html`, and what was left out or repaired on reading.

    Raises:
        UserError: a file is unknown or damaged (see `load_published`), or `out_dir` is a file.
    """
    study = load_published(folder, pretraining)
    return _write(study, Path(out_dir), title, for_a_paper), study.notes


def _write(study: Study, out_dir: Path, title: str | None, for_a_paper: bool) -> Path:
    if out_dir.exists() and not out_dir.is_dir():
        raise UserError(f"{out_dir} is a file; give a folder for the report")
    files = _render(study, title, for_a_paper)
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


def _render(study: Study, title: str | None, for_a_paper: bool) -> dict[str, bytes]:
    """All files of the report by name, the page last."""
    groups = split_groups(study)
    planned = [
        (group, slug, plots.all_figures(group))
        for group, slug in zip(groups, _slugs(groups), strict=True)
    ]
    drawn = [
        (f"{family_name(family)}, all tasks", _slug(family), [task_plots.asr_against_size(same)])
        for family, same in task_plots.families(groups).items()
    ]
    drawn += [
        (
            f"{family_name(group.model_family)} on {group.task}",
            slug,
            [figure for figure in all_ if figure.drawing is not None],
        )
        for group, slug, all_ in planned
    ]
    undrawn = [
        (group, figure.title) for group, _, all_ in planned for figure in all_ if not figure.drawing
    ]
    files = _drawings(drawn, for_a_paper)
    rows_of: dict[str, list[Row]] = {}
    for _, _, figures in drawn:
        for figure in figures:
            rows_of.setdefault(figure.stem, []).extend(figure.rows)
    for stem, build in _TABLES.items():
        rows = [row for group in groups for row in build(group)]
        if rows:
            rows_of[stem] = rows
    lines = {name: [row for g in groups for row in build(g)] for name, build in _FITS.items()}
    if any(lines.values()):
        files["fits.json"] = (canonical_json(lines, indent=2) + "\n").encode()
    found = fit_sections.findings(groups)
    if found:
        rows_of["answers"] = [{"question": text, **vars(finding)} for text, finding in found]
    files.update({f"{stem}.csv": csv_bytes(rows) for stem, rows in rows_of.items()})
    answered = fit_sections.answers(found)
    parts = _parts(study, groups, drawn, undrawn, files, lines, rows_of, answered)
    tasks = ", ".join(sorted({group.task for group in groups}))
    heading = title or f"Robustness against attack and defence compute: {tasks}"
    text = page.document(heading, sections.subtitle(groups), parts)
    files["index.html"] = text.encode("utf-8")
    return files


_TABLES = {
    "headline": lambda group: tables.headline(group) if group.attacks else [],
    "training_rounds": tables.training_rounds,
    "attack_runs": tables.attack_runs,
    "efficiency": efficiency.efficiency_rows,
}

_FITS = {
    "attack_scaling": fits.attack_scaling_rows,
    "size_trend": fits.size_trend_rows,
    "offence_defence": offence.offence_defence_rows,
    "headline": fits.headline_rows,
}


def _drawings(drawn: Drawn, for_a_paper: bool) -> dict[str, bytes]:
    files = {}
    for _, slug, figures in drawn:
        for figure in figures:
            assert figure.drawing is not None
            image = figure.drawing.draw()
            name = f"{figure.stem}-{slug}"
            files[f"{name}.png"], files[f"{name}.svg"] = canvas.png(image), canvas.svg(image)
            if for_a_paper:
                for part, content in figure.drawing.for_a_paper().items():
                    files[f"{name}-{part}.pdf"] = content
    return files


def _parts(
    study: Study,
    groups: Sequence[Group],
    drawn: Drawn,
    undrawn: Sequence[tuple[Group, str]],
    files: Mapping[str, bytes],
    lines: Fits,
    rows_of: Mapping[str, Sequence[Row]],
    answered: str,
) -> list[tuple[str, str, str]]:
    """Identifier, heading and HTML of each section that has something to say."""
    attacked = bool(study.attacks)
    parts = [
        ("answers", "In short", answered, attacked),
        ("run", "What was run", sections.what_was_run(groups), True),
        ("results", "Headline results", sections.headline(groups), True),
        ("figures", "Figures", sections.figures(drawn, files), True),
        (
            "slopes",
            "Attack scaling",
            fit_sections.slopes(groups, lines["attack_scaling"]),
            bool(lines["attack_scaling"]),
        ),
        (
            "balance",
            "Attack against defence compute",
            fit_sections.balance(groups, lines["offence_defence"]),
            bool(lines["offence_defence"]),
        ),
        (
            "efficiency",
            "What it takes to make an attack rare",
            fit_sections.efficiency(groups, rows_of.get("efficiency", [])),
            "efficiency" in rows_of,
        ),
        ("training", "Adversarial training", sections.training(groups), bool(study.trainings)),
        ("runs", "Attack runs", sections.runs(groups), attacked),
        ("gaps", "Failures and gaps", sections.gaps(study, groups, undrawn), True),
        ("methods", "Methods and versions", sections.provenance(study), True),
    ]
    return [(name, heading, content) for name, heading, content, is_told in parts if is_told]


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


def _slug(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9._]+", "_", name)


def _slugs(groups: Sequence[Group]) -> list[str]:
    """A part of a file name for each group, no two alike."""
    slugs: list[str] = []
    for group in groups:
        slug = _slug(f"{group.model_family}_{group.task}")
        slugs.append(slug if slug not in slugs else f"{slug}_{len(slugs)}")
    return slugs


def _is_ours(name: str) -> bool:
    known = (*FIGURE_STEMS, *_TABLES, "answers")
    return name.endswith(FIGURE_ENDINGS) and name.startswith(known)
