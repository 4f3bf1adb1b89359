"""Whether a file of records is of the search that is asked for.

Records say what came of a search, not all that went into it. Beside them stands a small file with a
fingerprint of that: only the same search goes on with them.
"""

import dataclasses
import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from robustjax.attacks.saved_search import of_models
from robustjax.attacks.search import Attack, SearchConfig
from robustjax.data.prompts import ChunkKind, Example
from robustjax.errors import UserError
from robustjax.evaluation.answers import Answer
from robustjax.models.victim import Victim
from robustjax.runtime.files import write_text


def fingerprint(
    victim: Victim,
    companion: Victim | None,
    examples: Sequence[Example],
    chunk_kinds: Sequence[ChunkKind],
    attack: Attack,
    seed: int,
    config: SearchConfig,
    only_correct: bool,
    max_attacked: int | None,
    answers: Mapping[int, Answer] | None,
) -> str:
    """Of all that defines the records of a search, weights included; every process calls it.

    The arguments are those of ``evaluate.attack_examples``.
    """
    about = {
        "attack": [attack.name, dataclasses.asdict(attack)],
        "seed": seed,
        "config": dataclasses.asdict(config),
        "chunk_kinds": [kind.value for kind in chunk_kinds],
        "tokenizer": victim.tokenizer.fingerprint,
        "examples": [dataclasses.asdict(example) for example in examples],
        "chosen": [only_correct, max_attacked],
        "correct": None if answers is None else sorted(i for i in answers if answers[i].correct),
    }
    known = json.dumps(about, sort_keys=True).encode()
    return hashlib.sha256(known + of_models(victim, companion)).hexdigest()


def claim(path: Path, key: str) -> None:
    """Makes a file of records, which may be there already, one of a search.

    Args:
        path: the file; the fingerprint stands beside it, in ``<name>.search.json``.
        key: the fingerprint.

    Raises:
        UserError: there are records of another search, or of one that left no fingerprint.
    """
    beside = path.with_suffix(".search.json")
    if path.exists() and path.stat().st_size:
        if not beside.exists():
            raise UserError(
                f"{path} holds records, but {beside.name}, which says of what search, is not "
                "beside it; give another path or delete the records"
            )
        if beside.read_text() != _content(key):
            raise UserError(
                f"{path} holds records of another attack: the victim, the examples or the settings "
                "were others; give another path or delete it"
            )
    else:
        write_text(beside, _content(key))


def _content(key: str) -> str:
    return json.dumps({"fingerprint": key}) + "\n"
