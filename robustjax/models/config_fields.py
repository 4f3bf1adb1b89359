"""Reads a Hugging Face `config.json`: an error for each field that is wrong or beyond a port."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from robustjax.errors import UserError

_REQUIRED = object()


@dataclasses.dataclass(frozen=True)
class ConfigFields:
    """The fields of a `config.json`; null counts as absent."""

    content: Mapping[str, Any]

    def get(self, name: str, default: Any = _REQUIRED) -> Any:
        """A field, of the type of its default; a whole number above 0 where it has none.

        Raises:
            UserError: it is absent and has no default, or is of another type.
        """
        value = self.content.get(name)
        if value is None:
            if default is _REQUIRED:
                raise UserError(
                    f"config.json: {name} is missing; is the folder a language model's?"
                )
            return default
        if default is _REQUIRED:
            is_right = type(value) is int and value > 0
        elif isinstance(default, float):
            is_right = type(value) in (int, float)
        else:
            is_right = default is None or type(value) is type(default)
        if not is_right:
            raise UserError(f"config.json: {name} is {value!r}, which makes no sense; mend it")
        return value

    def require(self, name: str, wanted: Any, default: Any) -> None:
        """Checks that a field says what the port does.

        Raises:
            UserError: it says something else.
        """
        value = self.content.get(name)
        if (default if value is None else value) != wanted:
            raise UserError(
                f"config.json: {name} is {value!r}; only {wanted!r} is supported, so take a model "
                "with that"
            )

    def rope(self, theta_name: str = "rope_theta") -> "ConfigFields":
        """The rotary embedding's fields, in the spelling of transformers 5.

        There they are one mapping `rope_parameters`; before, `rope_scaling` and plain fields.
        """
        merged: dict[str, Any] = {}
        for name in (theta_name, "rope_theta"):
            if self.content.get(name) is not None:
                merged["rope_theta"] = self.content[name]
        for name in ("rope_scaling", "rope_parameters"):
            merged.update(self.get(name, {}))
        if "type" in merged:
            merged.setdefault("rope_type", merged.pop("type"))
        return ConfigFields(merged)
