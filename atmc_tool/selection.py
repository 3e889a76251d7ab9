"""Selection: which entries of all compressed weights a budget keeps, by structure, over the network or per layer."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Literal

import torch
from torch import Tensor

from atmc_tool.errors import UsageError
from atmc_tool.projections import top_k_masks
from atmc_tool.search.strategy import LayerRate
from atmc_tool.structure_names import parse_n_of_m
from atmc_tool.structures import entries_of, largest_units, n_of_m_mask, unit_norms

Scope = Literal["global", "layer"]
Rate = float | LayerRate


@dataclass(frozen=True)
class Selection:
    """What a budget keeps of tensors θ_l that belong to weights.

    structure: of the units, see structures.py
    scope:     `global`: one budget for all entries together; `layer`: every tensor has its own
    shapes:    of the weight of every tensor, (out, in, ...)
    shares:    the share that a tensor keeps whatever the budget; None: the budget's own
    total:     entries of the network that the budget is counted in
    kept:      entries at the end of the path that budgets take
    """

    structure: str
    scope: Scope
    shapes: Sequence[torch.Size]
    shares: Sequence[float | None]
    total: int
    kept: int

    def masks(self, importance: Sequence[Tensor], kept: int) -> list[Tensor]:
        """Masks (m, n) of what a budget of `kept` entries keeps, by the largest magnitudes or norms of `importance`.

        `global`: the `kept` largest of all. `layer`: each tensor its share of units, rounded, at least one; a share of
        its own is approached from 1 as the budget falls from all entries to `self.kept`. Projects onto the set if the
        importance is |θ|. N:M on top of an irregular budget is exact too: both kinds of supports form a matroid, so
        the largest of those that N:M leaves are the largest that both allow.

        importance: (m, n) each; for `bn-filter` (m,) where a batch norm ranks the filters
        """
        if (pattern := parse_n_of_m(self.structure)) is not None:
            allowed = [n_of_m_mask(t, s, *pattern) for t, s in zip(importance, self.shapes, strict=True)]
            importance = [t.abs() * mask for t, mask in zip(importance, allowed, strict=True)]
            masks = self._largest(importance, kept)
            return [mask & a for mask, a in zip(masks, allowed, strict=True)]
        return self._largest(importance, kept)

    def _largest(self, importance: Sequence[Tensor], kept: int) -> list[Tensor]:
        if self.scope == "global":
            return top_k_masks(importance, kept)
        return [
            entries_of(units, shape, self.structure)
            for units, shape in zip(self.units(importance, kept), self.shapes, strict=True)
        ]

    def units(self, importance: Sequence[Tensor], kept: int) -> list[Tensor]:
        """Masks of the kept units themselves, per layer; see `masks`."""
        norms = [
            t.abs() if t.dim() == 1 else unit_norms(t, shape, self.structure)
            for t, shape in zip(importance, self.shapes, strict=True)
        ]
        return [
            largest_units(norm, max(1, round(self._share(own, kept) * norm.numel())))
            for norm, own in zip(norms, self.shares, strict=True)
        ]

    def _share(self, own: float | None, kept: int) -> float:
        """The share of a layer under a budget of `kept` entries."""
        if own is None:
            return kept / self.total
        if self.kept >= self.total:
            return own
        return own + (1 - own) * max(0, kept - self.kept) / (self.total - self.kept)


def layer_rate(name: str, layers: Mapping[str, Rate]) -> LayerRate | None:
    """What `layers` states of the weight `name` by the last pattern that matches; None: nothing."""
    stated = [rate for pattern, rate in layers.items() if name == pattern or fnmatchcase(name, pattern)]
    if not stated:
        return None
    return stated[-1] if isinstance(stated[-1], LayerRate) else LayerRate(keep=stated[-1])


def layer_shares(
    shapes: Mapping[str, torch.Size], structure: str, layers: Mapping[str, Rate], normalized: Mapping[str, str]
) -> list[float | None]:
    """The share of its own of each weight in `shapes`; None where the budget decides.

    `layers` maps patterns of names (as in a shell) to shares or rates; the last that matches wins. Where none does,
    structures larger than an entry leave alone (1.0) what they would ruin or what they are not made for: weights that
    are no convolutions, for `channel` those of at most 4 input channels (the images), for `bn-filter` those without a
    batch norm behind them (`normalized`: weight → batch norm).

    Raises:
        UsageError: a pattern that matches no weight; or no weight that the structure is made for, nor `layers`.
    """
    for pattern in layers:
        if not any(name == pattern or fnmatchcase(name, pattern) for name in shapes):
            raise UsageError(
                f"compress.layers: {pattern} matches no weight", expected=f"a pattern of {', '.join(shapes)}"
            )
    shares: list[float | None] = []
    for name, shape in shapes.items():
        stated = layer_rate(name, layers)
        whole = {
            "filter": len(shape) < 3,
            "column": len(shape) < 3,
            "channel": len(shape) < 3 or shape[1] <= 4,
            "bn-filter": name not in normalized,
        }
        shares.append(stated.keep if stated else 1.0 if whole.get(structure, False) else None)
    if not layers and all(share is not None for share in shares):
        what = "convolution with a batch norm behind it" if structure == "bn-filter" else "convolution"
        raise UsageError(
            f"the structure {structure} would prune nothing in this network",
            expected=f"a {what}" + (" of more than 4 input channels" if structure == "channel" else ""),
            hint="take another --structure, or name the weights in compress.layers",
        )
    return shares
