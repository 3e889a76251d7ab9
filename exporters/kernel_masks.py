"""Where the entries of a factor are: rows, columns, kernels, how many in each kernel, which positions. FORMAT.md, 3.5.

Measured in bytes on a ResNet-20 pruned to 5 % (20 %, 1 %), where the mask has a zero-order entropy of 8,657 (22,871,
2,034): kernels 2,570 (2,346, 783), counts 1,452 (5,955, 233), positions 3,826 (12,837, 667). Coding how many entries a
kernel has before it codes where they are costs no more than coding positions at once, and needs fewer bits: a kernel is
done when its last entry is found.
"""

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from atmc_tool.errors import InputError
from exporters.extents import Extent
from exporters.kernels import Kernels, Shape
from exporters.mixing import Fit, Mixer
from exporters.odds import Ints, log
from exporters.rans import Bits

BATCH_OF_DIAGONAL = np.array([0, 1, 2, 2, 3, 3, 3, 3, 4, 4, 4, 4, 4, 4, 4, 4], np.uint8)
"""The batch of a kernel, by (row + column) mod 16. A later one knows how dense rows and columns are in those before."""

BATCHES = 5
BAND = 2**20
"""About so many kernels at a time, which bounds the memory."""

DOUBT = 512
"""Entries, in 1/256, that a row or a column is taken to have beside those it has, and to be expected to have."""


def code_kernels(coder: Mixer | Fit, shape: Shape, kept: int, held: Extent, truth: Kernels | None) -> Kernels:
    """Write `truth`, the kernels of `kept` entries, or read it where it is None.

    Raises:
        InputError: what is read does not have `kept` entries, or not the extent `held`.
    """
    at = None if truth is None else np.divmod(truth.at, shape.columns)
    rows = _lines(coder, shape.rows, held.rows, None if at is None else at[0])
    columns = _lines(coder, shape.columns, held.columns, None if at is None else at[1])
    grid: NDArray[np.bool_] | None = None
    if at is not None:
        grid = np.zeros((len(rows), len(columns)), np.bool_)
        grid[np.searchsorted(rows, at[0]), np.searchsorted(columns, at[1])] = True
    row, column = np.nonzero(_occupied(coder, (len(rows), len(columns)), held.kernels, grid))
    if len(row) != held.kernels:
        raise InputError("a factor holds another number of kernels", expected=held.kernels, got=len(row))
    counts = _counts(coder, Shape(len(rows), len(columns), shape.height, shape.width), kept, (row, column), truth)
    filled = _filled(coder, shape, counts, None if truth is None else truth.filled)
    return Kernels(rows[row] * shape.columns + columns[column], filled)


def most_symbols(shape: Shape, held: Extent, kept: int) -> int:
    """How many symbols code the positions of `kept` entries at the most; what is full needs none.

    The last position of a kernel needs none. Each bit "more" is of a kernel that has an entry not asked of before.
    """
    lines = (shape.rows if held.rows < shape.rows else 0) + (shape.columns if held.columns < shape.columns else 0)
    grid = held.rows * held.columns if held.kernels < held.rows * held.columns else 0
    open_ = held.kernels * (shape.area - 1) if kept < held.kernels * shape.area else 0
    return lines + grid + open_ + min(kept, open_)


