"""A grid of compressions: methods × budgets × seeds on one data set, from one YAML file."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from atmc_tool.baselines import leave_to_method
from atmc_tool.config import CompressConfig
from atmc_tool.config_errors import explain
from atmc_tool.errors import UsageError
from atmc_tool.settings import read_recipe
from atmc_tool.units import parse_size

METHODS: tuple[str, ...] = get_args(CompressConfig.model_fields["method"].annotation)
DENSE, NATURAL = "dense", "natural"  # labels of the networks that compressions start from
LABEL = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]{0,63}")  # it names folders
SET_BY_THE_GRID = {  # what stands elsewhere in the file → where
    "run": "-o",
    "seed": "seeds",
    "compress.keep": "keep or size",
    "compress.size": "keep or size",
    "compress.nominal_size": "keep or size",
    "compress.method": "methods",
    "compress.strategy": "strategy of a method, in methods",
    "compress.time_limit": "nothing: every run takes the same number of steps, so that runs compare",
    "train.time_limit": "nothing: every run takes the same number of steps, so that runs compare",
}


class Entry(BaseModel):
    """A method under its label, with its own settings of section `compress`. `dense` alone is no compression.

    keep:     shares of the weights in place of the grid's budgets, such as for a method that can't meet them
    strategy: what every layer keeps in place of the grid's budgets
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    label: str
    settings: dict[str, Any]
    keep: tuple[Annotated[float, Field(gt=0, le=1)], ...] = ()
    strategy: str | None = None

    @property
    def budgets(self) -> "list[Budget]":
        """Its own, in place of the grid's."""
        return [Budget("keep", share) for share in self.keep] + (
            [Budget("strategy", self.strategy)] if self.strategy is not None else []
        )

    @property
    def is_dense(self) -> bool:
        """Whether it stands for the dense network itself."""
        return self.label == DENSE


@dataclass(frozen=True)
class Budget:
    """`keep` with a share of the weights, `size` with bytes as users write them, or `strategy` with its file."""

    kind: str
    value: float | str

    @property
    def text(self) -> str:
        """`keep 0.01`."""
        return f"{self.kind} {self.value}"


@dataclass(frozen=True)
class Cell:
    """One compression of the grid."""

    entry: Entry
    budget: Budget
    seed: int

    @property
    def name(self) -> str:
        """Of its run folder: `al0-keep0.01-seed0`, `al0-strategy-seed0`."""
        if self.budget.kind == "strategy":
            return f"{self.entry.label}-strategy-seed{self.seed}"
        return f"{self.entry.label}-{self.budget.kind}{self.budget.value}-seed{self.seed}"

    @property
    def settings(self) -> tuple[str, str]:
        """What tells it from other compressions of its seed: label and budget."""
        return self.entry.label, self.budget.text


