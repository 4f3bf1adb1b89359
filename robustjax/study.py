"""Runs a study: the stages of its plan that are not done yet, in turn or by several workers.

The study itself is a stage too, made of all the others, so that a workdir belongs to one study.
"""

import functools
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import jax

from robustjax.data.tasks import load_task, require_classes
from robustjax.errors import UserError
from robustjax.runtime import distributed
from robustjax.runtime.compilation import keep_compiled_programs
from robustjax.runtime.progress import Lines, Progress
from robustjax.runtime.runlog import check_writable, config_hash, write_manifest
from robustjax.runtime.stages import Stage
from robustjax.runtime.workers import Job, Tell, run_side_by_side
from robustjax.settings import StudyConfig, describe
from robustjax.study_plan import SCHEMA_VERSION, PlannedStage, Planner


def run_study(config: StudyConfig, workdir: str | Path) -> Path:
    """Runs what is not done yet.

    Args:
        config: the study.
        workdir: where everything goes; the same workdir continues an interrupted study.

    Returns:
        Path of the report.

    Raises:
        UserError: bad settings, data or workdir; a model that does not learn the task.
    """
    folder = Path(workdir)
    require_classes(config.task)
    check_writable(folder)
    if config.workers > 1 and distributed.count() > 1:
        raise UserError(
            f"workers={config.workers}: {distributed.count()} processes work on each stage "
            "together; set --config.workers=1"
        )
    if config.workers > 1 and jax.default_backend() != "cpu":
        raise UserError(
            f"workers={config.workers}: processes cannot share a {jax.default_backend()}; "
            "set --config.workers=1"
        )
    planner = Planner(config, load_task(config.task), folder)
    stages = planner.plan()
    todo = [planned for planned in stages if not planned.stage.is_done()]
    whole = Stage(str(folder), config_hash(planner.leaves, SCHEMA_VERSION), planner.leaves)
    report = stages[-1].folder / "index.html"
    if not todo:
        _say(f"study: all {len(stages)} stages are done already; nothing to do")
        return report
    whole.start()  # refuses a workdir of another study
    if planner.left_out:
        _say(f"study: {planner.left_out}")
    write_manifest(
        folder,
        config=describe(config),
        config_hash=whole.config_hash,
        seeds={"evaluation": config.evaluation.seed}
        | {f"training_{i}": seed for i, seed in enumerate(config.seeds)},
        extra={"data": planner.task.source},
    )
    done = len(stages) - len(todo)
    stream = Lines(sys.stderr) if config.workers > 1 else None  # workers share the terminal
    with Progress(len(stages), "study", unit="stages", done=done, stream=stream) as progress:
        if config.workers == 1:
            _run_in_turn(todo, progress)
        else:
            *others, last = [planned for planned in todo if not planned.job]
            _run_in_turn(others, progress)
            run_side_by_side(
                _longest_first(list(dict.fromkeys(p.job for p in todo if p.job))),
                functools.partial(_make_work, config, folder),
                config.workers,
                lambda name: progress.advance(note=f"{name} is done"),
            )
            _run_in_turn([last], progress)
    whole.finish()
    return report


def _run_in_turn(todo: Sequence[PlannedStage], progress: Progress) -> None:
    for planned in todo:
        progress.set(progress.done, planned.name)
        planned.run()
        progress.advance()


def _longest_first(jobs: Sequence[Job]) -> list[Job]:
    """So that no worker is left alone with a long one in the end.

    Those that others wait for come first; among the others, the largest models.
    """
    points = list(dict.fromkeys(job.after or job.name for job in jobs))  # the smallest first
    return sorted(jobs, key=lambda job: (bool(job.after), -points.index(job.after or job.name)))


def _make_work(config: StudyConfig, workdir: Path) -> Callable[[str, Tell], None]:
    """What a worker process does with a job's name; it tells of each stage that is done."""
    keep_compiled_programs(workdir)
    planned = Planner(config, load_task(config.task), workdir).plan()

    def work(name: str, tell: Tell) -> None:
        stages = [one for one in planned if one.job and one.job.name == name]
        todo = [one for one in stages if not one.stage.is_done()]
        done = len(stages) - len(todo)
        with Progress(len(stages), name, unit="stages", done=done) as progress:
            for one in todo:
                _run_in_turn([one], progress)
                tell(one.name)

    return work


def _say(line: str) -> None:
    """Tells the user, once; stdout is kept for the path of the result."""
    if distributed.is_primary():
        print(line, file=sys.stderr)
