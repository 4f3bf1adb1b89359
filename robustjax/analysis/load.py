"""Find the finished stages below some folders and read them into one `Study`.

A folder is a stage if its `summary.json` has a known kind, if it holds attack records or the rounds
of a training, or if it lies where a study puts its stages. It is finished if it also holds `DONE`;
stages without it are named, never used. Folders may be given in any order and at any depth: a whole
study, one attack, several of either.
"""

import dataclasses
import json
import os
import statistics
from collections.abc import Hashable, Iterable, Iterator, Mapping
from pathlib import Path

from robustjax.analysis import stages
from robustjax.errors import UserError
from robustjax.evaluation.pretraining import Source

STAGE_DEPTH = {"pretrain": 1, "finetune": 1, "advtrain": 2, "attack": 3}
"""Known kinds, and how many folder levels a study's folder of that name has above its stages."""

EVALUATION_DEPTH = 2
"""The same of the folder `evaluation` in an adversarial training."""


@dataclasses.dataclass(frozen=True)
class Study:
    """Everything a report is made of, in an order that does not depend on the file system.

    Attributes:
        finetunes: finished clean fine-tunings.
        trainings: finished adversarial trainings.
        attacks: finished attacks.
        incomplete: folders of stages without `DONE`.
        provenance: distinct values of `git_commit`, `config_hash` and `versions.<package>` in the
            `manifest.json` files, and the folders where that file is unreadable.
        notes: what was left out or repaired on reading, and what the files do not tell.
    """

    finetunes: tuple[stages.Finetune, ...]
    trainings: tuple[stages.AdversarialTraining, ...]
    attacks: tuple[stages.AttackRun, ...]
    incomplete: tuple[str, ...]
    provenance: Mapping[str, tuple[str, ...]]
    notes: tuple[str, ...] = ()


def load_study(paths: Iterable[str | os.PathLike[str]], pretraining: Source = "corrected") -> Study:
    """Read all finished stages in or below the folders.

    Args:
        paths: the folders.
        pretraining: whose figures are taken for the pretraining of published models.

    Raises:
        UserError: a folder is missing, nothing finished is found, a finished stage is damaged, its
            summary contradicts its records, or the same run is found in two places (but a clean
            training, which several studies may have to the last digit, counts once).
    """
    roots = [Path(path) for path in paths]
    finetunes: dict[Hashable, stages.Finetune] = {}
    trainings: dict[Hashable, stages.AdversarialTraining] = {}
    attacks: dict[Hashable, stages.AttackRun] = {}
    sources: dict[Hashable, Path] = {}
    incomplete: set[str] = set()
    provenance: dict[str, set[str]] = {}

    def claim(key: tuple, folder: Path) -> Hashable:
        if key in sources and not (key[0] == "finetune" and _say_the_same(sources[key], folder)):
            raise UserError(f"the same run is in {sources[key]} and {folder}; leave one out")
        sources[key] = folder
        return key

    for folder, name, is_stage in _visit(roots):
        _add_provenance(folder / "manifest.json", name, provenance)
        if not is_stage:
            continue
        if not (folder / "DONE").exists():
            incomplete.add(name)
            continue
        kind = _kind(folder / stages.SUMMARY_FILE, strict=True)
        if kind == "finetune":
            finetune = stages.read_finetune(folder, name)
            finetunes[claim(("finetune", finetune.victim), folder)] = finetune
        elif kind == "advtrain":
            training = stages.read_training(folder, name)
            trainings[claim(("advtrain", training.victim, training.trained_on), folder)] = training
        elif kind == "attack":
            attack = stages.read_attack(folder, name, pretraining)
            attacks[claim(("attack", *attack.key), folder)] = attack
        elif "pretrain" not in (kind, folder.parent.name):  # pretraining measures no robustness
            raise UserError(f"{folder} is DONE, but has no summary.json with a known kind")
    if not sources:
        raise UserError(
            f"no finished stage in {', '.join(map(str, roots)) or 'no folder'} "
            f"({len(incomplete)} incomplete); give folders with summary.json and DONE in or below"
        )
    costs = _mean_costs(trainings.values())
    return Study(
        finetunes=tuple(sorted(finetunes.values(), key=lambda stage: stage.victim)),
        trainings=tuple(
            sorted(trainings.values(), key=lambda stage: (stage.victim, stage.trained_on))
        ),
        attacks=tuple(
            _with_mean_cost(run, costs) for run in sorted(attacks.values(), key=lambda run: run.key)
        ),
        incomplete=tuple(sorted(incomplete)),
        provenance={key: tuple(sorted(values)) for key, values in sorted(provenance.items())},
    )


