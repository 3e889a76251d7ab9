"""A strategy: which layer keeps how much, in how many bits or at which rank. Files in YAML or JSON."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import yaml
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    ValidationError,
    model_serializer,
    model_validator,
)

from atmc_tool.config_errors import explain
from atmc_tool.errors import InputError
from atmc_tool.files import read_bytes, write_atomic
from atmc_tool.structure_names import STRUCTURES, parse_n_of_m

MAX_BYTES = 1 << 24


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class LayerRate(_Section):
    """What a layer keeps.

    keep: share of its units, rounded, at least one
    bits: of its codebook
    rank: of a low-rank weight, for alr
    """

    keep: float = Field(gt=0, le=1)
    bits: Annotated[int, Field(ge=1, le=8)] | None = None
    rank: Annotated[int, Field(ge=1)] | None = None

    @model_serializer(mode="wrap")
    def _stated(self, plain: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return {key: value for key, value in plain(self).items() if value is not None}


class StrategyBudget(_Section):
    """What the strategy was made for: a share of what the whole network costs by `measure`, or a limit."""

    measure: Literal["weights", "flops", "shrunk", "bytes"] = "weights"
    share: float | None = Field(None, gt=0, le=1)
    limit: int | None = Field(None, ge=1)

    @model_validator(mode="after")
    def _one(self) -> Self:
        if (self.share is None) == (self.limit is None):
            raise ValueError("give one of share and limit")
        if self.measure == "bytes" and self.limit is None:
            raise ValueError("a budget in bytes is a limit")
        return self


class Strategy(_Section):
    """What every layer keeps.

    structure: of the units, see structures.py
    budget:    that it was made for; None: none
    layers:    name of the weight → what it keeps, for every compressible weight
    found:     how it was found: plain values for people to read
    """

    structure: str = "irregular"
    budget: StrategyBudget | None = None
    layers: dict[str, LayerRate]
    found: dict[str, Any] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _whole(self) -> Self:
        if self.structure not in STRUCTURES and parse_n_of_m(self.structure) is None:
            raise ValueError(f"structure is one of {', '.join(STRUCTURES)}, or N:M such as 2:4")
        if not self.layers:
            raise ValueError("layers is empty")
        with_bits = [rate.bits is not None for rate in self.layers.values()]
        if any(with_bits) and not all(with_bits):
            raise ValueError("bits are given for some layers only: give them for all or none")
        return self

    @property
    def shares(self) -> dict[str, float]:
        """Name → share kept."""
        return {name: rate.keep for name, rate in self.layers.items()}

    def settings(self) -> dict[str, Any]:
        """Section `compress` of a method that prunes, so that it keeps exactly this; the share in all is left out.

        So are ranks: they are for alr.
        """
        bits = [rate.bits for rate in self.layers.values() if rate.bits is not None]
        return {
            "structure": self.structure,
            "scope": "layer",
            "layers": {
                name: rate.keep if rate.bits is None else {"keep": rate.keep, "bits": rate.bits}
                for name, rate in self.layers.items()
            },
            **({"bits": max(bits)} if bits else {}),
        }


def strategy_of(
    shares: Mapping[str, float],
    structure: str = "irregular",
    budget: StrategyBudget | None = None,
    found: Mapping[str, Any] | None = None,
) -> Strategy:
    """The strategy that keeps `shares`: name → share of the layer's units."""
    rates = {name: LayerRate(keep=share) for name, share in shares.items()}
    return Strategy(structure=structure, budget=budget, layers=rates, found=dict(found or {}))


def parse_strategy(content: object, where: str) -> Strategy:
    """The strategy that plain values from `where` state; a share alone may stand for `{keep: share}`.

    Raises:
        InputError: it is none; names the key.
    """
    if not isinstance(content, dict) or not isinstance(content.get("layers"), dict):
        raise InputError(f"{where} holds no strategy", expected="a mapping with layers: {name: {keep: share}}")
    layers = {
        str(name): {"keep": rate} if isinstance(rate, int | float) and not isinstance(rate, bool) else rate
        for name, rate in content["layers"].items()
    }
    try:
        return Strategy.model_validate({**content, "layers": layers})
    except ValidationError as error:
        raise InputError(f"{where}: {explain(error, Strategy)}") from error


def read_plain(path: Path) -> object:
    """The plain values in a YAML or JSON file.

    Raises:
        InputError: missing, too large, or neither.
    """
    try:
        text = read_bytes(path, MAX_BYTES).decode()
        return json.loads(text) if path.suffix == ".json" else yaml.safe_load(text)
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not a text file", expected="YAML or JSON in UTF-8") from error
    except (ValueError, yaml.YAMLError, RecursionError) as error:
        raise InputError(f"{path} is not valid YAML or JSON: {error}") from error


def read_strategy(path: Path, layers: Sequence[str]) -> Strategy:
    """The strategy in a file, for a network whose compressible weights are called `layers`.

    Raises:
        InputError: the file is missing or damaged, or speaks of other weights.
    """
    strategy = parse_strategy(read_plain(path), str(path))
    check_fits(strategy, layers, str(path))
    return strategy


def check_fits(strategy: Strategy, layers: Sequence[str], where: str) -> None:
    """Nothing where the strategy from `where` speaks of `layers`, the compressible weights, all and no others.

    Raises:
        InputError: a weight is unknown or missing.
    """
    unknown = [name for name in strategy.layers if name not in layers]
    if unknown:
        raise InputError(f"{where} speaks of a layer that the network has not", expected=_some(layers), got=unknown[0])
    missing = [name for name in layers if name not in strategy.layers]
    if missing:
        raise InputError(
            f"{where} says nothing of {len(missing)} of {len(layers)} layers",
            expected="a rate for every compressed layer",
            got=f"none for {_some(missing)}",
        )


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:6]) + (f" and {len(names) - 6} more" if len(names) > 6 else "")


def write_strategy(path: Path, strategy: Strategy) -> None:
    """Write the strategy as JSON where the name ends in .json, else as YAML: the same bytes for the same strategy."""
    content = strategy.model_dump(mode="json", exclude_none=True)
    text = json.dumps(content, indent=2) + "\n" if path.suffix == ".json" else yaml.safe_dump(content, sort_keys=False)
    write_atomic(path, text.encode())
