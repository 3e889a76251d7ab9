"""Codebooks: exact one-dimensional Lloyd iterations by sorting once, zero kept apart."""

from collections.abc import Sequence

import torch
from torch import Tensor

MAX_ITERATIONS = 100
MIN_BINS = 256  # of `partition`: up to so many values it is exact


@torch.no_grad()
def lloyd(values: Tensor, size: int, centres: Tensor | None = None, iterations: int = MAX_ITERATIONS) -> Tensor:
    """Centres c minimising Σ min_j (v − c_j)² locally, by Lloyd's iterations; sorted float64 (size,).

    In one dimension a cell is an interval of the sorted values, so after one sort an iteration is `size` binary
    searches of the boundaries (midpoints of neighbouring centres) and `size` differences of prefix sums:
    O(n log n + iterations · size · log n) in all, no distance table. An empty cell keeps its centre. No iteration
    raises the error.

    Args:
        values: float (n,), n ≥ 1.
        size: number of centres.
        centres: start, sorted (size,), such as the centres of the last call; None: those of `partition`.
        iterations: at most so many; on the CPU it stops as soon as no boundary moves.
    """
    return _lloyd_sorted(values.reshape(-1).sort().values.double(), size, centres, iterations)


def _lloyd_sorted(ordered: Tensor, size: int, centres: Tensor | None, iterations: int) -> Tensor:
    """`lloyd` of sorted float64 values."""
    n = len(ordered)
    sums = torch.cat([ordered.new_zeros(1), ordered.cumsum(0)])
    if centres is None:
        centres = _partition(ordered, sums, size)
    ends = torch.tensor([0, n], device=ordered.device)
    last: Tensor | None = None
    for _ in range(iterations):
        cut = torch.cat([ends[:1], torch.searchsorted(ordered, _midpoints(centres)), ends[1:]])
        if ordered.device.type == "cpu" and last is not None and torch.equal(cut, last):
            break
        last, count = cut, cut.diff()
        centres = torch.where(count > 0, sums[cut].diff() / count.clamp(min=1), centres).sort().values
    return centres


def quantiles(values: Tensor, size: int) -> Tensor:
    """Centres at equal distances in rank, a start that costs no more than a sort; sorted float64 (size,)."""
    n = len(values)
    at = ((torch.arange(size, device=values.device) + 0.5) * (n / size)).long().clamp_(max=n - 1)
    return values.sort().values.double()[at]


@torch.no_grad()
def partition(values: Tensor, size: int) -> Tensor:
    """Centres of the best partition of `values` (n,) into `size` intervals; sorted float64 (size,).

    Exact up to max(256, 2·size) values: dynamic programming over where intervals end (Bellman 1973). More are first put
    into so many bins of equal counts, which intervals then do not cut. O(n log n + size · bins²) operations, which on a
    GPU nothing waits for.
    """
    ordered = values.reshape(-1).sort().values.double()
    return _partition(ordered, torch.cat([ordered.new_zeros(1), ordered.cumsum(0)]), size)


def _partition(ordered: Tensor, sums: Tensor, size: int) -> Tensor:
    """`partition` of sorted float64 values with their prefix sums (n + 1,)."""
    n, device = len(ordered), ordered.device
    if size >= n:  # every value is its own centre, the last one several times
        return ordered[torch.arange(size, device=device).clamp_(max=n - 1)]
    bins = min(n, max(MIN_BINS, 2 * size))
    cuts = torch.arange(bins + 1, device=device) * n // bins
    middle = sums[-1] / n  # squares of differences to it cancel less
    squares = torch.cat([ordered.new_zeros(1), (ordered - middle).square().cumsum(0)])[cuts]
    total = sums[cuts] - middle * cuts
    count = (cuts[:, None] - cuts).clamp_(min=1)
    cost = squares[:, None] - squares - (total[:, None] - total).square() / count  # of bins i..j as one cell, [j, i]
    cost = cost.masked_fill(torch.ones_like(cost, dtype=torch.bool).triu(), torch.inf)
    best, starts = cost[:, 0], []
    for _ in range(size - 1):
        best, start = (best + cost).min(1)
        starts.append(start)
    edges = [torch.full((), bins, device=device)]
    for start in reversed(starts):
        edges.append(start[edges[-1]])
    edge = cuts[torch.stack([torch.zeros((), dtype=torch.long, device=device), *reversed(edges)])]
    return sums[edge].diff() / edge.diff()


def _midpoints(centres: Tensor) -> Tensor:
    return (centres[1:] + centres[:-1]) / 2


def positions(mask: Tensor) -> Tensor:
    """Where the flattened `mask` is True, int64 (n,); on a GPU the host waits for how many there are."""
    return mask.reshape(-1).nonzero()[:, 0]


@torch.no_grad()
def quantize(
    tensor: Tensor, kept: Tensor, bits: int, centres: Tensor | None = None, iterations: int = MAX_ITERATIONS
) -> tuple[Tensor, Tensor | None]:
    """Projection of the kept entries onto at most 2^bits distinct values; exact zero elsewhere.

    Each kept entry becomes the nearest centre of `lloyd`, the lower one of two at equal distance. No more than 2^bits
    kept entries are their own codebook and stay as they are. One sort serves both the iterations and the assignment.
    On a GPU nothing waits for it. Source: arXiv:1902.03538, Algorithm 1 (ZeroKmeans).

    Args:
        kept: positions of the kept entries in the flattened tensor, int64 (n,), as `positions` gives them.

    Returns:
        the quantised tensor, shape and dtype of `tensor`, and the centres for the next call's start (None where the
        entries are their own codebook).
    """
    values = tensor.reshape(-1)[kept]
    result = torch.zeros_like(tensor, memory_format=torch.contiguous_format)
    if len(values) <= 2**bits:
        result.view(-1)[kept] = values
        return result, None
    values, order = values.sort()
    ordered = values.double()
    centres = _lloyd_sorted(ordered, 2**bits, centres, iterations)
    ends = torch.searchsorted(ordered, _midpoints(centres), right=True)
    count = torch.diff(ends, prepend=ends.new_zeros(1), append=ends.new_full((1,), len(ordered)))
    nearest = centres.to(tensor.dtype).repeat_interleave(count, output_size=len(ordered))
    result.view(-1)[kept[order]] = nearest
    return result, centres


@torch.no_grad()
def movement(centres: Sequence[Tensor | None], before: Sequence[Tensor | None]) -> float | None:
    """How far codebooks moved: √(Σ (c − b)² / Σ c²), over all centres of every factor that had a codebook before too.

    It is the root mean square of the moves, relative to that of the centres.

    Args:
        centres: sorted (2^bits,) per factor; None for a factor without a codebook.
        before: the same, an update earlier.

    Returns:
        None where no factor has a codebook at both times.
    """
    pairs = [(c, b) for c, b in zip(centres, before, strict=True) if c is not None and b is not None]
    if not pairs:
        return None
    moved = torch.stack([(c - b).square().sum() for c, b in pairs]).sum().sqrt()
    size = torch.stack([c.square().sum() for c, _ in pairs]).sum().sqrt().clamp(min=1e-12)
    return float(moved / size)
