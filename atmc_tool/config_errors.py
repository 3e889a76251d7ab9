"""What is wrong with settings, as one line."""

import difflib
import re
from collections.abc import Sequence

from pydantic import BaseModel, ValidationError

UNION_TAGS = ("constrained-float", "LayerRate")  # pydantic's, of what may stand at a key: no part of it
COMPARISONS = {  # pydantic's words → ours
    "greater than or equal to": "at least",
    "less than or equal to": "at most",
    "greater than": "above",
    "less than": "below",
}


def explain(error: ValidationError, model: type[BaseModel]) -> str:
    """The first problem of a pydantic error as one line that names the key and, for an unknown one, the nearest."""
    first = error.errors()[0]
    path = [str(part) for part in first["loc"] if part not in UNION_TAGS]
    key = ".".join(path)
    if first["type"] == "extra_forbidden":
        return f"unknown configuration key {key}. Hint: {_nearest_key(path, model)}"
    message = first["msg"].removeprefix("Value error, ").replace("Input should be", "expected")
    message = re.sub(r"a valid dictionary or instance of \w+", "a mapping of keys", message)
    for long, short in COMPARISONS.items():
        message = message.replace(long, short)
    if not key:
        return message
    return f"{key}: {message}" if first["type"] == "value_error" else f"{key}: {message}, got {first['input']!r}"


def _nearest_key(path: Sequence[str], model: type[BaseModel]) -> str:
    """What was meant by an unknown key: the same name elsewhere, or the nearest in its own section."""
    *section, name = path
    same = [key for key in _keys(model) if key.split(".")[-1] == name]
    if same:
        return f"did you mean {' or '.join(same)}?"
    prefix = "".join(f"{part}." for part in section)
    inside = [key.removeprefix(prefix) for key in _keys(model) if key.startswith(prefix)]
    siblings = list(dict.fromkeys(key.split(".")[0] for key in inside))
    matches = difflib.get_close_matches(name, siblings, n=1, cutoff=0.5)
    return f"did you mean {prefix}{matches[0]}?" if matches else f"known: {', '.join(siblings)}"


def _keys(model: type[BaseModel], prefix: str = "") -> list[str]:
    """All keys, those of sections with their section: `compute.precision`."""
    keys: list[str] = []
    for name, field in model.model_fields.items():
        section = field.annotation
        if isinstance(section, type) and issubclass(section, BaseModel):
            keys += _keys(section, f"{prefix}{name}.")
        else:
            keys.append(f"{prefix}{name}")
    return keys