def _say_the_same(one: Path, other: Path) -> bool:
    """Whether two clean trainings are one, as two studies of a model that differ later have it."""
    return (one / stages.SUMMARY_FILE).read_bytes() == (other / stages.SUMMARY_FILE).read_bytes()


def _mean_costs(trainings: Iterable[stages.AdversarialTraining]) -> dict[Hashable, float]:
    """Cumulative FLOPs by size, training attack and round, the mean over seeds."""
    totals: dict[Hashable, list[float]] = {}
    for training in trainings:
        for entry in training.rounds:
            key = (training.victim.without_seed, training.trained_on, entry.round)
            totals.setdefault(key, []).append(entry.flops_total)
    return {key: statistics.fmean(values) for key, values in totals.items()}


def _with_mean_cost(run: stages.AttackRun, costs: Mapping[Hashable, float]) -> stages.AttackRun:
    key = (run.victim.without_seed, run.trained_on, run.round)
    return dataclasses.replace(run, mean_defence_flops=costs.get(key, run.defence_flops))


def _visit(roots: list[Path]) -> Iterator[tuple[Path, str, bool]]:
    """Each folder once, with the name to show for it and whether it is a stage.

    Names do not contain the place of a single root, so that a study copied elsewhere gives the same
    report byte for byte.
    """
    seen: set[Path] = set()

    def walk(folder: Path, name: str, levels: int | None) -> Iterator[tuple[Path, str, bool]]:
        if folder.resolve() in seen:
            return
        seen.add(folder.resolve())
        is_stage = (
            levels == 0
            or _kind(folder / stages.SUMMARY_FILE) in STAGE_DEPTH
            or (folder / stages.RECORDS_FILE).exists()
            or (folder / "rounds").is_dir()  # an adversarial training, which may be unfinished
        )
        yield folder, name or ".", is_stage
        # Below a stage lie checkpoints and rounds, and of stages what was measured on the way.
        children = [folder / "evaluation"] if is_stage else sorted(folder.iterdir())
        for child in children:
            if child.is_dir() and not child.name.startswith("."):
                if is_stage:
                    below: int | None = EVALUATION_DEPTH
                else:
                    below = STAGE_DEPTH.get(child.name) if levels is None else levels - 1
                yield from walk(child, f"{name}/{child.name}" if name else child.name, below)

    for root in roots:
        if not root.is_dir():
            raise UserError(f"{root} is not a folder; give the workdir of a run")
        name = root.resolve().name if len(roots) > 1 else ""
        yield from walk(root, name, STAGE_DEPTH.get(root.resolve().name))


def _kind(file: Path, strict: bool = False) -> str | None:
    """The `kind` a summary states; None without one. A damaged file is an error only if strict."""
    try:
        summary = json.loads(file.read_bytes())
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        if strict:
            raise UserError(f"{file}: cannot be read: {error}") from error
        return None
    kind = summary.get("kind") if isinstance(summary, dict) else None
    return kind if isinstance(kind, str) else None


def _add_provenance(file: Path, name: str, found: dict[str, set[str]]) -> None:
    """Collect what a manifest, a dict of free form, says about where results come from."""
    try:
        manifest = json.loads(file.read_bytes())
    except FileNotFoundError:
        return
    except (OSError, ValueError):
        manifest = None
    if not isinstance(manifest, dict):
        found.setdefault("unreadable manifest.json", set()).add(name)
        return
    versions = manifest.get("versions")
    facts = {key: manifest.get(key) for key in ("git_commit", "config_hash")}
    if isinstance(versions, dict):
        facts.update({f"versions.{package}": value for package, value in versions.items()})
    for key, value in facts.items():
        if value is not None:
            found.setdefault(key, set()).add(str(value))
