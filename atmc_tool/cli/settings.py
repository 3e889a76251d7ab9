"""From options, files and recipes to the one configuration of a run."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from atmc_tool.cli.options import given
from atmc_tool.errors import InputError

if TYPE_CHECKING:
    from atmc_tool.config import Config

CONFIG_FILE = Path("atmc.yaml")
BUDGETS = ("keep", "size", "nominal_size", "strategy")


def resolve(recorded: Mapping[str, Any] | None = None) -> "Config":
    """The configuration of the running command. A later layer wins over an earlier one:
    defaults, `recorded` (what files say), --preset, atmc.yaml or -c, --set, --policy, dedicated options.

    --policy takes the place of all policies beneath it, so that nothing in them can loosen it.

    Raises:
        UsageError: an unknown key, or a value out of range.
        InputError: a configuration file that is missing or damaged; or `recorded` names code that the user does not.
    """
    from atmc_tool.baselines import leave_to_method
    from atmc_tool.settings import parse_assignments, read_recipe, read_yaml

    options = dict(given(click.get_current_context()))
    preset = options.pop("source.preset", None)
    file = options.pop("source.file", None) or (CONFIG_FILE if CONFIG_FILE.is_file() else None)
    assignments = options.pop("source.assignments", ())
    policy = options.pop("source.policy", None)
    layers = [
        read_recipe(preset) if preset else {},
        read_yaml(file) if file else {},
        parse_assignments(assignments),
    ]
    if policy is not None:
        layers = [*(_without_policy(layer) for layer in layers), {"policy": _read_policy(policy)}]
        recorded = None if recorded is None else _without_policy(recorded)
    return layered(leave_to_method([*layers, _nested(options)]), recorded)


def _read_policy(path: Path) -> dict[str, Any]:
    from atmc_tool.settings import read_yaml
    from evaluators.policy import parse_policy

    return parse_policy(read_yaml(path), str(path)).to_json()


def _without_policy(layer: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in layer.items() if key != "policy"}


def layered(layers: Sequence[Mapping[str, Any]], recorded: Mapping[str, Any] | None = None) -> "Config":
    """The configuration that the user states in `layers`, a later one winning, over `recorded` (what files say).

    Raises:
        UsageError: an unknown key, or a value out of range.
        InputError: `recorded` names code that the user does not.
    """
    from atmc_tool.config import build_config

    stated = build_config(_merge_budgets(layers))
    if not recorded:
        return stated
    if stated.compress.strategy is not None and isinstance(recorded.get("compress"), Mapping):
        then = {key: value for key, value in recorded["compress"].items() if key != "layers"}
        recorded = {**recorded, "compress": then}  # its layers are what the strategy became
    config = build_config(_merge_budgets([recorded, *layers]))
    _refuse_code("network", "--arch", stated.model.arch, config.model.arch)
    _refuse_code("data set", "--data", stated.data.name, config.data.name)
    return config


def _refuse_code(what: str, option: str, stated: str | None, resolved: str | None) -> None:
    """The user's code is run only where the user names it, never on the word of a file."""
    from atmc_tool.plugins import is_callable_spec

    if resolved is not None and resolved != stated and is_callable_spec(resolved):
        raise InputError(
            f"the {what} is {resolved!r}, code that is not run on the word of a file", hint=f"{option} {resolved}"
        )


def _nested(flat: Mapping[str, Any]) -> dict[str, Any]:
    """`{"compress.keep": 0.05}` → `{"compress": {"keep": 0.05}}`."""
    result: dict[str, Any] = {}
    for key, value in flat.items():
        *sections, last = key.split(".")
        target = result
        for section in sections:
            target = target.setdefault(section, {})
        target[last] = value
    return result


def _merge_budgets(layers: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The merged layers; a layer that gives one kind of budget takes back the others from the layers beneath."""
    from atmc_tool.settings import merge

    result: dict[str, Any] = {}
    for layer in layers:
        stated = layer.get("compress")
        if isinstance(stated, Mapping) and any(stated.get(key) is not None for key in BUDGETS):
            result = merge(result, {"compress": dict.fromkeys(BUDGETS)})
        result = merge(result, layer)
    return result


def portable(config: "Config") -> dict[str, Any]:
    """The configuration as plain JSON for artefacts, without folders and trackers, for they decide nothing."""
    facts: dict[str, Any] = config.model_dump(mode="json", exclude={"run": True, "data": {"dir"}, "trackers": True})
    return facts
