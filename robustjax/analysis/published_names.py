"""What the name of a published CSV file says: whom it attacked, on what, and with what.

    finetuned_FAMILY_TASK_ATTACK
    advtrained_FAMILY_TASK_TRAINATTACK_vs_ATTACK
    training_FAMILY_TASK_TRAINATTACK
    strongreject_FAMILY_ATTACK

Then, in this order and each left out where it does not apply: the position of the slot (`_prefix`,
`_infix90`), which part of the sizes the file holds (`_410m_up`, `_to_160m`), and `_asr_only` (no
FLOPs and no counts). The ending is `.csv` or `.csv.gz`.
"""

import dataclasses
import re
from pathlib import Path
from typing import Literal

from robustjax.errors import UserError
from robustjax.evaluation.records import UNDEFENDED

Role = Literal["finetuned", "advtrained", "training", "strongreject"]

ENDINGS = (".csv", ".csv.gz")
FAMILIES = {"pythia": "pythia", "qwen2p5": "qwen2.5"}
TASKS = {
    "imdb": "imdb",
    "spam": "spam",
    "helpful": "helpful",
    "harmless": "harmless",
    "pm": "password_match",
    "passwordmatch": "password_match",
    "password_match": "password_match",
    "wl": "word_length",
    "wordlength": "word_length",
    "word_length": "word_length",
}
ATTACKS = {
    "gcg": "gcg",
    "rt": "random_token",
    "randomtoken": "random_token",
    "random_token": "random_token",
    "beast": "beast",
}

_SIZE = r"\d+(?:[.p]\d+)?[mb]"
_NAME = re.compile(
    rf"""
    (?: finetuned_  (?P<f_family>{"|".join(FAMILIES)})_(?P<f_task>{"|".join(TASKS)})
                    _(?P<f_attack>{"|".join(ATTACKS)})
      | advtrained_ (?P<a_family>{"|".join(FAMILIES)})_(?P<a_task>{"|".join(TASKS)})
                    _(?P<a_trained>{"|".join(ATTACKS)})(?P<a_flat>[-_]?no[-_]?ramp)?
                    _vs_(?P<a_attack>{"|".join(ATTACKS)})
      | training_   (?P<t_family>{"|".join(FAMILIES)})_(?P<t_task>{"|".join(TASKS)})
                    _(?P<t_trained>{"|".join(ATTACKS)})(?P<t_flat>[-_]?no[-_]?ramp)?
      | strongreject_ (?P<s_family>{"|".join(FAMILIES)})_(?P<s_attack>{"|".join(ATTACKS)})
    )
    (?: _(?: suffix | (?P<prefix>prefix) | infix(?P<infix>\d\d)) )?
    (?: _(?P<part>{_SIZE}_up | to_{_SIZE}) )?
    (?P<asr_only>_asr_only)?
    """,
    re.VERBOSE,
)


@dataclasses.dataclass(frozen=True)
class FileName:
    """What a file's name says.

    Attributes:
        role: what its rows are.
        family: model family.
        task: as `robustjax data list` names it.
        trained_on: training attack, or `UNDEFENDED`; `+no_ramp` where every round searched equally
            long.
        attack: attack of the evaluation, empty for training runs.
        position: place of its slot; 1 is a suffix, 0 a prefix.
        part: which sizes it holds, empty for all. The parts of an experiment belong together.
        asr_only: whether it has neither FLOPs nor counts.
    """

    role: Role
    family: str
    task: str
    trained_on: str
    attack: str
    position: float
    part: str
    asr_only: bool


def parse_name(file: Path) -> FileName:
    """Read a file's name.

    Raises:
        UserError: it does not follow the grammar above.
    """
    stem = file.name.removesuffix(".gz").removesuffix(".csv")
    match = _NAME.fullmatch(stem)
    if match is None:
        raise UserError(
            f"{file}: the name says nothing known; expected "
            "finetuned_FAMILY_TASK_ATTACK, advtrained_FAMILY_TASK_TRAINATTACK_vs_ATTACK, "
            "training_FAMILY_TASK_TRAINATTACK or strongreject_FAMILY_ATTACK, then optionally "
            "_prefix or _infix90, _410m_up or _to_160m, and _asr_only, where FAMILY is one of "
            f"{', '.join(FAMILIES)}, TASK of {', '.join(TASKS)}, ATTACK of {', '.join(ATTACKS)}; "
            "rename the file or take it out of the folder"
        )
    found = match.groupdict()
    role: Role = stem.partition("_")[0]  # type: ignore[assignment]
    initial = role[0]
    flat = "+no_ramp" if found.get(f"{initial}_flat") else ""
    trained = found.get(f"{initial}_trained")
    infix = found["infix"]
    return FileName(
        role=role,
        family=FAMILIES[found[f"{initial}_family"]],
        task="strongreject" if role == "strongreject" else TASKS[found[f"{initial}_task"]],
        trained_on=ATTACKS[trained] + flat if trained else UNDEFENDED,
        attack="" if role == "training" else ATTACKS[found[f"{initial}_attack"]],
        position=0.0 if found["prefix"] else int(infix) / 100 if infix else 1.0,
        part=found["part"] or "",
        asr_only=bool(found["asr_only"]),
    )
