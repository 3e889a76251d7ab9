"""Codebooks: exact one-dimensional Lloyd iterations by sorting once, zero kept apart."""

from collections.abc import Sequence

import torch
from torch import Tensor

MAX_ITERATIONS = 100


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
        centres: start, sorted (size,), such as the centres of the last call; None: quantiles of the values.
        iterations: at most so many; on the CPU it stops as soon as no boundary moves.
    """
    return _lloyd_sorted(values.reshape(-1).sort().values.double(), size, centres, iterations)


def _lloyd_sorted(ordered: Tensor, size: int, centres: Tensor | None, iterations: int) -> Tensor:
    """`lloyd` of sorted float64 values."""
    n = len(ordered)
    sums = torch.cat([ordered.new_zeros(1), ordered.cumsum(0)])
    if centres is None:
        centres = ordered[((torch.arange(size, device=ordered.device) + 0.5) * (n / size)).long().clamp_(max=n - 1)]
    ends = torch.tensor([0, n], device=ordered.device)
    last: Tensor | None = None
    for _ in range(iterations):
        cut = torch.cat([ends[:1], torch.searchsorted(ordered, _midpoints(centres)), ends[1:]])
        if ordered.device.type == "cpu" and last is not None and torch.equal(cut, last):
            break
        last, count = cut, cut.diff()
        centres = torch.where(count > 0, sums[cut].diff() / count.clamp(min=1), centres).sort().values
    return centres


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