def _lines(coder: Mixer | Fit, length: int, held: int, truth: Ints | None) -> Ints:
    """Those of `length` rows or columns that hold an entry."""
    if held == length:
        return np.arange(length)
    flags: Bits | None = None
    if truth is not None:
        flags = np.zeros(length, np.bool_)
        flags[truth] = True
    found = np.flatnonzero(coder.alike((held << 16) // length, length, flags))
    if len(found) != held:
        raise InputError("a factor holds another number of rows or columns", expected=held, got=len(found))
    return found


def _occupied(coder: Mixer | Fit, grid: tuple[int, int], held: int, truth: Bits | None) -> Bits:
    """Which kernels of the grid hold an entry, bool (rows, columns), about a million at a time."""
    rows, columns = grid
    found = np.ones(grid, np.bool_)
    if held < rows * columns:
        step = max(1, BAND // columns)
        for first in range(0, rows, step):
            part = None if truth is None else truth[first : first + step]
            found[first : first + step] = _band(coder, found[first : first + step].shape, (held, rows * columns), part)
    return found


def _band(coder: Mixer | Fit, grid: tuple[int, ...], density: tuple[int, int], truth: Bits | None) -> Bits:
    """`_occupied` of some rows; `density` is that of the whole factor, (kernels that hold an entry, kernels)."""
    held, kernels = density
    base = _log(held) - _log(kernels - held)
    share = (held << 16) // kernels
    diagonal = (np.arange(grid[0], dtype=np.uint8)[:, None] + np.arange(grid[1]).astype(np.uint8)) & np.uint8(15)
    batches = BATCH_OF_DIAGONAL[diagonal]
    found = np.zeros(grid, np.bool_)
    for batch in range(BATCHES):
        rows, columns = np.nonzero(batches == batch)
        seen = batches < batch
        features = (
            _surprise(found.sum(1), seen.sum(1), share),
            _surprise(found.sum(0), seen.sum(0), share),
        )
        bits = None if truth is None else truth[rows, columns]
        found[rows, columns] = coder.of_kernels("occupied", base, features, _NONE, (rows, columns), bits)
    return found


def _surprise(ones: Ints, seen: Ints, share: int) -> Ints:
    """How much the log-odds of 1 are above those of share / 2^16, where of `seen` bits `ones` were 1."""
    expected = seen * share >> 8
    more = log((ones << 8) + DOUBT) - log(expected + DOUBT)
    less: Ints = log((seen - ones << 8) + DOUBT) - log((seen << 8) - expected + DOUBT)
    return more - less


def _counts(coder: Mixer | Fit, shape: Shape, kept: int, at: tuple[Ints, Ints], truth: Kernels | None) -> Ints:
    """Entries of each of the kernels at (rows (N,), columns (N,)): at least one each and `kept` in all, int64 (N,)."""
    rows, columns = at
    count = np.ones(len(rows), np.int64)
    true = None if truth is None else np.count_nonzero(truth.filled, axis=0)
    live, left, level = np.arange(len(rows)), kept - len(rows), 1
    while 0 < left < (room := len(live) * (shape.area - level)):
        total = kept - left << 8
        in_rows = np.bincount(rows, count, shape.rows).astype(np.int64)
        in_columns = np.bincount(columns, count, shape.columns).astype(np.int64)
        features = (
            log((in_rows << 8) + DOUBT) - _log(total // shape.rows + DOUBT),
            log((in_columns << 8) + DOUBT) - _log(total // shape.columns + DOUBT),
        )
        constants = np.array([256, _log(left) - _log(room - left), 256 * (level == 1), 256 * (level == 2)])
        base = _log(left) - _log(len(live))
        bits = None if true is None else true[live] > level
        live = live[coder.of_kernels("more", base, features, constants, (rows[live], columns[live]), bits)]
        count[live] += 1
        left, level = left - len(live), level + 1
    if left < 0 or left > len(live) * (shape.area - level):
        raise InputError("a factor holds another number of entries", expected=kept, got=kept - left)
    if left:
        count[live] = shape.area
    return count


def _filled(coder: Mixer | Fit, shape: Shape, counts: Ints, truth: Bits | None) -> Bits:
    """Which positions of kernels with `counts` (N,) entries hold one, bool (area, N); position by position."""
    left = counts.astype(np.int16)
    filled = np.zeros((shape.area, len(counts)), np.bool_)
    for position in range(shape.area):
        open_ = shape.area - position
        here = filled[position]
        np.equal(left, open_, out=here)
        live = np.flatnonzero((left > 0) & (left < open_))
        if len(live):
            cells = left[live] - np.int16(1)
            for neighbour in neighbours(position, shape):
                cells *= np.int16(2)
                if neighbour is not None:
                    cells += filled[neighbour][live]
            base, features = _cells(shape.height, shape.width, position)
            here[live] = coder.in_cells("here", base, features, cells, None if truth is None else truth[position][live])
        left -= here
    return filled


def neighbours(position: int, shape: Shape) -> tuple[int | None, int | None, int | None, int | None]:
    """Positions above, to the left, above left, above right; None outside the kernel."""
    row, column = divmod(position, shape.width)
    above, left, right = row > 0, column > 0, column < shape.width - 1
    up = position - shape.width
    return (
        up if above else None,
        position - 1 if left else None,
        up - 1 if above and left else None,
        up + 1 if above and right else None,
    )


@lru_cache(maxsize=1024)
def _cells(height: int, width: int, position: int) -> tuple[Ints, Ints]:
    """(base, features) of the contexts of a position: entries left - 1, then one bit for each neighbour."""
    shape = Shape(1, 1, height, width)
    open_ = shape.area - position
    cell = np.arange(16 * (open_ - 1))
    left = 1 + (cell >> 4)
    known = [cell >> 3 - i & 1 for i in range(4)]
    features = np.zeros((len(cell), 13), np.int64)
    around = neighbours(position, shape)
    for i, neighbour in enumerate(around):
        if neighbour is not None:
            features[:, 2 * i], features[:, 2 * i + 1] = known[i], 1 - known[i]
    row, column = divmod(position, width)
    features[:, 8], features[:, 9] = row in (0, height - 1), column in (0, width - 1)
    features[:, 10], features[:, 11] = left == 1, left == 2
    if around[0] is not None and around[1] is not None:
        features[:, 12] = known[0] & known[1]
    return log(left) - log(open_ - left), features


def _log(number: int) -> int:
    return int(log(np.array([number]))[0])


_NONE = np.zeros(0, np.int64)
