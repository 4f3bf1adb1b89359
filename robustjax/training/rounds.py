"""The parts of a round of adversarial training: what is attacked, and what is trained on.

A round owns a folder: ``attacks/NAME/attack_records.jsonl`` of every training attack, then
``model/``. The pool's texts are the records of all rounds; nothing holds them twice.
"""

import dataclasses
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Int

from robustjax.attacks.search import Attack, SearchConfig
from robustjax.data.prompts import ChunkKind, Example
from robustjax.errors import UserError
from robustjax.evaluation.evaluate import attack_examples
from robustjax.evaluation.records import AttackRecord, lines_of, of_lines, read_records
from robustjax.models.victim import Victim
from robustjax.runtime import distributed
from robustjax.training.embedding import EmbeddingAttack, free_rows
from robustjax.training.loop import LabelledRows
from robustjax.training.pool import RoundSample, choose_to_attack, round_rng
from robustjax.training.schedule import AttackSchedule


@dataclasses.dataclass(frozen=True)
class TrainingAttack:
    """One of the attacks that a model is trained against.

    Attributes:
        attack: its settings; each round replaces the number of iterations.
        schedule: iterations of each round.
        share: of the examples that a round attacks, in proportion to the shares of the others.
    """

    attack: Attack
    schedule: AttackSchedule
    share: float = 1.0

    def __post_init__(self) -> None:
        if not 0 < self.share < float("inf"):
            raise UserError(f"share={self.share} must be a number above 0")

    def of_round(self, number: int, num_rounds: int) -> Attack:
        """The attack of a round (from 1)."""
        iterations = self.schedule.iterations(number - 1, num_rounds)
        return dataclasses.replace(self.attack, num_iterations=iterations)


def round_folder(folder: Path, number: int) -> Path:
    """Where a round (from 1) keeps its records and its model."""
    return folder / "rounds" / f"{number:03d}"


def records_path(folder: Path, number: int, name: str) -> Path:
    """The records of one training attack of a round."""
    return round_folder(folder, number) / "attacks" / name / "attack_records.jsonl"


def shares_of(attacks: Mapping[str, TrainingAttack], count: int) -> dict[str, int]:
    """How many of a round's examples each attack gets.

    Raises:
        UserError: one of them gets none.
    """
    shares = np.array([one.share for one in attacks.values()])
    edges = np.round(np.cumsum(shares) / shares.sum() * count).astype(int)
    counts = dict(zip(attacks, np.diff(edges, prepend=0).tolist(), strict=True))
    for name, number in counts.items():
        if not number:
            raise UserError(
                f"attacks.{name}.share={attacks[name].share} is none of the {count} examples that "
                "a round attacks; raise it, or examples_per_round"
            )
    return counts


def attack_round(
    folder: Path,
    number: int,
    victim: Victim,
    clean: Sequence[Example],
    chunk_kinds: tuple[ChunkKind, ...],
    attacks: Mapping[str, Attack],
    counts: Mapping[str, int],
    *,
    seed: int,
    search: SearchConfig,
    companion: Victim | None,
) -> dict[str, list[AttackRecord]]:
    """Attacks a round's choice of clean examples, also those that are answered wrongly.

    Args:
        folder: of the whole training.
        number: the round, from 1.
        victim: as it stands.
        clean: training examples to choose from.
        chunk_kinds: the task's chunk kinds.
        attacks: with the iterations of this round.
        counts: how many examples each attack gets.
        seed: keys the choice and the attacks.
        search: how attacks are cut into programs.
        companion: a second model, for attacks that ask one.

    Returns:
        The records of each attack.
    """
    rng = round_rng(seed, number, "attack")
    chosen = choose_to_attack(len(clean), sum(counts.values()), rng)
    found, start = {}, 0
    for name, attack in attacks.items():
        path = records_path(folder, number, name)
        if distributed.is_primary():
            path.parent.mkdir(parents=True, exist_ok=True)
        found[name], _ = attack_examples(
            victim,
            [clean[i] for i in chosen[start : start + counts[name]]],
            chunk_kinds,
            attack,
            seed=seed,
            config=search,
            only_correct=False,
            path=path,
            label=f"round {number} {name}",
            companion=companion,
        )
        start += counts[name]
    return found


class Recorded(NamedTuple):
    """What a file of records is known by.

    Attributes:
        size: bytes.
        crc32: checksum of its bytes.
    """

    size: int
    crc32: int


def fingerprint_records(folder: Path, number: int, names: Sequence[str]) -> dict[str, Recorded]:
    """The size and the checksum of each attack's records of a round."""

    def read() -> dict[str, Recorded]:
        return {name: _fingerprint(records_path(folder, number, name)) for name in names}

    def back(sent: dict[str, tuple[int, int]]) -> dict[str, Recorded]:
        return {name: Recorded(*one) for name, one in sent.items()}

    return distributed.from_primary(read, f"the records of round {number}", back=back)


