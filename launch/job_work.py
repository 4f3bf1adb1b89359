"""What a job has to do, counted from its config: texts to train on, iterations of attacks.

Counted as a study counts its costs: at most, as if every example were attacked to the end.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

SPACED_ROUNDS = 10
"""What `rounds="spaced"` of a study's transfer evaluates, or all there are if these are fewer."""


@dataclasses.dataclass
class JobWork:
    """The work of one job on one scaling point.

    Attributes:
        point: the scaling point.
        texts: passes over a text that is trained on.
        iterations: of attacks, by the attack's name: iterations times examples.
    """

    point: str
    texts: float = 0.0
    iterations: dict[str, float] = dataclasses.field(default_factory=dict)

    def attack(self, settings: Mapping[str, Any], iterations: float, examples: float) -> None:
        """Adds an attack on some examples."""
        name = settings["name"]
        self.iterations[name] = self.iterations.get(name, 0.0) + iterations * examples


def work_of(command: str, config: Mapping[str, Any]) -> JobWork | None:
    """Counts the work of a job.

    Args:
        command: of robustjax.
        config: what `get_config` returns, as nested dicts.

    Returns:
        The work; None if the config does not tell it: several points, or all examples of a file.
    """
    if command == "study":
        points = list(config["points"])
        if len(points) != 1:
            return None
        work, settings = JobWork(points[0]), config["points"][points[0]]
        seeds = len(config["seeds"])
        texts = _examples(settings["finetune"]["num_train"], config["task"]["num_train"])
        if not texts:
            return None
        work.texts += seeds * texts * settings["finetune"]["train"]["epochs"]
        rounds = {"none": 0}
        for name, training in settings["advtrain"].items():
            _harden(work, training, seeds)
            rounds[name] = training["num_rounds"]
        _evaluate(work, config["evaluation"], rounds, seeds)
        return work
    work = JobWork(config["model"]["point"])
    if command == "finetune":
        part, texts = config["finetune"], config["task"]["num_train"]
        work.texts += _examples(part["num_train"], texts) * part["train"]["epochs"]
        return work if work.texts else None
    if command == "attack":
        work.attack(config["attack"], config["attack"]["num_iterations"], config["num_examples"])
        return work if config["num_examples"] else None
    _harden(work, config["advtrain"], 1)
    evaluation = config["evaluation"]
    times = 1 + config["advtrain"]["num_rounds"] // evaluation["every"]
    for attack in evaluation["attacks"].values():
        work.attack(attack, attack["num_iterations"], times * evaluation["num_examples"])
    return work


def _examples(wanted: int, there: int) -> int:
    """How many are taken; 0 takes all there are, and 0 there is not known."""
    return wanted or there


def _harden(work: JobWork, training: Mapping[str, Any], seeds: int) -> None:
    """Adversarial training: each round attacks new examples, then trains on a sample."""
    rounds, examples = training["num_rounds"], training["examples_per_round"]
    work.texts += seeds * rounds * training["pool"]["max_examples"] * training["train"]["epochs"]
    attacks = training.get("attacks") or {}
    for one in attacks.values():
        schedule = one["schedule"]
        start = schedule.get("start") or schedule.get("end") or 0
        mean = (start + (schedule.get("end") or start)) / 2  # it grows linearly
        work.attack(one["attack"], seeds * rounds * mean, examples / len(attacks))


def _evaluate(
    work: JobWork, evaluation: Mapping[str, Any], rounds: Mapping[str, int], seeds: int
) -> None:
    """Every product of attacks, victims, rounds and positions that a study names."""
    for cell in evaluation["transfer"].values():
        victims = [name for name in rounds if name in (cell.get("trained_on") or rounds)]
        kind, positions = cell.get("rounds", "last"), max(1, len(cell.get("positions", ())))
        examples = cell.get("num_examples") or evaluation["num_examples"]
        for victim in victims:
            there = max(1, rounds[victim])  # the clean model is evaluated once
            times = {"last": 1, "all": there, "spaced": min(SPACED_ROUNDS, there)}[kind]
            for name in cell.get("attacks") or evaluation["attacks"]:
                attack = evaluation["attacks"][name]
                iterations = cell.get("iterations") or attack["num_iterations"]
                work.attack(attack, seeds * times * positions * iterations, examples)
