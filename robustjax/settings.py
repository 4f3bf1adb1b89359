"""From a config (nested mappings) to the frozen dataclasses that library code takes.

Every field is checked by name and type before anything runs; a mistake is one line that names the
field as it is written on the command line.
"""

import dataclasses
import difflib
import types
import typing
from collections.abc import Mapping
from typing import Any, TypeVar

from robustjax.attacks.search import ATTACKS, Attack
from robustjax.errors import UserError

T = TypeVar("T")


def build(cls: type[T], values: Mapping[str, Any], path: str) -> T:
    """Builds a dataclass from a mapping of its fields, and nested ones from nested mappings.

    Args:
        cls: the dataclass.
        values: its fields; those left out keep their defaults.
        path: where ``values`` stands in the config, for messages.

    Raises:
        UserError: an unknown field, a missing one, a value of another type, or one that the
            dataclass refuses.
    """
    hints = typing.get_type_hints(cls)
    fields = {field.name: field for field in dataclasses.fields(cls)}  # type: ignore[arg-type]
    for name in values:
        if name not in fields:
            raise UserError(f"{path}.{name}: no such field{_suggestion(name, fields)}")
    for name, field in fields.items():
        required = (
            field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
        )
        if required and name not in values:
            raise UserError(f"{path}.{name} is missing; set it")
    given = {name: _convert(hints[name], value, f"{path}.{name}") for name, value in values.items()}
    try:
        return cls(**given)
    except UserError as error:
        raise UserError(f"{path}: {error}") from error


def build_attack(values: Mapping[str, Any], path: str) -> Attack:
    """Builds the settings of the attack that ``values["name"]`` names."""
    rest = dict(values)
    name = rest.pop("name", None)
    if name not in ATTACKS:
        raise UserError(f"{path}.name={name!r} is no attack; known: {', '.join(ATTACKS)}")
    return build(ATTACKS[name], rest, path)


def _convert(hint: Any, value: Any, path: str) -> Any:
    if hint == Attack:
        return build_attack(value, path)
    if dataclasses.is_dataclass(hint) and isinstance(value, Mapping):
        return build(hint, value, path)  # type: ignore[arg-type]
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (types.UnionType, typing.Union):
        if value is None and type(None) in arguments:
            return None
        (hint,) = [one for one in arguments if one is not type(None)]
        return _convert(hint, value, path)
    if origin is tuple and isinstance(value, list | tuple):
        return tuple(
            _convert(arguments[0], item, f"{path}[{index}]") for index, item in enumerate(value)
        )
    if origin is dict and isinstance(value, Mapping):
        return {key: _convert(arguments[1], item, f"{path}.{key}") for key, item in value.items()}
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    wanted = origin or hint
    if not isinstance(value, wanted) or (isinstance(value, bool) and wanted is not bool):
        raise UserError(
            f"{path}={value!r} is {type(value).__name__}, expected {getattr(wanted, '__name__', wanted)}"
        )
    return value


def _suggestion(name: str, known: Mapping[str, Any]) -> str:
    close = difflib.get_close_matches(name, known, n=1)
    return f"; did you mean {close[0]}?" if close else f"; known: {', '.join(known)}"
