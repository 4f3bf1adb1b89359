"""What the stages do in their folders, in a study and as commands by themselves."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from robustjax.attacks.search import Attack, SearchConfig
from robustjax.data.prompts import ChunkKind, Example, Task
from robustjax.data.tasks import TaskConfig
from robustjax.evaluation import records
from robustjax.evaluation.evaluate import attack_examples
from robustjax.evaluation.perplexity_filter import PerplexityFilter
from robustjax.evaluation.records import UNDEFENDED
from robustjax.evaluation.success_rules import SuccessRule
from robustjax.models.victim import Victim
from robustjax.runtime import distributed
from robustjax.runtime.runlog import read_json, versions, write_json
from robustjax.settings import describe
from robustjax.training.finetune import FinetuneConfig, finetune

FROM_SCRATCH = "scratch"
"""What a summary says a model started from that had no weights before."""


@dataclasses.dataclass(frozen=True)
class Identity:
    """Who a victim is, as reports name and order it.

    Attributes:
        point: the scaling point, or another name of the model.
        model_family: models that share a tokenizer and a training recipe.
        task: what it is asked.
        seed: seed of its clean training.
    """

    point: str
    model_family: str
    task: str
    seed: int = 0

    def leaves(self) -> dict[str, Any]:
        """The fields of every summary."""
        values = dataclasses.asdict(self)
        return values | {"victim_seed": values.pop("seed")}


@dataclasses.dataclass(frozen=True)
class Past:
    """What a victim went through before it is attacked.

    Attributes:
        trained_on: the attack it was hardened against, or `UNDEFENDED`.
        round: rounds of that adversarial training.
        defence_flops: algorithmic FLOPs of those rounds.
        pretrain_flops: algorithmic FLOPs of its pretraining; None if unknown.
    """

    trained_on: str = UNDEFENDED
    round: int = 0
    defence_flops: int = 0
    pretrain_flops: int | None = None


def finetune_into(
    folder: Path,
    victim: Victim,
    identity: Identity,
    task: Task,
    config: FinetuneConfig,
    *,
    started_from: str = FROM_SCRATCH,
    pretrain_flops: int | None = None,
) -> dict[str, Any]:
    """Trains a victim on clean texts: metrics, checkpoints, model and summary go to the folder.

    A classifier learns the labels; a language model learns to go on with the texts.

    Args:
        folder: the stage's own, claimed already.
        victim: where to start from.
        identity: who it is; its seed orders the batches.
        task: the data.
        config: settings.
        started_from: the checksum of the weights that the victim has, or `FROM_SCRATCH`.
        pretrain_flops: what these weights cost, None if unknown. A model from scratch has no other
            pretraining than this training.

    Returns:
        The summary.
    """
    _, summary = finetune(
        victim,
        task,
        config,
        seed=identity.seed,
        folder=folder,
        label=f"{'pretrain' if config.objective == 'lm' else 'finetune'} {identity.point}",
    )
    if started_from == FROM_SCRATCH:
        pretrain_flops = summary["flops_algorithmic"]
    origin = {"started_from": started_from, "pretrain_flops": pretrain_flops}
    return write_summary(folder, identity, summary | origin)


def attack_into(
    folder: Path,
    victim: Victim,
    identity: Identity,
    past: Past,
    examples: Sequence[Example],
    chunk_kinds: tuple[ChunkKind, ...],
    name: str,
    attack: Attack,
    *,
    seed: int,
    search: SearchConfig,
    num_examples: int,
    label: str,
    companion: Victim | None = None,
    perplexity_filter: PerplexityFilter | None = None,
    rule: SuccessRule | None = None,
) -> dict[str, Any]:
    """Attacks a victim: records, timing and summary go to the folder.

    Args:
        folder: the stage's own, claimed already.
        victim: the model.
        identity: who it is.
        past: what it went through.
        examples: what to attack; only those that the victim answers correctly are.
        chunk_kinds: the task's chunk kinds.
        name: what reports call the attack.
        attack: its settings.
        seed: seed of the attack.
        search: how the search is cut into programs.
        num_examples: correctly answered examples to attack; 0 attacks all.
        label: name on the progress line.
        companion: a second model that the attack asks.
        perplexity_filter: a defence that the attack does not know of; what it detects stands in
            the summary.
        rule: says when a language model is right and when it is broken; None takes a text that it
            does not, or does, go on with.

    Returns:
        The summary.
    """
    path = folder / "attack_records.jsonl"
    answers = None if rule is None else rule.answers(victim, examples, search, num_examples)
    found, timing = attack_examples(
        victim,
        examples,
        chunk_kinds,
        attack,
        seed=seed,
        config=search,
        max_attacked=num_examples or None,
        path=path,
        label=label,
        companion=companion,
        answers=answers,
    )
    if rule is not None:
        found = rule.judged(victim, examples, found, search)
        records.write_records(path, found)
    summary = {
        "kind": "attack",
        "num_params": victim.num_params,
        "attack": name,
        "attack_config": describe(attack),
        "position": attack.position,
        "seed": seed,
    }
    if perplexity_filter is not None:
        detected = perplexity_filter.apply(examples, found, folder)
        summary["perplexity_filter"] = detected
    write_json(folder / "timing.json", timing.to_json())
    return write_summary(
        folder, identity, summary | dataclasses.asdict(past) | records.summarise(found)
    )


def write_summary(folder: Path, identity: Identity, summary: dict[str, Any]) -> dict[str, Any]:
    """Writes `summary.json` with what belongs into every one, and returns it."""
    stage = distributed.from_primary(lambda: read_json(folder / "stage.json"), "stage.json")
    digest = stage["config_hash"]
    whole = summary | identity.leaves() | {"config_hash": digest, "versions": versions()}
    write_json(folder / "summary.json", whole)
    return whole


def task_leaves(config: TaskConfig, task: Task) -> dict[str, Any]:
    """The data set by content: sizes, seed and the hashes of files, wherever they lie."""
    elsewhere = ("train_path", "validation_path", "data_dir", "manual_dir")
    return without(config, *elsewhere, "too_long") | {"source": task.source}


def without(config: Any, *names: str) -> dict[str, Any]:
    """Settings as nested dicts, some fields left out."""
    return {name: value for name, value in describe(config).items() if name not in names}
