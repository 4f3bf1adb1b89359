"""What configs share: typed arguments after the file name, as in ``smoke.py:task=jsonl,seed=1``."""

from typing import Any


def parse_arg(arg: str | None, **defaults: Any) -> dict[str, Any]:
    """Parses ``name=value,...`` with the types of the defaults; a bare ``name`` means True.

    Raises:
        ValueError: an unknown name, or a value that is not of the default's type.
    """
    values = dict(defaults)
    for item in filter(None, (arg or "").split(",")):
        name, _, text = item.partition("=")
        if name not in defaults:
            raise ValueError(f"argument {name!r} is unknown; known: {', '.join(defaults)}")
        values[name] = _convert(name, text or "True", defaults[name])
    return values


def _convert(name: str, text: str, default: Any) -> Any:
    if isinstance(default, bool):
        if text not in ("True", "False"):
            raise ValueError(f"argument {name}={text!r} must be True or False")
        return text == "True"
    try:
        return type(default)(text)
    except ValueError as error:
        raise ValueError(
            f"argument {name}={text!r} must be of type {type(default).__name__}"
        ) from error
