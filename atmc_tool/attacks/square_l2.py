"""What the Square attack tries in l2 (Andriushchenko et al. 2020, arXiv:1912.00049, algorithm 3)."""

from collections.abc import Sequence
from functools import cache

import numpy as np
from array_api_compat import array_namespace, device
from numpy.typing import NDArray

from atmc_tool.attacks.classifier import Array
from atmc_tool.attacks.norms import direction, length
from atmc_tool.attacks.starts import draws

TILES = 5  # of the start, per side
SMALLEST = 3  # side of a window
LEAST = 1e-12  # length that is not divided by


@cache
def bump(side: int) -> NDArray[np.float32]:
    """η: two pyramids of opposite signs that fill the upper and the lower half of a window; (side, side), ‖η‖₂ = 1."""
    half = side // 2
    values = np.concatenate([_pyramid(half, side), -_pyramid(side - half, side)])
    return np.asarray(values / np.linalg.norm(values), np.float32)


def _pyramid(height: int, width: int) -> NDArray[np.float64]:
    """Rings of cells of height × width: Σ over k = 0 … m of 1/(n + 1 − k)², m steps from the edge, n = ⌊height/2⌋."""
    rows, columns = np.arange(height), np.arange(width)
    n = height // 2
    from_edge_rows = np.minimum(rows, height - 1 - rows)[:, None]
    from_edge_columns = np.minimum(columns, width - 1 - columns)[None]
    rings = np.minimum(np.minimum(from_edge_rows, from_edge_columns), n)
    sums = np.cumsum([1 / (n + 1 - k) ** 2 for k in range(n + 1)])
    return np.asarray(sums[rings])


def l2_start(x: Array, eps: float, seed: int, indices: Sequence[int]) -> Array:
    """A 5 × 5 grid of windows, each with a bump of a random sign and orientation, on the ball's surface."""
    n, channels, height, width = x.shape
    side = max(min(height, width) // TILES, 1)
    across, down = width // side, height // side
    drawn = draws(seed, indices, 0, 2 * channels * down * across).reshape(n, 2, channels, down, across)
    pattern = np.zeros((n, channels, height, width), np.float32)
    window = bump(side) if side > 1 else np.ones((1, 1), np.float32)
    tiles = np.where((drawn[:, 1] < 0.5)[..., None, None], window, window.T)
    tiles = tiles * np.where(drawn[:, 0] < 0.5, -1, 1)[..., None, None]
    top, left = (height - down * side) // 2, (width - across * side) // 2
    grid = tiles.transpose(0, 1, 2, 4, 3, 5).reshape(n, channels, down * side, across * side)
    pattern[:, :, top : top + down * side, left : left + across * side] = grid
    xp = array_namespace(x)
    return _on_surface(x, xp.asarray(pattern, device=device(x)), eps)


def l2_step(best: Array, x: Array, eps: float, share: float, seed: int, indices: Sequence[int], query: int) -> Array:
    """`best` with the change in one window moved into another one, to which a bump is added.

    The new window's length takes what the old windows and the ball leave, the same for every channel.
    """
    xp = array_namespace(best)
    n, channels, height, width = best.shape
    side = max(round((share * height * width) ** 0.5), SMALLEST)
    side = min(side + (side % 2 == 0), height, width)
    drawn = draws(seed, indices, query, 5 + channels)
    corner = [(drawn[:, i] * (size - side + 1)).astype(np.int64) for i, size in enumerate((height, width) * 2)]
    to, off = (_window(height, width, side, *corner[2 * i : 2 * i + 2]) for i in range(2))
    window = np.where((drawn[:, 4] < 0.5)[:, None, None], bump(side), bump(side).T)
    at_rows, at_columns = (
        np.arange(size)[None] - first[:, None] for size, first in ((height, corner[0]), (width, corner[1]))
    )
    placed = window[
        np.arange(n)[:, None, None],
        np.clip(at_rows, 0, side - 1)[:, :, None],
        np.clip(at_columns, 0, side - 1)[:, None, :],
    ]
    signs = np.where(drawn[:, 5:] < 0.5, -1, 1).astype(np.float32)[:, :, None, None]
    added = xp.asarray((placed * to)[:, None] * signs, device=device(best))
    new, old = (xp.asarray(mask[:, None], device=device(best)) for mask in (to, to | off))
    change = best - x
    inside = xp.where(new, change, 0.0)
    mixed = added + inside / (LEAST + _per_channel(inside))
    free = xp.clip(eps**2 - length(change, "l2") ** 2, 0, None) / channels
    taken = length(xp.where(old, change, 0.0), "l2") ** 2 / channels
    size = xp.sqrt(free + taken)[:, None, None, None]
    moved = xp.where(new, mixed / (LEAST + _per_channel(mixed)) * size, xp.where(old, 0.0, change))
    return _on_surface(x, moved, eps)


def _window(height: int, width: int, side: int, top: NDArray[np.int64], left: NDArray[np.int64]) -> NDArray[np.bool_]:
    """bool (N, height, width): a window of side × side in each; top and left (N,)."""
    rows, columns = np.arange(height)[None, :, None], np.arange(width)[None, None, :]
    top, left = top[:, None, None], left[:, None, None]
    return (rows >= top) & (rows < top + side) & (columns >= left) & (columns < left + side)


def _per_channel(change: Array) -> Array:
    """Length of each channel's change, (N, C, 1, 1)."""
    xp = array_namespace(change)
    return xp.sqrt(xp.sum(change * change, axis=(2, 3), keepdims=True))


def _on_surface(x: Array, change: Array, eps: float) -> Array:
    """x + eps·change/‖change‖₂, clipped to [0, 1]."""
    return array_namespace(x).clip(x + eps * direction(change, "l2"), 0, 1)
