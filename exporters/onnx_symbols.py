"""Runs of small numbers as one stream for the whole exported file, which `DecodeSymbols` of `onnx_functions` decodes.

The numbers from 0 on are cut into classes of 1, 2, 4 … 512 neighbours. A symbol of class c is c ones and a zero, and as
many low bits as tell it from its class. Runs share rows of classes where that costs less than rows of their own; a row
of one class needs no ones and zeros. On gaps this is within 1 to 3 % of their zero-order entropy, and less than that of
the mask where entries come in clusters.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from exporters.onnx_builder import pack

Ints = NDArray[np.int64]

LARGEST_WIDTH = 9
"""Low bits of a symbol; with those that are before them in their byte they are within two."""

MOST_CLASSES = 24
LARGEST = MOST_CLASSES << LARGEST_WIDTH
"""Symbols are below."""

_BITS_OF_ROW, _BITS_OF_CLASS = 32, 8

_GRID = np.array([s for s in range(LARGEST) if s % (1 << max(0, s.bit_length() - 6)) == 0])


@dataclass(frozen=True)
class Row:
    """Classes for some runs: `widths` of low bits, one for each class, and the bits that the runs then take."""

    widths: tuple[int, ...]
    bits: int

    @property
    def cost(self) -> int:
        """Bits in the file, those of the row itself too."""
        return self.bits + _BITS_OF_ROW + _BITS_OF_CLASS * len(self.widths)

    @property
    def coded(self) -> bool:
        """Whether symbols say which class they are of."""
        return len(self.widths) > 1


def best_row(counts: Ints) -> Row:
    """The cheapest row for symbols of which `counts` (n,) says how often each comes up, n ≤ LARGEST.

    A class begins only at a number of few significant bits, which costs next to nothing and bounds the work.
    """
    n = len(counts)
    before = np.concatenate([[0], np.cumsum(counts)])
    begin = np.append(_GRID[: np.searchsorted(_GRID, n)], n)
    at = np.minimum(begin + (1 << np.arange(LARGEST_WIDTH + 1))[:, None], n)
    following = np.searchsorted(begin, at)
    barred = np.where(begin[following] == at, 0.0, np.inf)
    held = before[at] - before[begin]
    # rest[s]: the least bits of symbols from begin[s] on, and of their classes in the row
    rest = np.where(begin == n, 0.0, np.inf)
    choices = []
    for after in range(min(MOST_CLASSES, n), 0, -1):
        costs = held * (after + np.arange(LARGEST_WIDTH + 1)[:, None]) + rest[following] + barred + _BITS_OF_CLASS
        choices.append(costs.argmin(axis=0))
        rest = np.where(begin == n, 0.0, costs.min(axis=0))
    widths: list[int] = []
    state = 0
    while state < len(begin) - 1 and len(widths) < len(choices):
        widths.append(int(choices[-1 - len(widths)][state]))
        state = int(following[widths[-1], state])
    width = (n - 1).bit_length()
    alone = Row((width,), int(before[n]) * width)
    if width <= LARGEST_WIDTH and alone.bits + _BITS_OF_CLASS <= rest[0]:
        return alone
    return Row(tuple(widths), int(rest[0]) - _BITS_OF_CLASS * len(widths))


@dataclass(frozen=True)
class Symbols:
    """Runs of symbols in the order of the stream.

    runs:   int64 (n_i,), below LARGEST
    groups: indices of runs and their row, those of rows that are coded first
    """

    runs: Sequence[Ints]
    groups: Sequence[tuple[tuple[int, ...], Row]]

    @classmethod
    def of(cls, runs: Sequence[Ints], others: Sequence[Ints] = ()) -> "Symbols":
        """Runs that are neighbours in the mean of their symbols share a row where that makes the stream smaller.

        others: runs after these that share rows among themselves only; nothing but fillers is between them
        """
        groups = [(False, *group) for group in _rows(runs, 0)] + [(True, *group) for group in _rows(others, len(runs))]
        groups.sort(key=lambda group: (not group[2].coded, group[0] == group[2].coded))
        return cls([*runs, *others], [(members, row) for _, members, row in groups])

    def _members(self, group: int) -> Ints:
        return np.concatenate([self.runs[i] for i in self.groups[group][0]])

    @cached_property
    def _classes(self) -> list[Ints]:
        """The class of every symbol, by groups."""
        limits = [np.cumsum(1 << np.array(row.widths)) for _, row in self.groups]
        return [np.searchsorted(limit, self._members(i), "right") for i, limit in enumerate(limits)]

    @cached_property
    def _n_coded(self) -> int:
        """Groups whose symbols say their class."""
        return sum(row.coded for _, row in self.groups)

    @cached_property
    def _fillers(self) -> int:
        """Symbols after those that say their class: they fill the last byte, and there is one."""
        bits = sum(len(classes) + int(classes.sum()) for classes in self._classes[: self._n_coded])
        return -bits % 8 if bits else 8

    @property
    def number(self) -> int:
        """Symbols in all, fillers among them."""
        return sum(len(run) for run in self.runs) + self._fillers

    def bits(self) -> list[float]:
        """What each run takes of the stream, with its share of what its row takes."""
        found = [0.0] * len(self.runs)
        for (members, row), classes in zip(self.groups, self._classes, strict=True):
            bits = np.array(row.widths)[classes] + (classes + 1) * row.coded
            ends = np.cumsum([len(self.runs[i]) for i in members])
            for i, part in zip(members, np.split(bits, ends[:-1]), strict=True):
                found[i] = float(part.sum()) + (row.cost - row.bits) / len(members)
        return found

    def starts(self) -> list[int]:
        """Where each run begins among all symbols."""
        found, at = [0] * len(self.runs), 0
        for number, (members, _) in enumerate(self.groups):
            at += self._fillers if number == self._n_coded else 0
            for i in members:
                found[i] = at
                at += len(self.runs[i])
        return found

    def parts(self) -> list[NDArray[np.integer]]:
        """The inputs of `DecodeSymbols` in their order."""
        rows = [np.array(row.widths) for _, row in self.groups]
        values = [self._members(i) - (np.cumsum(1 << row) - (1 << row))[self._classes[i]] for i, row in enumerate(rows)]
        sizes = [row[classes] for row, classes in zip(rows, self._classes, strict=True)]
        firsts = self.starts()
        values.insert(self._n_coded, np.zeros(self._fillers, np.int64))
        sizes.insert(self._n_coded, np.full(self._fillers, rows[max(0, self._n_coded - 1)][0]))
        ends = [_unary(classes) for classes in self._classes[: self._n_coded]]
        return [
            pack(np.concatenate([*ends, np.zeros(self._fillers, np.uint8)]), 1).reshape(-1),
            np.concatenate(rows).astype(np.int32),
            _low_bits(np.concatenate(values), np.concatenate(sizes)),
            np.array([firsts[members[0]] for members, _ in self.groups[1:]], np.int32),
            np.array([len(row) for row in rows[:-1]], np.int32),
        ]


_Group = tuple[tuple[int, ...], Ints, Row]


def _rows(runs: Sequence[Ints], first: int) -> list[tuple[tuple[int, ...], Row]]:
    """Indices of runs, counted from `first`, and their row."""
    counts = [np.bincount(run) for run in runs]
    order = sorted(range(len(runs)), key=lambda i: (float(runs[i].mean()), i))
    groups: list[_Group] = [((first + i,), counts[i], best_row(counts[i])) for i in order]
    merged = [_merge(*pair) for pair in pairwise(groups)]
    while merged:
        gains = [a[2].cost + b[2].cost - both[2].cost for (a, b), both in zip(pairwise(groups), merged, strict=True)]
        best = int(np.argmax(gains))
        if gains[best] <= 0:
            break
        groups[best : best + 2] = [merged[best]]
        near = range(max(0, best - 1), min(best + 1, len(groups) - 1))
        merged[max(0, best - 1) : best + 2] = [_merge(groups[i], groups[i + 1]) for i in near]
    return [(members, row) for members, _, row in groups]


def _merge(first: _Group, second: _Group) -> _Group:
    counts = np.zeros(max(len(first[1]), len(second[1])), np.int64)
    for _, part, _ in (first, second):
        counts[: len(part)] += part
    return (*first[0], *second[0]), counts, best_row(counts)


def _unary(classes: Ints) -> NDArray[np.uint8]:
    """For each as many ones, then a zero."""
    ends = np.cumsum(classes + 1) - 1
    bits: NDArray[np.uint8] = np.ones(int(ends[-1]) + 1, np.uint8)
    bits[ends] = 0
    return bits


def _low_bits(values: Ints, widths: Ints) -> NDArray[np.uint8]:
    """The lowest `widths` bits of each value, the lowest first, and a byte or two beyond the last."""
    ends = np.cumsum(widths)
    bits = np.zeros(int(ends[-1]) // 8 * 8 + 16, np.uint8)
    for place in range(int(widths.max(initial=0))):
        has = np.flatnonzero(widths > place)
        bits[(ends - widths)[has] + place] = values[has] >> place & 1
    return np.packbits(bits, bitorder="little")
