"""Built-in strategies: uniform, ERK, LAMP and global magnitude; each gives the shares of all layers under a wall.

They spend the budget of the wall, whatever it counts. A `slot` is what one rate decides: mostly one layer; where a
structure drops the channels of a tensor, all layers that read it.
"""

from collections.abc import Callable, Mapping
from types import MappingProxyType

import torch
from torch import Tensor

from atmc_tool.search.budget_wall import BudgetWall
from atmc_tool.search.layers import Layer
from atmc_tool.structures import unit_norms

Allocation = Callable[[BudgetWall, Mapping[str, Tensor]], list[float]]
"""A wall and the weights by name, (out, in, kh, kw) each → share of every layer of the wall."""


def uniform(wall: BudgetWall, weights: Mapping[str, Tensor]) -> list[float]:  # noqa: ARG001
    """The same rate for all slots, at least one unit each."""
    return wall.project([1.0] * len(wall.slots))


def erk(wall: BudgetWall, weights: Mapping[str, Tensor]) -> list[float]:  # noqa: ARG001
    """Erdős-Rényi-Kernel: a density in proportion to (out + in + kh + kw) / (out·in·kh·kw).

    Densities above 1 are 1, and the rest is scaled up for it (Evci et al. 2020, arXiv:1911.11134, appendix A). Where
    units are rows, columns or channels, that density is the share of them that stays; layers with one rate have the
    mean of theirs, each by its weights.
    """

    def raw(slot: list[int]) -> float:
        members = [wall.layers[i] for i in slot]
        return sum(sum(layer.shape) for layer in members) / sum(layer.weights for layer in members)

    return wall.project([raw(slot) for slot in wall.slots])


def lamp(wall: BudgetWall, weights: Mapping[str, Tensor]) -> list[float]:
    """LAMP: one threshold for the scores of the weights of all layers.

    The score of a weight is its square over the sum of squares of all weights of the layer that are at least as large,
    so that the largest of each layer has 1 and stays (Lee et al. 2021, arXiv:2010.07611, equation 3). Units have the
    sum of squares of their entries in place of w².
    """
    return _by_threshold(wall, [_lamp_scores(_squares(wall, weights, slot)) for slot in wall.slots])


def _lamp_scores(squares: Tensor) -> Tensor:
    """Scores (units,) in descending order; equal squares count each other out in the order of the sort."""
    ordered = squares.double().sort(descending=True).values
    return ordered / ordered.cumsum(0).clamp(min=torch.finfo(torch.float64).tiny)


def global_magnitude(wall: BudgetWall, weights: Mapping[str, Tensor]) -> list[float]:
    """One threshold for |w| in all layers.

    Units have the root mean square of their entries in place of |w|, so that large units are not better for their size.
    """

    def scores(slot: list[int]) -> Tensor:
        squares = _squares(wall, weights, slot).double()
        entries = sum(wall.layers[i].weights for i in slot) / len(squares)
        return (squares / entries).sqrt().sort(descending=True).values

    return _by_threshold(wall, [scores(slot) for slot in wall.slots])


def _squares(wall: BudgetWall, weights: Mapping[str, Tensor], slot: list[int]) -> Tensor:
    """Σ w² of every unit of a slot, (units,), over all its layers."""

    def of(layer: Layer) -> Tensor:
        matrix = weights[layer.name].detach().flatten(1).float()
        return unit_norms(matrix, layer.shape, wall.structure).reshape(-1).square()

    return torch.stack([of(wall.layers[i]) for i in slot]).sum(0)


def _by_threshold(wall: BudgetWall, scores: list[Tensor]) -> list[float]:
    """Shares of all layers where the units whose score is above one threshold stay: as many as the wall allows.

    scores: of every slot, (units,) descending
    """
    ascending = [slot.flip(0) for slot in scores]
    every = torch.cat(ascending).sort().values

    def rates(threshold: float) -> list[float]:
        return [1 - int(torch.searchsorted(slot, threshold)) / len(slot) for slot in ascending]

    low, high = -1, len(every)  # the least index of `every` that the wall allows is above low and at most high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if wall.allows(rates(float(every[middle]))) else (middle, high)
    found = rates(float(every[high])) if high < len(every) else [0.0] * len(scores)
    return wall.layer_rates(found)


ALLOCATIONS: Mapping[str, Allocation] = MappingProxyType(
    {"uniform": uniform, "erk": erk, "lamp": lamp, "global": global_magnitude}
)
