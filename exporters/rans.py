"""Interleaved range asymmetric numeral systems (Duda, arXiv:1311.2540): symbols of given frequencies as 16-bit words.

Each of the lanes holds an integer, its state, 2^16 ≤ x < 2^32. A symbol that owns [start, start + frequency) of
[0, 2^M) takes x to ⌊x / frequency⌋ · 2^M + start + x mod frequency; before that, a state that would leave its range
gives its low 16 bits away as a word. Symbols come in runs; symbol i of a run goes to lane i mod lanes. A decoder takes
the symbols back in the opposite order, so the encoder goes through everything backwards. FORMAT.md, section 3.3.

A lane's state has to start somewhere, which would waste two bytes. So the last symbols, the tail, are coded by a lane
of their own, and the states of the others start with its words in their low bits. The lane of the tail starts at 0.

`Encoder` and `Decoder` are the two kinds of `Coder`, so that a model of the symbols is written once for both ways: the
encoder is told the truth and gives it back, the decoder is told None.
"""

from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from atmc_tool.errors import InputError

BIT, RANK = 16, 14
"""M of a bit and of a rank."""

PART = 2**16  # symbols that one lane takes at a time
START = 1 << 16
"""The least state of a lane among several; one that is alone has smaller ones where no words are left."""

MANY = 2**13
"""Ranks of a run from which on a table of what owns each slot is faster than a search."""

LONGEST_TAIL = 2**18
"""Symbols that the lane of the tail codes at the most."""

Bits = NDArray[np.bool_]
Ranks = NDArray[np.int64]
Words = NDArray[np.uint16]


class Coder(Protocol):
    """Writes the truth or reads it; gives it back."""

    def bits(self, ones: NDArray[np.uint16], truth: Bits | None) -> Bits:
        """Bits (n,) whose probabilities of being 1 are ones / 2^16, 1 ≤ ones < 2^16."""

    def ranks(self, context: Ranks, frequencies: NDArray[np.int64], truth: Ranks | None) -> Ranks:
        """Ranks (n,): the i-th has the frequencies of row `context[i]`; each row adds up to 2^14."""


