"""The part of a study that one set of figures shows: one task, one model family."""

import dataclasses
from typing import Any

from robustjax.analysis import labels
from robustjax.analysis.load import Study
from robustjax.analysis.stages import (
    AdversarialTraining,
    AttackRun,
    Finetune,
    Victim,
)
from robustjax.evaluation.records import UNDEFENDED

Row = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Group:
    """The stages that share a task and a model family: what one set of figures shows.

    Attributes:
        victims: everyone a stage is about, in order of size.
        sizes: label of each scaling point, in order of size; every point with any finished stage.
        num_params: parameters of each scaling point.
    """

    model_family: str
    task: str
    finetunes: tuple[Finetune, ...]
    trainings: tuple[AdversarialTraining, ...]
    attacks: tuple[AttackRun, ...]
    victims: tuple[Victim, ...]
    sizes: dict[str, str]
    num_params: dict[str, int]

    @property
    def attack_names(self) -> list[str]:
        """Labels of the attacks that were evaluated, options and position making another attack.

        GCG comes first, and of each attack the suffix before the infix and the prefix.
        """
        places = {run.attack: run.position for run in self.attacks}
        return sorted(
            places,
            key=lambda name: (
                name != "gcg",
                labels.base_name(name) != "gcg",
                labels.attack_parts(name)[0],
                -places[name],
            ),
        )

    @property
    def defences(self) -> list[str]:
        """Training attacks, GCG first."""
        found = {stage.trained_on for stage in self.trainings}
        found |= {run.trained_on for run in self.attacks} - {UNDEFENDED}
        return sorted(found, key=lambda name: (name != "gcg", name))

    def runs(self, attack: str, trained_on: str) -> list[AttackRun]:
        """All runs of an attack on victims of a defence."""
        return [
            run for run in self.attacks if run.attack == attack and run.trained_on == trained_on
        ]

    def last_runs(self, attack: str, trained_on: str) -> list[AttackRun]:
        """The same, after the last evaluated round of each victim only."""
        runs = self.runs(attack, trained_on)
        last: dict[Victim, int] = {}
        for run in runs:
            last[run.victim] = max(run.round, last.get(run.victim, 0))
        return [run for run in runs if run.round == last[run.victim]]

    def identity(self, point: str) -> Row:
        """Columns that say which scaling point a row is about."""
        return {
            "model_family": self.model_family,
            "task": self.task,
            "point": point,
            "num_params": self.num_params[point],
            "size": self.sizes[point],
        }


def groups(study: Study) -> list[Group]:
    """Split a study by model family and task."""
    victims = {stage.victim for stage in study.finetunes}
    victims |= {stage.victim for stage in study.trainings}
    victims |= {run.victim for run in study.attacks}
    result = []
    for family, task in sorted({(victim.model_family, victim.task) for victim in victims}):
        members = {v for v in victims if (v.model_family, v.task) == (family, task)}
        result.append(
            Group(
                model_family=family,
                task=task,
                finetunes=tuple(s for s in study.finetunes if s.victim in members),
                trainings=tuple(s for s in study.trainings if s.victim in members),
                attacks=tuple(s for s in study.attacks if s.victim in members),
                victims=tuple(sorted(members)),
                sizes=labels.size_labels(sorted(members)),
                num_params={victim.point: victim.num_params for victim in sorted(members)},
            )
        )
    return result
