"""Which codes the entries of a factor have: signs from the neighbours in the kernel, then ranks. FORMAT.md, 3.6.

The rank of a code is its place among the values of its sign, from zero outwards. Signs of a ResNet-20 cost 0.76 bit
each at 20 % kept and 0.83 at 5 %, for its kernels are smooth. Ranks cost what their frequencies say and little more:
these are counted in what is already decoded.
"""

from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from exporters.kernel_masks import neighbours
from exporters.kernels import Kernels, Shape
from exporters.mixing import Fit, Mixer
from exporters.odds import Ints
from exporters.rans import RANK, Bits

BINS = 16
TILT = 51
"""How the frequency of large values grows with the entries of the kernel; measured, the same for every file."""

CROWDS = 5
"""Kernels with 1, 2, 3, 4, and more entries."""


@dataclass
class RankShape:
    """How often ranks in each sixteenth of their range came up in the factors so far, int64 (16,)."""

    counts: Ints = field(default_factory=lambda: np.full(BINS, 8))

    def prior(self, size: int) -> Ints:
        """Weights of the ranks below `size`; about 4 · size · 256 in all."""
        shape = self.counts[np.arange(size) * BINS // max(size, 1)]
        weights: Ints = 1 + 1024 * size * shape // max(int(shape.sum()), 1)
        return weights

    def learn(self, seen: Ints) -> None:
        """Count ranks, of which `seen` (size,) says how often each came up."""
        np.add.at(self.counts, np.arange(len(seen)) * BINS // max(len(seen), 1), seen)


def code_signs(coder: Mixer | Fit, shape: Shape, filled: Bits, truth: NDArray[np.int8] | None) -> NDArray[np.int8]:
    """The signs of all entries, int8 (area, N): 1, -1, and 0 where there is none."""
    signs = np.zeros(filled.shape, np.int8)
    total = np.zeros(filled.shape[1], np.int8)
    for position in range(len(filled)):
        live = np.flatnonzero(filled[position])
        if len(live):
            cells = np.zeros(len(live), np.int16)
            for neighbour in neighbours(position, shape):
                cells *= np.int16(3)
                cells += np.int16(1)
                if neighbour is not None:
                    cells += signs[neighbour][live]
            cells *= np.int16(5)
            cells += total[live].clip(-2, 2) + np.int16(2)
            bits = None if truth is None else truth[position][live] > 0
            positive = coder.in_cells("positive", _BASE, _FEATURES, cells, bits)
            signs[position][live] = 2 * positive.astype(np.int8) - 1
            total += signs[position]
    return signs


def signs_of(kernels: Kernels, negative: Bits) -> NDArray[np.int8]:
    """The signs (area, N) of entries that are `negative` (k,) in row-major order."""
    kernel, place = kernels.entries()
    signs = np.zeros(kernels.filled.shape, np.int8)
    signs[place, kernel] = np.where(negative, -1, 1)
    return signs


def code_codes(
    coder: Mixer,
    shape: Shape,
    kernels: Kernels,
    sides: tuple[int, int],
    ranks: RankShape,
    truth: NDArray[np.uint8] | None,
) -> NDArray[np.uint8]:
    """Write the codes of all entries in row-major order, or read them where `truth` is None.

    Args:
        sides: how many values of the codebook are negative and how many are positive.
        ranks: learns from this factor.
    """
    kernel, place = kernels.entries()
    negative = sides[0]
    if all(sides):
        signs = None if truth is None else signs_of(kernels, truth < negative)
        side = (code_signs(coder, shape, kernels.filled, signs)[place, kernel] > 0).astype(np.int64)
    else:
        side = np.full(len(kernel), int(not negative))
    crowd = (np.count_nonzero(kernels.filled, axis=0) - 1).clip(max=CROWDS - 1)[kernel]
    true: Ints | None = None
    if truth is not None:
        code = truth.astype(np.int64)
        true = np.where(side, code - negative, negative - 1 - code)
    rank = _code_ranks(coder, sides, ranks, side, crowd, true)
    return np.where(side, negative + rank, negative - 1 - rank).astype(np.uint8)


def _code_ranks(
    coder: Mixer, sides: tuple[int, int], ranks: RankShape, side: Ints, crowd: Ints, truth: Ints | None
) -> Ints:
    """The ranks of entries with these sides and crowds, in five batches, each with what the ones before have taught."""
    size, n = max(sides), len(side)
    if size < 2:
        return np.zeros(n, np.int64)
    found = np.zeros(n, np.int64)
    seen = np.zeros((2, size), np.int64)
    prior = [ranks.prior(count) for count in sides]
    bounds = [0, n >> 4, n >> 3, n >> 2, n >> 1, n]
    for begin, end in pairwise(bounds):
        if begin < end:
            rows = [_frequencies(counts[: len(p)], p, size) for counts, p in zip(seen, prior, strict=True)]
            part = slice(begin, end)
            context = side[part] * CROWDS + crowd[part]
            true = None if truth is None else truth[part]
            found[part] = coder.ranks(context, np.concatenate(rows), true)
            seen += np.bincount(side[part] * size + found[part], minlength=2 * size).reshape(2, size)
    for counts, count in zip(seen, sides, strict=True):
        ranks.learn(counts[:count])
    return found


def _frequencies(seen: Ints, prior: Ints, size: int) -> Ints:
    """Frequencies of the ranks of one side for each crowd, (5, size), each row adding up to 2^14."""
    count = len(seen)
    if not count:  # no entry has this side
        return np.tile(np.eye(1, size, dtype=np.int64) << RANK, (CROWDS, 1))
    rank = np.arange(count)
    tilt = 512 + TILT * np.arange(CROWDS)[:, None] * (2 * rank + 1 - count) // count
    weight = (256 * seen + prior) * tilt
    found = np.zeros((CROWDS, size), np.int64)
    found[:, :count] = 1 + weight * ((1 << RANK) - count) // weight.sum(axis=1, keepdims=True)
    found[np.arange(CROWDS), weight.argmax(axis=1)] += (1 << RANK) - found.sum(axis=1)
    return found


def _sign_features() -> Ints:
    """Of every cell: the signs above, to the left, above left, above right, the clipped sum, and 1; (405, 6)."""
    cell = np.arange(3**4 * 5)
    signs = [cell // (5 * 3**i) % 3 - 1 for i in (3, 2, 1, 0)]
    return np.stack([*signs, cell % 5 - 2, np.ones_like(cell)], axis=1)


_FEATURES = _sign_features()
_BASE = np.zeros(len(_FEATURES), np.int64)