def _fingerprint(path: Path) -> Recorded:
    data = path.read_bytes()
    return Recorded(len(data), zlib.crc32(data))


def read_round(
    folder: Path, number: int, expected: Mapping[str, Sequence[int]]
) -> dict[str, list[AttackRecord]]:
    """Reads the records of a round that was attacked, and insists that they are those.

    Raises:
        UserError: a file of records is missing, or not the one that was trained on.
    """

    def read() -> dict[str, list[AttackRecord]]:
        for name, recorded in expected.items():
            path = records_path(folder, number, name)
            if not path.is_file() or _fingerprint(path) != tuple(recorded):
                what = "was changed" if path.is_file() else "is missing"
                raise UserError(
                    f"{path} {what} since round {number} was trained on it; put it back, or start "
                    "afresh in another --workdir"
                )
        return {name: read_records(records_path(folder, number, name)) for name in expected}

    def plain(found: dict[str, list[AttackRecord]]) -> dict[str, list[str]]:
        return {name: lines_of(records) for name, records in found.items()}

    def back(sent: dict[str, list[str]]) -> dict[str, list[AttackRecord]]:
        return {name: of_lines(lines) for name, lines in sent.items()}

    return distributed.from_primary(read, f"the records of round {number}", plain=plain, back=back)


def into_pool(found: Mapping[str, list[AttackRecord]]) -> list[AttackRecord]:
    """A round's attacked texts, successful or not, in the order of their example ids."""
    whole = [record for records in found.values() for record in records]
    attacked = [record for record in whole if record.attacked_text is not None]
    return sorted(attacked, key=lambda record: record.example_id)


class TrainingSet(NamedTuple):
    """What a round trains on, in training order.

    Attributes:
        data: the rows.
        sources: ``[N]`` place in the pool of each row; -1 for others.
        is_adversarial: ``[N]`` whether a row was attacked, as a text or in its embeddings.
    """

    data: LabelledRows
    sources: Int[np.ndarray, " N"]
    is_adversarial: Any


def from_pool(
    victim: Victim,
    clean: Sequence[Example],
    clean_rows: LabelledRows,
    pool: Sequence[AttackRecord],
    sample: RoundSample,
) -> TrainingSet:
    """The clean and the attacked texts of a sample."""
    drawn = [pool[i] for i in sample.adversarial_indices]
    rows = [clean_rows.rows[i] for i in sample.clean_indices]
    rows += victim.tokenizer.encode([record.attacked_text for record in drawn])
    labels = [clean[i].label for i in sample.clean_indices]
    labels += [record.label for record in drawn]
    names = [clean_rows.names[i] for i in sample.clean_indices]
    names += [f"{record.example_id} ({record.attack})" for record in drawn]
    sources = np.concatenate(
        [np.full(len(sample.clean_indices), -1), np.asarray(sample.adversarial_indices)]
    ).astype(int)
    data = LabelledRows(rows, labels, clean_rows.pad_id, names)
    return TrainingSet(data.reordered(sample.order), sources[sample.order], sample.is_adversarial)


def with_free_embeddings(
    victim: Victim,
    clean: Sequence[Example],
    clean_rows: LabelledRows,
    chunk_kinds: tuple[ChunkKind, ...],
    attack: EmbeddingAttack,
    sample: RoundSample,
    share: float,
    *,
    seed: int,
    number: int,
) -> TrainingSet:
    """The clean texts of a sample, a share of them with embeddings that the attack may move."""
    indices = sample.indices
    count = int(len(indices) * share)
    rng = round_rng(seed, number, "embedding")
    chosen = np.sort(rng.permutation(len(indices))[:count])
    rows, free = [clean_rows.rows[i] for i in indices], [range(0)] * len(indices)
    # Slots differ from round to round.
    slots_seed = int(rng.integers(2**32))
    examples, texts = [clean[indices[i]] for i in chosen], [rows[i] for i in chosen]
    moved = free_rows(attack, victim, examples, texts, chunk_kinds, slots_seed)
    for place, (row, where) in zip(chosen, moved, strict=True):
        rows[place], free[place] = row, where
    is_free = np.array([len(where) > 0 for where in free], bool)
    names = [
        f"{clean_rows.names[i]}{' (embedding)' if is_moved else ''}"
        for i, is_moved in zip(indices, is_free, strict=True)
    ]
    labels = [clean[i].label for i in indices]
    data = LabelledRows(rows, labels, clean_rows.pad_id, names, free)
    return TrainingSet(data, np.full(len(indices), -1), is_free)
