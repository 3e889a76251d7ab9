"""Bits per factor under a budget for the whole network: ATMC's model-size mode (arXiv:1902.03538).

The size counted here is the nominal one: Σ over factors of nonzeros · bits + 32 · values of the codebook.
"""

import heapq
from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from atmc_tool.codebooks import lloyd, quantiles

CHOICES = range(1, 9)
CELLS = 1 << 14  # of the knapsack; a larger budget is counted in units of several bits, rounded up
COUNTS = 96  # numbers of kept entries that a tensor can choose from
SAMPLE = 4096  # entries that a codebook is tried on


def multiple_choice_knapsack(errors: NDArray[np.float64], costs: NDArray[np.int64], budget: int) -> list[int] | None:
    """One choice per row with the least Σ error and Σ cost ≤ budget; None where nothing fits.

    Dynamic programming over the budget: O(rows · choices · min(budget, 2^14)). Exact up to a budget of 2^14; beyond,
    costs are rounded up to units of budget/2^14, so that the budget still holds.

    errors, costs: (rows, choices); costs at least 0
    """
    if budget < 0:
        return None
    unit = -(-(budget + 1) // CELLS)
    cells, weight = budget // unit, -(-costs // unit)
    best = np.zeros(cells + 1)
    chosen = np.zeros((len(errors), cells + 1), np.int16)
    for row, (error, cost) in enumerate(zip(errors, weight, strict=True)):
        least = np.full(cells + 1, np.inf)
        for choice, (e, c) in enumerate(zip(error, cost, strict=True)):
            if c <= cells:
                total = best[: cells + 1 - c] + e
                better = total < least[c:]
                least[c:][better] = total[better]
                chosen[row, c:][better] = choice
        best = least
    if not np.isfinite(best[cells]):
        return None
    result, left = [], cells
    for row in reversed(range(len(errors))):
        choice = int(chosen[row, left])
        result.append(choice)
        left -= int(weight[row, choice])
    return result[::-1]


def nominal_bits(counts: Sequence[int], bits: Sequence[int]) -> int:
    """Bits of factors with `counts` nonzeros at `bits` each, codebooks of at most 2^bits values of 32 bits included."""
    return sum(n * b + 32 * min(2**b, n) for n, b in zip(counts, bits, strict=True))


@torch.no_grad()
def size_projections(tensors: Sequence[Tensor]) -> Callable[[int], tuple[list[Tensor], list[int]] | None]:
    """The projection of `tensors` as a function of the budget: masks and bits per tensor, of at most that nominal size.

    Approximately the nearest to `tensors`: the distance is Σ of squares of what is pruned and of what its codebook
    misses. Each tensor has one choice for every pair of bits and of a number of its largest entries, out of up to 96 in
    geometric distances; `multiple_choice_knapsack` picks one each. What is left of the budget goes to the next largest
    entries, by θ² per bit, until none fits that would come nearer than as a zero. What is zero already stays so.

    The function returns None where the budget does not hold one entry of each tensor at 1 bit.
    """
    flat = [t.reshape(-1).cpu().double() for t in tensors]
    orders = [t.abs().sort(descending=True, stable=True).indices for t in flat]
    ordered = [t[order][: max(1, int(t.count_nonzero()))].numpy() for t, order in zip(flat, orders, strict=True)]
    errors, costs, options = [], [], []
    for values in ordered:
        counts = np.unique(np.geomspace(1, len(values), COUNTS).round().astype(np.int64))
        pruned = np.append(np.cumsum((values**2)[::-1])[::-1], 0.0)[counts]
        errors.append((pruned + _codebook_errors(values, counts)).ravel())
        options.append([(bits, int(n)) for bits in CHOICES for n in counts])
        costs.append(np.array([nominal_bits([n], [bits]) for bits, n in options[-1]]))
    width = max(map(len, errors))
    table = np.stack([np.pad(e, (0, width - len(e)), constant_values=np.inf) for e in errors])

    def project(budget: int) -> tuple[list[Tensor], list[int]] | None:
        over = [np.pad(c, (0, width - len(c)), constant_values=budget + 1) for c in costs]
        chosen = multiple_choice_knapsack(table, np.stack(over), budget)
        if chosen is None:
            return None
        bits, counts = zip(*(options[row][choice] for row, choice in enumerate(chosen)), strict=True)
        masks = []
        for tensor, order, n in zip(tensors, orders, _filled(ordered, bits, counts, budget), strict=True):
            mask = torch.zeros(tensor.numel(), dtype=torch.bool)
            mask[order[:n]] = True
            masks.append(mask.reshape(tensor.shape).to(tensor.device) & (tensor != 0))
        return masks, list(bits)

    return project


def _filled(
    ordered: Sequence[NDArray[np.float64]], bits: Sequence[int], counts: Sequence[int], budget: int
) -> list[int]:
    """`counts` and as many further entries as the budget allows, by the largest θ² per bit.

    An entry below half the least magnitude of its codebook is nearer to zero and is left out.
    """
    left = budget - nominal_bits(counts, bits)
    taken = list(counts)
    useful = [
        int(np.count_nonzero(np.abs(values) > np.abs(_codebook(values[:n], b)).min() / 2))
        for values, b, n in zip(ordered, bits, counts, strict=True)
    ]
    queue: list[tuple[float, int]] = []
    for row, (values, b, n) in enumerate(zip(ordered, bits, counts, strict=True)):
        heapq.heappush(queue, (-_gain(values, n, b), row))
    while queue:
        _, row = heapq.heappop(queue)
        values, b, n = ordered[row], bits[row], taken[row]
        if n >= useful[row] or (cost := b + (32 if n < 2**b else 0)) > left:
            continue
        taken[row], left = n + 1, left - cost
        heapq.heappush(queue, (-_gain(values, n + 1, b), row))
    return taken


def _gain(values: NDArray[np.float64], n: int, bits: int) -> float:
    """θ² per bit of entry n of `values` in descending order."""
    return float(values[n] ** 2) / (bits + (32 if n < 2**bits else 0)) if n < len(values) else 0.0


def _codebook_errors(values: NDArray[np.float64], counts: NDArray[np.int64]) -> NDArray[np.float64]:
    """Σ (θ − nearest value)² of the first n of `values` at each number of bits, (8, counts).

    Codebooks are made at up to a dozen of the counts, of at most 4096 entries at equal distances in rank; the mean
    error is interpolated in log n between them.
    """
    at = counts[np.unique(np.linspace(0, len(counts) - 1, 12 if len(values) > COUNTS else len(counts)).astype(int))]
    table = np.zeros((len(CHOICES), len(at)))
    for column, n in enumerate(at):
        sample = _sample(values[:n])
        for row, bits in enumerate(CHOICES):
            if n <= 2**bits:
                break  # they are their own codebook
            centres = _codebook(sample, bits)
            nearest = centres[np.searchsorted((centres[1:] + centres[:-1]) / 2, sample)]
            table[row, column] = np.square(sample - nearest).mean()
    result = np.stack([np.interp(np.log(counts), np.log(at), row) for row in table]) * counts
    own = counts <= 2 ** np.array(CHOICES)[:, None]
    return np.where(own, 0.0, result)


def _sample(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """At most 4096 of `values`, at equal distances."""
    return values[np.linspace(0, len(values) - 1, min(len(values), SAMPLE)).astype(np.int64)]


def _codebook(values: NDArray[np.float64], bits: int) -> NDArray[np.float64]:
    """The centres of `values`; they themselves where they are no more than 2^bits."""
    if len(values) <= 2**bits:
        return values
    sample = torch.from_numpy(_sample(values))
    centres: NDArray[np.float64] = lloyd(sample, 2**bits, quantiles(sample, 2**bits)).numpy()
    return centres
