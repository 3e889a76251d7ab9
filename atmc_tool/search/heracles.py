"""Heracles' lists of rates (Zhao, Königl and Wressnegger 2022): data set.json → network → kind → id → rates.

A list has one kept rate for each layer in forward order, the shortcut of a block before its first convolution. Lists of
kind `weight` name every layer; those of kind `channel`, of input channels, no shortcuts: these have the rate of the
block's first convolution, which reads the same tensor. The id begins with the rate that was asked for, `001_0`
is 0.01, and the list is to keep no more weights than that rate in every layer: 0.01 of them, and of channels, which
count in and out, Σ W·r·r' with r' of the next layer, about 0.01².
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from atmc_tool.errors import InputError, UsageError
from atmc_tool.search.layers import Layer, cost_of, kept_units, whole_cost
from atmc_tool.search.strategy import Strategy, read_plain, strategy_of

STRUCTURES = {"weight": "irregular", "channel": "channel", "filter": "filter"}  # kind of list → ours
# By which a list may exceed what it was asked for: units are rounded, and in and out of channels is a convention.
TOLERANCES = {"irregular": 0.02, "channel": 0.05, "filter": 0.05}


@dataclass(frozen=True)
class Reading:
    """A list as rates of layers.

    shares:     name → share kept
    stated:     share of the weights that the rate in its id keeps in every layer; None: there is none
    recomputed: share of the weights that it keeps, in and out for channels and filters
    loaded:     the same where shortcuts come before the block's first convolution, as the published loaders read it
    execution:  shortcuts are taken where they are executed, not before the block's first convolution
    """

    structure: str
    shares: dict[str, float]
    stated: float | None
    recomputed: float
    loaded: float
    execution: bool = False

    @property
    def misses(self) -> bool:
        """Whether it keeps more than its id says."""
        return self.stated is not None and self.recomputed > self.stated * (1 + TOLERANCES[self.structure])


def stated_rate(name: str) -> float | None:
    """The rate that the id `010_uni` begins with, 0.1; None where it begins with none."""
    match = re.match(r"0(\d+)(?:_|$)", name)
    return float(f"0.{match[1]}") if match else None


def read_rates(kind: str, name: str, rates: Sequence[float], layers: Sequence[Layer]) -> Reading:
    """The list `name` for a network of `layers`, in order of execution.

    Some published lists are in order of execution instead, without a word. One that meets its budget only so is read
    so: `execution`.

    Raises:
        InputError: not as many rates as the network takes.
    """
    structure = STRUCTURES[kind]
    first, last = _forward(layers, structure, shortcuts_first=True), _forward(layers, structure, shortcuts_first=False)
    if len(rates) != len(first):
        raise InputError(f"the list {name} does not fit the network", expected=f"{len(first)} rates", got=len(rates))
    rate = stated_rate(name)
    stated = None if rate is None else _budget(structure, first, [rate] * len(first), layers)[1]
    shares, share = _budget(structure, first, rates, layers)
    found = Reading(structure, shares, stated, share, share)
    if not found.misses or first == last:
        return found
    shares, other = _budget(structure, last, rates, layers)
    executed = Reading(structure, shares, stated, other, share, execution=True)
    return found if executed.misses else executed


def _forward(layers: Sequence[Layer], structure: str, *, shortcuts_first: bool) -> list[list[Layer]]:
    """The layers that each rate of a list is for, in the order of the list."""
    groups: dict[str, list[Layer]] = {}
    for layer in layers:
        groups.setdefault(layer.group, []).append(layer)
    if structure == "channel":
        return list(groups.values())
    if shortcuts_first:
        return [[layer] for group in groups.values() for layer in reversed(group)]
    return [[layer] for layer in layers]


def _budget(
    structure: str, order: Sequence[Sequence[Layer]], rates: Sequence[float], layers: Sequence[Layer]
) -> tuple[dict[str, float], float]:
    """Shares by name where the rates are for the layers of `order`, and the share of the weights that they keep."""
    by_name = {layer.name: rate for members, rate in zip(order, rates, strict=True) for layer in members}
    shares = {layer.name: by_name[layer.name] for layer in layers}
    cost = cost_of(layers, structure, "shrunk")
    kept = cost([kept_units(layer, structure, shares[layer.name]) for layer in layers])
    return shares, kept / whole_cost(layers, structure, cost)


def lists_in(content: object, where: str) -> dict[tuple[str, str, str], list[float]]:
    """(network, kind, id) → rates, of all lists in the plain values of a file.

    Raises:
        InputError: the values are of another form.
    """
    found: dict[tuple[str, str, str], list[float]] = {}
    try:
        for network, kinds in _items(content):
            for kind, lists in _items(kinds):
                for name, rates in _items(lists):
                    if kind in STRUCTURES:
                        found[network, kind, name] = [_rate(rate) for rate in rates]
    except (TypeError, ValueError) as error:
        raise InputError(f"{where} holds no lists of rates: {error}", expected="network → kind → id → rates") from error
    return found


def _items(value: Any) -> list[tuple[str, Any]]:
    if not isinstance(value, dict):
        raise TypeError(f"{type(value).__name__} in place of a mapping")
    return [(str(key), inside) for key, inside in value.items()]


def _rate(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value <= 1:
        raise ValueError(f"{value!r} is no rate above 0 and at most 1")
    return float(value)


def read_heracles(path: Path, selector: str, layers: Sequence[Layer]) -> Strategy:
    """The list `resnet18/weight/001_0` of the file; `found` says what it keeps, and a `warning` where that is amiss.

    Raises:
        UsageError: no such list; names those that there are.
        InputError: the file is damaged, or the list is for another network.
    """
    lists = lists_in(read_plain(path), str(path))
    network, kind, name = ([*selector.split("/"), "", ""])[:3]
    if (network, kind, name) not in lists:
        known = ["/".join(key) for key in lists]
        near = [key for key in known if key.startswith(network)] or known
        raise UsageError(f"{path} has no list {selector}", expected=f"one of {', '.join(near[:12])}")
    reading = read_rates(kind, name, lists[network, kind, name], layers)
    found: dict[str, Any] = {"by": "Heracles' list", "file": path.name, "list": selector}
    if reading.stated is not None:
        found["stated"] = reading.stated
    found["recomputed"] = reading.recomputed
    if reading.misses:
        found["warning"] = f"the list {selector} is said to keep {reading.stated:.4g} of the weights"
        found["warning"] += f" and keeps {reading.recomputed:.4g}"
    elif reading.execution:
        found["warning"] = f"the list {selector} keeps {reading.loaded:.4g} of the weights with shortcuts before their"
        found["warning"] += f" block and {reading.recomputed:.4g} in order of execution: read in order of execution"
    return strategy_of(reading.shares, reading.structure, None, found)