@dataclass
class Encoder:
    """The symbols written so far, run after run: (start, frequency, M)."""

    runs: list[tuple[NDArray[np.uint32], NDArray[np.uint32], int]] = field(default_factory=list)

    def bits(self, ones: NDArray[np.uint16], truth: Bits | None) -> Bits:
        """See `Coder`."""
        assert truth is not None
        p = ones.astype(np.uint32)
        self.runs.append(
            (np.where(truth, 0, p).astype(np.uint32), np.where(truth, p, START - p).astype(np.uint32), BIT)
        )
        return truth

    def ranks(self, context: Ranks, frequencies: NDArray[np.int64], truth: Ranks | None) -> Ranks:
        """See `Coder`."""
        assert truth is not None
        starts = np.cumsum(frequencies, axis=1) - frequencies
        start, frequency = starts[context, truth], frequencies[context, truth]
        self.runs.append((start.astype(np.uint32), frequency.astype(np.uint32), RANK))
        return truth

    def cost(self, begin: int = 0, end: int | None = None) -> float:
        """Ideal size in bytes of these runs."""
        return float(sum(np.sum(m - np.log2(frequency)) for _, frequency, m in self.runs[begin:end])) / 8

    def symbols(self) -> int:
        """How many symbols there are."""
        return sum(len(start) for start, _, _ in self.runs)

    def words(self, lanes: int) -> tuple[int, Words]:
        """(symbols before the tail, words): each lane's state, high word first, then the words in reading order.

        One lane alone codes only a tail.
        """
        if lanes == 1:
            _, words = self._tail(None)
            return 0, words
        tail, payload = self._tail(lanes)
        before = self.symbols() - tail
        states, parts = START + payload.astype(np.uint32), [np.zeros(0, np.uint16)]
        for starts, frequencies, m in reversed(self.runs):
            n, tail = max(0, len(starts) - tail), max(0, tail - len(starts))
            for begin in range((n - 1) // lanes * lanes, -1, -lanes):
                frequency = frequencies[begin : min(begin + lanes, n)]
                x = states[: len(frequency)]
                full = np.flatnonzero(x >> np.uint32(32 - m) >= frequency)
                parts.append(x[full].astype(np.uint16))
                x[full] >>= np.uint32(16)
                quotient = x // frequency
                x += (quotient << np.uint32(m)) - quotient * frequency + starts[begin : begin + len(frequency)]
        ends = np.stack([states >> 16, states & 0xFFFF], axis=1).astype(np.uint16).reshape(-1)
        return before, np.concatenate([ends, *reversed(parts)])

    def _tail(self, most: int | None) -> tuple[int, Words]:
        """(symbols, words) of the longest tail of `most` words; no symbols and words of 0 where it is too long.

        In plain integers, which NumPy is slower than for one lane.
        """
        words: list[int] = []
        x, symbols = 0, 0
        for starts, frequencies, m in self._parts_from_the_end():
            for start, frequency in zip(starts[::-1].tolist(), frequencies[::-1].tolist(), strict=True):
                if most is not None and symbols > LONGEST_TAIL:
                    return 0, np.zeros(most, np.uint16)
                if x >> 32 - m >= frequency:
                    if len(words) + 2 == most:
                        return symbols, np.array([x >> 16, x & 0xFFFF, *reversed(words)], np.uint16)
                    words.append(x & 0xFFFF)
                    x >>= 16
                quotient, rest = divmod(x, frequency)
                x = (quotient << m) + start + rest
                symbols += 1
        if most is not None:
            return 0, np.zeros(most, np.uint16)
        return symbols, np.array([x >> 16, x & 0xFFFF, *reversed(words)], np.uint16)

    def _parts_from_the_end(self) -> Iterator[tuple[NDArray[np.uint32], NDArray[np.uint32], int]]:
        """The runs in parts of `PART` symbols, the last part first, for a list takes far more memory than an array."""
        for starts, frequencies, m in reversed(self.runs):
            for end in range(len(starts), 0, -PART):
                part = slice(max(0, end - PART), end)
                yield starts[part], frequencies[part], m


class Decoder:
    """The symbols of `Encoder.words`, read in the order in which they were written."""

    def __init__(self, words: Words, lanes: int, before: int = 0) -> None:
        """`before` symbols come before the tail; none if there is one lane."""
        if len(words) < 2 * lanes:
            raise InputError("the coded stream is cut off", expected=f"at least {2 * lanes} words", got=len(words))
        ends = words[: 2 * lanes].astype(np.uint32)
        self._states = ends[::2] << np.uint32(16) | ends[1::2]
        if lanes > 1 and self._states.min() < START:
            raise InputError("a state of the coded stream is below 65536")
        self._words = words
        self.at = 2 * lanes  # words read so far
        self._left = before  # symbols before the tail
        self._tail = 0 if lanes > 1 else None  # symbols of the tail, which are counted if there are several lanes
        if lanes > 1 and not before:
            self._begin_tail()

    def bits(self, ones: NDArray[np.uint16], truth: Bits | None = None) -> Bits:
        """See `Coder`.

        Raises:
            InputError: the words end too early.
        """
        assert truth is None
        p = ones.astype(np.uint32)
        if len(self._states) == 1:
            return self._bits_of_one_lane(p)
        if self._left > len(p):
            return self._bits_of_lanes(p)
        left = self._left
        found = self._bits_of_lanes(p[:left])
        self._begin_tail()
        return np.concatenate([found, self._bits_of_one_lane(p[left:])])

    def _bits_of_lanes(self, p: NDArray[np.uint32]) -> Bits:
        lanes = len(self._states)
        self._left -= len(p)
        out = np.empty(len(p), np.bool_)
        for begin in range(0, len(p), lanes):
            part, one = p[begin : begin + lanes], out[begin : begin + lanes]
            x = self._states[: len(part)]
            slot, taken = x & _LOW, x >> _WORD
            np.less(slot, part, out=one)
            taken *= part
            x[:] = np.where(one, taken + slot, x - taken - part)
            self._refill(x)
        return out

    def ranks(self, context: Ranks, frequencies: NDArray[np.int64], truth: Ranks | None = None) -> Ranks:
        """See `Coder`.

        Raises:
            InputError: the words end too early.
        """
        assert truth is None
        used = np.bincount(context, minlength=len(frequencies)) > 0
        frequencies, context = frequencies[used], (np.cumsum(used) - 1)[context]
        frequency = frequencies.reshape(-1).astype(np.uint32)
        first = np.arange(len(frequencies), dtype=np.int64)[:, None] << RANK
        start = (first + np.cumsum(frequencies, axis=1) - frequencies).reshape(-1).astype(np.uint32)
        row = (context << RANK).astype(np.uint32)
        if len(self._states) == 1:
            cells = self._ranks_of_one_lane(row, frequency, start)
        elif self._left > len(row):
            cells = self._ranks_of_lanes(row, frequency, start)
        else:
            left = self._left
            found = self._ranks_of_lanes(row[:left], frequency, start)
            self._begin_tail()
            cells = np.concatenate([found, self._ranks_of_one_lane(row[left:], frequency, start)])
        cells -= context * frequencies.shape[1]
        return cells

    def _ranks_of_lanes(
        self, row: NDArray[np.uint32], frequency: NDArray[np.uint32], start: NDArray[np.uint32]
    ) -> NDArray[np.int64]:
        """Cells (n,) of `ranks`: which of all the `start`s, each less than the one after or equal, owns the slot."""
        lanes = len(self._states)
        owner = np.repeat(np.arange(len(frequency), dtype=np.uint16), frequency) if len(row) > MANY else None
        self._left -= len(row)
        cells = np.empty(len(row), np.int64)
        for begin in range(0, len(row), lanes):
            slot = row[begin : begin + lanes]
            x = self._states[: len(slot)]
            slot = slot + (x & _LOW_OF_RANK)
            cell = np.searchsorted(start, slot, "right") - 1 if owner is None else owner[slot]
            cells[begin : begin + lanes] = cell
            x >>= np.uint32(RANK)
            x *= frequency[cell]
            x += slot - start[cell]
            self._refill(x)
        return cells

    def _begin_tail(self) -> None:
        """Go on with one lane, whose words the states hold; with none if they are all 0."""
        words = self._states.astype(np.uint16)
        if self.at != len(self._words) or (self._states >> _WORD != 1).any():
            raise InputError("the coded stream does not end where its symbols end")
        self._words = np.concatenate([self._words, words])
        self._states = np.array([int(words[0]) << 16 | int(words[1])], np.uint32)
        self.at += 2 if words.any() else len(words)

    def _count(self, symbols: int) -> None:
        """That the tail has so many more."""
        if self._tail is not None:
            self._tail += symbols
            if self._tail > LONGEST_TAIL:
                raise InputError("the tail of the coded stream is too long", expected=f"at most {LONGEST_TAIL} symbols")

    def _bits_of_one_lane(self, ones: NDArray[np.uint32]) -> Bits:
        """`bits` in plain integers, which NumPy is slower than where there are few lanes."""
        self._count(len(ones))
        x, out = int(self._states[0]), bytearray(len(ones))
        words, at, most = self._words.data, self.at, len(self._words)
        for begin in range(0, len(ones), PART):  # a list takes far more memory than an array
            for i, p in enumerate(ones[begin : begin + PART].tolist(), begin):
                slot = x & 0xFFFF
                if slot < p:
                    out[i] = 1
                    x = p * (x >> 16) + slot
                else:
                    x -= p * ((x >> 16) + 1)
                if x < START and at < most:
                    x = x << 16 | words[at]
                    at += 1
        self._states[0], self.at = x, at
        return np.frombuffer(out, np.bool_)

    def _ranks_of_one_lane(
        self, row: NDArray[np.uint32], frequency: NDArray[np.uint32], start: NDArray[np.uint32]
    ) -> NDArray[np.int64]:
        """`_ranks_of_lanes` in plain integers."""
        self._count(len(row))
        x, cells = int(self._states[0]), np.empty(len(row), np.int64)
        words, at, most = self._words.data, self.at, len(self._words)
        frequencies, starts = frequency.tolist(), start.tolist()
        for begin in range(0, len(row), PART):
            found = []
            for first in row[begin : begin + PART].tolist():
                slot = first + (x & (1 << RANK) - 1)
                cell = bisect_right(starts, slot) - 1
                found.append(cell)
                x = frequencies[cell] * (x >> RANK) + slot - starts[cell]
                if x < START and at < most:
                    x = x << 16 | words[at]
                    at += 1
            cells[begin : begin + PART] = found
        self._states[0], self.at = x, at
        return cells

    def _refill(self, x: NDArray[np.uint32]) -> None:
        """Give each state below 2^16 the next word, in the order of the lanes."""
        empty = (x < START).nonzero()[0]
        words = self._words[self.at : self.at + len(empty)]
        if len(words) < len(empty):
            raise InputError("the coded stream ends too early")
        self.at += len(empty)
        x[empty] = x[empty] << _WORD | words

    def finish(self) -> None:
        """Check that every word was used and the state is where the encoder started.

        Raises:
            InputError: it is not so.
        """
        if len(self._states) > 1 or self.at != len(self._words) or self._states[0]:
            raise InputError("the coded stream does not end where its symbols end")


_WORD, _LOW, _LOW_OF_RANK = np.uint32(16), np.uint32(0xFFFF), np.uint32((1 << RANK) - 1)
