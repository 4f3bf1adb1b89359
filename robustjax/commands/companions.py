"""The second model that a command's attacks may ask: whether it is named, found, and fits."""

from collections.abc import Collection

from robustjax import given_model
from robustjax.attacks.search import (
    Attack,
    check_companion,
    check_goal,
    companion_head,
    why_companion,
)
from robustjax.errors import UserError
from robustjax.given_model import GivenModel, ModelConfig
from robustjax.models.transformer import Head


def check_companion_is_named(
    companion: ModelConfig, attacks: Collection[Attack], head: Head
) -> None:
    """Raises UserError for what is wrong with the companion by the settings alone.

    Not when settings are built: a config is built before the flags that complete it are read.

    Args:
        companion: `config.companion`.
        attacks: all attacks of the command.
        head: what the victim puts out.
    """
    for attack in attacks:
        check_goal(attack, head)
        if (reason := why_companion(attack, head)) and not companion.is_named:
            raise UserError(
                f"config.companion.path is empty, but {reason}; give one of the victim's family"
            )
    if companion.is_named and not any(attack.needs_companion for attack in attacks):
        names = " and ".join(dict.fromkeys(attack.name for attack in attacks)) or "no attack"
        raise UserError(f"config.companion is set, but {names} asks no second model; leave it out")


def find_companion(
    companion: ModelConfig, attacks: Collection[Attack], victim: GivenModel, num_classes: int
) -> GivenModel | None:
    """Finds the second model; None if none is named.

    Args:
        companion: `config.companion`.
        attacks: all attacks of the command.
        victim: the model under attack.
        num_classes: classes of the task.

    Raises:
        UserError: there is no such model, or it does not fit the victim or one of the attacks.
    """
    if not companion.is_named:
        return None
    asking = [attack for attack in attacks if attack.needs_companion]
    head = companion_head(asking[0], victim.definition.head)
    remedy = "fine-tune it on the task first (robustjax finetune)"
    found = given_model.find(companion, head, num_classes, remedy, field="config.companion")
    for attack in asking:
        check_companion(attack, victim, found)
    return found
