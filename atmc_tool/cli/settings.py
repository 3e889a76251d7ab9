"""From options, files and recipes to the one configuration of a run."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from atmc_tool.cli.options import given

if TYPE_CHECKING:
    from atmc_tool.config import Config

CONFIG_FILE = Path("atmc.yaml")


def resolve(recorded: Mapping[str, Any] | None = None) -> "Config":
    """The configuration of the running command. A later layer wins over an earlier one:
    defaults, `recorded` (what an earlier command wrote), --preset, atmc.yaml or -c, --set, dedicated options.

    Raises:
        UsageError: an unknown key, or a value out of range.
        InputError: a configuration file that is missing or damaged.
    """
    from atmc_tool.config import build_config, parse_assignments, read_recipe, read_yaml

    options = dict(given(click.get_current_context()))
    preset = options.pop("source.preset", None)
    file = options.pop("source.file", None) or (CONFIG_FILE if CONFIG_FILE.is_file() else None)
    assignments = options.pop("source.assignments", ())
    layers = [
        recorded or {},
        read_recipe(preset) if preset else {},
        read_yaml(file) if file else {},
        parse_assignments(assignments),
        _nested(options),
    ]
    return build_config(_merge_budgets(layers))


def resolve_run(recorded: Path | None) -> "Config":
    """`resolve` over the configuration that an earlier run wrote to `recorded`, which a resumed run need not repeat."""
    from atmc_tool.config import read_yaml

    return resolve(read_yaml(recorded) if recorded else None)


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


def _merge_budgets(layers: list[Mapping[str, Any]]) -> dict[str, Any]:
    """The merged layers; a layer that gives one kind of budget takes back the other kind from the layers beneath."""
    from atmc_tool.config import merge

    result: dict[str, Any] = {}
    for layer in layers:
        budget = layer.get("compress")
        for key, other in (("keep", "size"), ("size", "keep")):
            if isinstance(budget, Mapping) and budget.get(key) is not None and other not in budget:
                result = merge(result, {"compress": {other: None}})
        result = merge(result, layer)
    return result


def portable(config: "Config") -> dict[str, Any]:
    """The configuration as plain JSON for artefacts, without folders, for where a run lies decides nothing."""
    facts: dict[str, Any] = config.model_dump(mode="json", exclude={"run": True, "data": {"dir"}})
    return facts
