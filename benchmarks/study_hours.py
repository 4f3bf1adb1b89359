"""Chip-hours of the study of Howe et al. 2024 by our plans, against its algorithmic FLOPs.

python -m benchmarks.study_hours

Nothing is compiled or run: times are the bounds that `benchmarks.plans` has kept, and go to
``benchmarks/results/study_hours.json``. What is counted are the runs on the ten Pythia sizes:
clean training and both attacks on it for six tasks and five seeds, both trainings against an attack
for four tasks and five seeds, and GCG on up to ten rounds of each.
"""

import math
from typing import Any

from benchmarks.results import as_results, read_results, write_results
from configs.advtrain import SCHEDULES
from configs.common import LONG_EDGES
from configs.points import ROUNDS
from robustjax.attacks.frame import abstract_inputs
from robustjax.attacks.gcg import GCG
from robustjax.attacks.random_token import RandomToken
from robustjax.attacks.search import Attack, module_of
from robustjax.data.batching import bucket_for
from robustjax.evaluation import flops
from robustjax.evaluation.transfer import spaced_rounds
from robustjax.models import registry
from robustjax.models.transformer import Definition
from robustjax.planning.work import usual_programs
from robustjax.training.schedule import AttackSchedule

NAME = "study_hours"
TOKENS = {"imdb": 316, "spam": 362, "password_match": 101, "word_length": 89}
"""Mean tokens of a prompt: what the published FLOPs of GCG on Pythia-14m come to."""
LONGER_TASKS, LONGER_TOKENS = ("helpful", "harmless"), 452
"""Nothing is published for these two: as many as the longest mean."""
SEEDS, CLEAN_TEXTS, EPOCHS = 5, 20_000, 3
CLEAN_ATTACKS = {"gcg": (200, 10), "random_token": (200, 1280)}
"""Examples and iterations."""
ROUND_EXAMPLES, ROUND_TEXTS = 200, 1000
HARDENED = (500, 128)
"""Examples and iterations of GCG on a hardened model."""
PLAN_WIDTH = 1024
"""Tokens of the prompts and texts that `benchmarks.plans` compiles for."""


def main() -> None:
    plans = read_results("plans")
    rows = [measure(row) for row in plans["rows"] if row["point"].startswith("pythia")]
    write_results(NAME, as_results(rows, rounds=1, libtpu=plans["libtpu"]))


def measure(plan: dict[str, Any]) -> dict[str, Any]:
    """The study of one size: chip-hours and algorithmic FLOPs of each kind of run."""
    point = plan["point"]
    size = registry.scaling_point(point).classifier_params
    rates = _Rates(plan)
    tasks = TOKENS | dict.fromkeys(LONGER_TASKS, LONGER_TOKENS)
    found = {kind: [0.0, 0] for kind in ("training", "attacks", "hardening", "hardened")}

    def add(kind: str, chip_seconds: float, count: int) -> None:
        found[kind][0] += SEEDS * chip_seconds / 3600
        found[kind][1] += SEEDS * count

    for tokens in tasks.values():
        texts = EPOCHS * CLEAN_TEXTS
        add("training", rates.training(texts, tokens), flops.training_flops(size, texts * tokens))
        for name, (examples, iterations) in CLEAN_ATTACKS.items():
            count = examples * iterations
            add(
                "attacks",
                rates.search(name, examples, iterations),
                _search(name, size, tokens, count),
            )
    for tokens in TOKENS.values():
        for name in ("gcg", "random_token"):
            rounds = ROUNDS[point][name]
            schedule = AttackSchedule(**SCHEDULES[name])
            texts = rounds * ROUND_TEXTS
            seconds = rates.training(texts, tokens)
            count = flops.training_flops(size, texts * tokens)
            for index in range(rounds):
                iterations = schedule.iterations(index, rounds)
                seconds += rates.search(name, ROUND_EXAMPLES, iterations)
                count += _search(name, size, tokens, ROUND_EXAMPLES * iterations)
            add("hardening", seconds, count)
            examples, iterations = HARDENED
            measured = len(spaced_rounds(rounds))
            count = _search("gcg", size, tokens, measured * examples * iterations)
            add("hardened", measured * rates.search("gcg", examples, iterations), count)
    return {
        "point": point,
        "topology": plan["attack"]["topology"],
        "chip_hours": {kind: hours for kind, (hours, _) in found.items()},
        "flops": {kind: count for kind, (_, count) in found.items()},
    }


def _search(name: str, size: int, tokens: int, count: int) -> int:
    """Algorithmic FLOPs: gradient and 128 candidates an iteration of GCG, or one random text."""
    passes = 3 + GCG().num_candidates if name == "gcg" else 1
    return passes * flops.forward_flops(size, count * tokens)


class _Rates:
    """Chip-seconds by the bounds of a point's plans."""

    def __init__(self, plan: dict[str, Any]):
        self._attack, self._training = plan["attack"], plan["training"]
        self._batch, self._microbatch = plan["batch_size"], plan["microbatch_size"]
        config = registry.scaling_point(plan["point"]).config
        definition = Definition(config, **registry.layer_loop(config))
        gcg, random = (_executed(one, definition, self._batch) for one in (GCG(), RandomToken()))
        self._random_share = random / gcg

    def search(self, name: str, examples: int, iterations: int) -> float:
        """Of a search; random texts at the rate, in executed FLOPs, of GCG's iterations."""
        programs = self._attack["programs"]
        bounds = {key: one["seconds"]["bound"] for key, one in programs.items()}
        once = bounds.pop("encode_prefix")
        each = sum(bounds.values()) * (self._random_share if name == "random_token" else 1.0)
        batches = math.ceil(examples / self._batch)
        return self._attack["chips"] * batches * (once + iterations * each)

    def training(self, texts: int, tokens: int) -> float:
        """Of training steps; narrower texts save products, but neither weights nor exchanges."""
        step = self._training["programs"]["train_step"]["seconds"]
        share = bucket_for(tokens, LONG_EDGES) / PLAN_WIDTH
        seconds = max(step["compute"] * share, step["memory"], step["interconnect"])
        return self._training["chips"] * math.ceil(texts / self._microbatch) * seconds


def _executed(attack: Attack, definition: Definition, rows: int) -> float:
    """FLOPs of one iteration on a batch."""
    inputs = abstract_inputs(definition, (PLAN_WIDTH, 8, 0), rows)
    _, each = usual_programs(attack, inputs)
    count = sum(flops.executed_flops(one.function, *one.arguments) for one in each.values())
    return count / module_of(attack).iterations_of_step(attack, 1)


if __name__ == "__main__":
    main()
