"""Settings: nested mappings of what a user states, from named recipes, YAML files and assignments.

The command line wins over the file, the file over the recipe, the recipe over the defaults of `config.py`.
"""

import difflib
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import yaml

from atmc_tool.errors import InputError, UsageError
from atmc_tool.files import read_bytes

MAX_YAML_BYTES = 1 << 20


def recipes() -> list[str]:
    """Names of the recipes that come with the package."""
    folder = resources.files("atmc_tool") / "recipes"
    return sorted(entry.name.removesuffix(".yaml") for entry in folder.iterdir() if entry.name.endswith(".yaml"))


def read_recipe(name: str) -> dict[str, Any]:
    """The settings of recipe `name`.

    Raises:
        UsageError: no such recipe.
    """
    if name not in recipes():
        raise UsageError(
            "unknown preset",
            expected=f"one of {', '.join(recipes())}",
            got=repr(name),
            hint=_nearest(name, recipes()),
        )
    return _parse_yaml((resources.files("atmc_tool") / "recipes" / f"{name}.yaml").read_text(), f"preset {name}")


def read_yaml(path: Path) -> dict[str, Any]:
    """The settings in a YAML file; an empty file holds none.

    Raises:
        InputError: missing, not YAML, or not a mapping.
    """
    try:
        text = read_bytes(path, MAX_YAML_BYTES).decode()
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not a text file", expected="YAML in UTF-8") from error
    return _parse_yaml(text, str(path))


def _parse_yaml(text: str, where: str) -> dict[str, Any]:
    try:
        content = yaml.safe_load(text)
    except (ValueError, yaml.YAMLError, RecursionError) as error:  # of dates, of long numbers
        raise InputError(f"{where} is not valid YAML: {error}") from error
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise InputError(
            f"{where} holds no settings", expected="a mapping such as 'seed: 0'", got=type(content).__name__
        )
    return content


def parse_assignments(assignments: Sequence[str]) -> dict[str, Any]:
    """`["compress.lr=0.1", "seed=3"]` → nested settings; values are read as YAML.

    Below a section and its key, dots are part of a name: `compress.layers.conv1.weight=0.5`.

    Raises:
        UsageError: no `=`, a value that is not YAML, or a key below one that has a value.
    """
    result: dict[str, Any] = {}
    for assignment in assignments:
        key, equals, value = assignment.partition("=")
        if not equals or not key.strip():
            raise UsageError(
                "--set is not understood", expected="key=value such as compress.lr=0.1", got=repr(assignment)
            )
        try:
            parsed = yaml.safe_load(value)
        except yaml.YAMLError as error:
            raise UsageError(f"the value of --set {key} is not understood", got=repr(value)) from error
        *sections, last = key.strip().split(".", 2)
        target = result
        for section in sections:
            target = target.setdefault(section, {})
            if not isinstance(target, dict):
                raise UsageError(f"--set gives {section} both a value and keys of its own", got=repr(assignment))
        target[last] = parsed
    return result


def merge(*layers: Mapping[str, Any]) -> dict[str, Any]:
    """Nested settings in which later layers win, key by key."""
    result: dict[str, Any] = {}
    for layer in layers:
        for key, value in layer.items():
            both = isinstance(value, Mapping) and isinstance(result.get(key), Mapping)
            result[key] = merge(result[key], value) if both else value
    return result


def _nearest(name: str, known: Sequence[str]) -> str:
    matches = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return f"did you mean {matches[0]}?" if matches else f"known: {', '.join(known)}"