class Grid(BaseModel):
    """What `atmc-tool compare` reads.

    base:     a recipe whose settings all runs start from
    settings: of all runs, as in atmc.yaml; they win over `base`
    dense:    the network that compressions start from, whatever the seed; None: one is trained for each seed
    methods:  names of methods, `dense`, or a label with settings of section `compress`
    keep:     budgets as shares of the weights; or
    size:     as bytes of model.atmc
    seeds:    of all runs
    verify:   export every compression and attack the exported file
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    base: str | None = None
    settings: dict[str, Any] = Field(default_factory=dict)
    dense: Path | None = None
    methods: tuple[Entry, ...] = ()
    keep: tuple[float, ...] = ()
    size: tuple[str, ...] = ()
    seeds: tuple[int, ...] = (0,)
    verify: bool = False

    @field_validator("methods", mode="before")
    @classmethod
    def _as_entries(cls, methods: object) -> object:
        return [_entry(method) for method in methods] if isinstance(methods, list) else methods

    @field_validator("size", mode="before")
    @classmethod
    def _as_written(cls, sizes: object) -> object:
        if not isinstance(sizes, list):
            return sizes
        return [str(size) if isinstance(size, int) and not isinstance(size, bool) else size for size in sizes]

    @field_validator("keep")
    @classmethod
    def _are_shares(cls, keep: tuple[float, ...]) -> tuple[float, ...]:
        if not all(0 < share <= 1 for share in keep):
            raise ValueError("every budget must be above 0 and at most 1")
        return keep

    @field_validator("size")
    @classmethod
    def _are_sizes(cls, sizes: tuple[str, ...]) -> tuple[str, ...]:
        for size in sizes:
            parse_size(size)
        return tuple("".join(size.split()) for size in sizes)

    @field_validator("seeds")
    @classmethod
    def _are_seeds(cls, seeds: tuple[int, ...]) -> tuple[int, ...]:
        if not seeds or not all(0 <= seed < 2**31 for seed in seeds):
            raise ValueError("expected at least one seed of 0 to 2147483647")
        return seeds

    @model_validator(mode="after")
    def _fits_together(self) -> "Grid":
        if not self.methods:
            raise ValueError("name at least one method in methods")
        given = bool(self.keep) + bool(self.size)
        if any(not (entry.is_dense or entry.budgets) for entry in self.methods):
            if given != 1:
                raise ValueError("give budgets in exactly one of keep and size")
        elif given and not self.compressions:
            raise ValueError("dense alone takes no budget")
        listed: list[tuple[str, Sequence[object]]] = [
            ("label", [entry.label for entry in self.methods]),
            ("budget", [*self.keep, *self.size]),
            ("seed", self.seeds),
            *((f"budget of {entry.label},", entry.keep) for entry in self.methods),
        ]
        for what, values in listed:
            twice = [value for value in values if values.count(value) > 1]
            if twice:
                raise ValueError(f"the {what} {twice[0]} is there twice")
        return self

    @model_validator(mode="after")
    def _says_nothing_twice(self) -> "Grid":
        own = [{"compress": {k: v for k, v in entry.settings.items() if k != "method"}} for entry in self.methods]
        for settings in (self.settings, *own):
            for key, where in SET_BY_THE_GRID.items():
                section, _, name = key.rpartition(".")
                inside = settings.get(section) if section else settings
                if isinstance(inside, Mapping) and name in inside:
                    raise ValueError(f"{key} can't be set here; in its place stands {where}")
        return self

    @property
    def budgets(self) -> list[Budget]:
        """All budgets, as they are listed."""
        return [Budget("keep", share) for share in self.keep] or [Budget("size", size) for size in self.size]

    @property
    def shows_dense(self) -> bool:
        """Whether the dense network is one of the methods."""
        return any(entry.is_dense for entry in self.methods)

    @property
    def compressions(self) -> list[Entry]:
        """The methods without `dense`."""
        return [entry for entry in self.methods if not entry.is_dense]

    def cells(self, seed: int) -> list[Cell]:
        """The compressions of one seed, method by method."""
        return [Cell(entry, budget, seed) for entry in self.compressions for budget in entry.budgets or self.budgets]

    def shared(self, seed: int) -> list[dict[str, Any]]:
        """Layers of settings that all runs of a seed have, a later one winning."""
        return [read_recipe(self.base) if self.base else {}, self.settings, {"seed": seed}]

    def layers(self, cell: Cell) -> list[dict[str, Any]]:
        """Layers of settings of a compression, a later one winning.

        Of the settings that all share, those leave a method out that make it what it is, such as its projection; its
        own settings may change them.
        """
        own = cell.entry.settings
        return leave_to_method([*self.shared(cell.seed), {"compress": {**own, cell.budget.kind: cell.budget.value}}])


def _entry(method: object) -> object:
    """`nap` or `{atmc-8: {method: atmc, bits: 8}}` as an entry."""
    if isinstance(method, Entry):
        return method
    label, own = method, None
    if isinstance(method, Mapping) and len(method) == 1:
        label, own = next(iter(method.items()))
    if not isinstance(label, str) or not (own is None or isinstance(own, Mapping)):
        raise ValueError(f"a method is a name or one label with settings, got {method!r}")
    if not LABEL.fullmatch(label) or label == NATURAL:
        raise ValueError(f"a label has letters, digits and ._+- and is not '{NATURAL}', got {label!r}")
    settings = dict(own or {})
    if label == DENSE:
        if settings:
            raise ValueError("dense is the network that is not compressed and takes no settings")
        return Entry(label=label, settings=settings)
    settings.setdefault("method", label)
    keep = settings.pop("keep", []) if isinstance(settings.get("keep"), list) else []
    if settings["method"] not in METHODS:
        known = ", ".join(METHODS)
        raise ValueError(f"{label}: no method {settings['method']!r}; known: {known}")
    strategy = settings.pop("strategy", None)
    if keep and strategy is not None:
        raise ValueError(f"{label}: give keep or strategy, not both")
    return Entry(label=label, settings=settings, keep=tuple(keep), strategy=strategy)


def build_grid(content: Mapping[str, Any]) -> Grid:
    """The validated grid; the settings of its runs are not resolved yet.

    Raises:
        UsageError: an unknown key (with the nearest known one), or a value that can't be, as one line.
    """
    try:
        return Grid.model_validate(content)
    except ValidationError as error:
        raise UsageError(explain(error, Grid)) from error
