"""Which codes the entries of a factor have: signs from the neighbours in the kernel, then ranks. FORMAT.md, 3.6.

The rank of a code is its place among the values of its sign, from zero outwards. Signs of a ResNet-20 cost 0.76 bit
each at 20 % kept and 0.83 at 5 %, for its kernels are smooth. The frequencies of ranks are counted in what is
already decoded, and so is how they differ beside large neighbours and in full kernels: 4 % of their bytes at 20 % kept
and 4 values.
"""

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from exporters.kernel_masks import neighbours
from exporters.kernels import Kernels, Shape
from exporters.mixing import Fit, Mixer
from exporters.odds import Ints
from exporters.rans import RANK, Bits

BINS = 16

CROWDS = 5
"""Kernels with 1, 2, 3, 4, and more entries."""

NEARS = 5
"""No neighbour, and neighbours whose ranks are in the first to the last quarter of their range."""

QUARTERS = 4
UNIT = 1 << 16
"""What counts as one entry where parts of entries are counted."""

LEAST, MOST = 16, 4096
"""How often a quarter comes up in a context for 256 times that it is expected, at least and at most."""

FIRST = 16
"""So many ranks are coded before any is counted; later an eighth of those that have been."""


@dataclass
class Context:
    """How often the ranks of each quarter came up in each class of entries, and how often they were expected."""

    seen: Ints = field(default_factory=lambda: np.full((5, QUARTERS), 20 * UNIT))
    expected: Ints = field(default_factory=lambda: np.full((5, QUARTERS), 20 * UNIT))

    def ratio(self) -> Ints:
        """(5, 4), in 1/256."""
        found: Ints = np.minimum(np.maximum(256 * self.seen // self.expected, LEAST), MOST)
        return found


@dataclass
class RankModel:
    """What the factors so far have taught about ranks.

    counts: how often ranks in each sixteenth of their range came up, int64 (16,)
    near:   by the ranks above and to the left
    crowd:  by the number of entries in the kernel
    """

    counts: Ints = field(default_factory=lambda: np.full(BINS, 8))
    near: Context = field(default_factory=Context)
    crowd: Context = field(default_factory=Context)

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
    ranks: RankModel,
    truth: NDArray[np.uint8] | None,
) -> NDArray[np.uint8]:
    """Write the codes of all entries in row-major order, or read them where `truth` is None.

    Args:
        sides: how many values of the codebook are negative and how many are positive.
        ranks: learns from this factor.
    """
    kernel, place = kernels.entries()
    negative, filled = sides[0], kernels.filled
    if all(sides):
        truths = None if truth is None else signs_of(kernels, truth < negative)
        signs = code_signs(coder, shape, filled, truths)
    else:
        signs = filled.astype(np.int8) * np.int8(-1 if negative else 1)
    positive = signs[place, kernel] > 0
    true: NDArray[np.int16] | None = None
    if truth is not None:
        true = np.zeros(filled.shape, np.int16)
        code = truth.astype(np.int16)
        true[place, kernel] = np.where(positive, code - negative, negative - 1 - code)
    rank = _code_ranks(coder, shape, sides, ranks, signs, true)[place, kernel]
    return np.where(positive, negative + rank, negative - 1 - rank).astype(np.uint8)


def _code_ranks(
    coder: Mixer,
    shape: Shape,
    sides: tuple[int, int],
    ranks: RankModel,
    signs: NDArray[np.int8],
    truth: NDArray[np.int16] | None,
) -> NDArray[np.int16]:
    """The ranks (area, N) of entries with these signs, position by position, each run with what those before taught."""
    size, found = max(sides), np.zeros(signs.shape, np.int16)
    if size < 2:
        return found
    model = _Ranks(sides, ranks, shape.area > 1)
    levels = np.zeros((2, size), np.int16)
    for levels_of_side, count in zip(levels, sides, strict=True):
        levels_of_side[:count] = 256 * (2 * np.arange(count) + 1) // max(count, 1)
    level = np.zeros(signs.shape, np.int16)
    crowd = (np.count_nonzero(signs, axis=0) - 1).clip(max=CROWDS - 1)
    waiting: list[tuple[Ints, Ints]] = []
    table, counted, done = model.frequencies(), 0, 0
    for position in range(shape.area):
        live = np.flatnonzero(signs[position])
        side = (signs[position][live] > 0).astype(np.int64)
        context = side * (NEARS * CROWDS)
        if shape.area > 1:
            context += CROWDS * _near(level, position, shape, live) + crowd[live]
        begin = 0
        while begin < len(live):
            if done - counted >= max(FIRST, counted >> 3):
                model.learn(waiting)
                table, waiting, counted = model.frequencies(), [], done
            part = slice(begin, min(begin + max(FIRST, done), len(live)))
            true = None if truth is None else truth[position][live[part]].astype(np.int64)
            rank = coder.ranks(context[part], table, true)
            waiting.append((context[part], rank))
            found[position][live[part]] = rank
            level[position][live[part]] = levels[side[part], rank]
            done += part.stop - begin
            begin = part.stop
    model.learn(waiting)
    for counts, count in zip(model.seen, sides, strict=True):
        ranks.learn(counts[:count])
    return found


def _near(level: NDArray[np.int16], position: int, shape: Shape, live: Ints) -> NDArray[np.int16]:
    """The classes (n,) of the neighbours in the kernels `live`, by the mean of their levels, up to 511; 0 is none."""
    total, count = np.zeros((2, len(live)), np.int16)
    for neighbour in neighbours(position, shape)[:2]:
        if neighbour is not None:
            own = level[neighbour][live]
            total += own
            count += own > 0
    return ((total >> 6 + count) + 1) * (count > 0)


@dataclass
class _Ranks:
    """Frequencies of the ranks of a factor; `by_kernel`: whether they depend on what else is in the kernel."""

    sides: tuple[int, int]
    shared: RankModel
    by_kernel: bool
    seen: Ints = field(init=False)
    _prior: Ints = field(init=False)
    _quarter: Ints = field(init=False)

    def __post_init__(self) -> None:
        size = max(self.sides)
        self.seen = np.zeros((2, size), np.int64)
        self._prior = np.zeros((2, size), np.int64)
        self._quarter = np.zeros((2, size), np.int64)
        for i, count in enumerate(self.sides):
            self._prior[i, :count] = self.shared.prior(count)
            self._quarter[i, :count] = np.arange(count) * QUARTERS // max(count, 1)

    def _whole(self) -> Ints:
        """Weights of the ranks of both sides whatever the context, (2, size), each row adding up to about 2^16."""
        weight = 256 * self.seen + self._prior
        found: Ints = (1 + (weight << 16) // weight.sum(axis=1, keepdims=True).clip(min=1)) * (self._prior > 0)
        return found

    def frequencies(self) -> Ints:
        """Those of each context, (50, size), each row adding up to 2^14."""
        size = max(self.sides)
        weight = np.broadcast_to(self._whole()[:, None, None], (2, NEARS, CROWDS, size))
        if self.by_kernel:
            near = self.shared.near.ratio()[:, self._quarter].swapaxes(0, 1)
            crowd = self.shared.crowd.ratio()[:, self._quarter].swapaxes(0, 1)
            weight = weight * near[:, :, None] * crowd[:, None]
        count = np.array(self.sides)[:, None, None, None]
        total = weight.sum(axis=3, keepdims=True).clip(min=1)
        found: Ints = ((weight > 0) + weight * ((1 << RANK) - count) // total).reshape(-1, size)
        found[np.arange(len(found)), weight.reshape(-1, size).argmax(axis=1)] += (1 << RANK) - found.sum(axis=1)
        return found

    def learn(self, decoded: list[tuple[Ints, Ints]]) -> None:
        """Count these (contexts, ranks)."""
        if not decoded:
            return
        context, rank = (np.concatenate(column) for column in zip(*decoded, strict=True))
        whole, size = self._whole(), max(self.sides)
        came = np.bincount(context * size + rank, minlength=2 * NEARS * CROWDS * size).reshape(2, NEARS, CROWDS, size)
        self.seen += came.sum(axis=(1, 2))
        if not self.by_kernel:
            return
        near, crowd = self.shared.near, self.shared.crowd
        belongs = (self._quarter[:, :, None] == np.arange(QUARTERS)).astype(np.int64)
        quarters = np.einsum("sj,sjq->sq", whole, belongs)
        found = np.einsum("sncj,sjq->sncq", came, belongs)
        times = found.sum(axis=3)
        by_crowd = _shares(quarters[:, None] * crowd.ratio())  # (2, crowds, quarters)
        by_near = _shares(quarters[:, None] * near.ratio())
        near.expected += np.einsum("snc,scq->nq", times, by_crowd)
        crowd.expected += np.einsum("snc,snq->cq", times, by_near)
        near.seen += UNIT * found.sum(axis=(0, 2))
        crowd.seen += UNIT * found.sum(axis=(0, 1))


def _shares(weights: Ints) -> Ints:
    """Each row as parts of 2^16."""
    found: Ints = UNIT * weights // weights.sum(axis=-1, keepdims=True).clip(min=1)
    return found


def _sign_features() -> Ints:
    """Of every cell: the signs above, to the left, above left, above right, the clipped sum, and 1; (405, 6)."""
    cell = np.arange(3**4 * 5)
    signs = [cell // (5 * 3**i) % 3 - 1 for i in (3, 2, 1, 0)]
    return np.stack([*signs, cell % 5 - 2, np.ones_like(cell)], axis=1)


_FEATURES = _sign_features()
_BASE = np.zeros(len(_FEATURES), np.int64)
