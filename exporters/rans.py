"""Interleaved range asymmetric numeral systems (Duda, arXiv:1311.2540): symbols of given frequencies as 16-bit words.

Each of the lanes holds an integer, its state, 2^16 ≤ x < 2^32. A symbol that owns [start, start + frequency) of
[0, 2^M) takes x to ⌊x / frequency⌋ · 2^M + start + x mod frequency; before that, a state that would leave its range
gives its low 16 bits away as a word. Symbols come in runs; symbol i of a run goes to lane i mod lanes. A decoder takes
the symbols back in the opposite order, so the encoder goes through everything backwards. FORMAT.md, section 3.3.

`Encoder` and `Decoder` are the two kinds of `Coder`, so that a model of the symbols is written once for both ways: the
encoder is told the truth and gives it back, the decoder is told None.
"""

from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from atmc_tool.errors import InputError

BIT, RANK = 16, 14
"""M of a bit and of a rank."""

PART = 2**16  # symbols that one lane takes at a time
START = 1 << 16
"""Every state before the first symbol is encoded, and after the last one is decoded."""

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

    def words(self, lanes: int) -> Words:
        """The final states, each as its high and its low word, then the words in the order in which they are read."""
        if lanes == 1:
            return self._words_of_one_lane()
        states, parts = np.full(lanes, START, np.uint32), [np.zeros(0, np.uint16)]
        for starts, frequencies, m in reversed(self.runs):
            for begin in range((len(starts) - 1) // lanes * lanes, -1, -lanes):
                frequency = frequencies[begin : begin + lanes]
                x = states[: len(frequency)]
                full = np.flatnonzero(x >> np.uint32(32 - m) >= frequency)
                parts.append(x[full].astype(np.uint16))
                x[full] >>= np.uint32(16)
                quotient = x // frequency
                x += (quotient << np.uint32(m)) - quotient * frequency + starts[begin : begin + lanes]
        ends = np.stack([states >> 16, states & 0xFFFF], axis=1).astype(np.uint16).reshape(-1)
        return np.concatenate([ends, *reversed(parts)])

    def _words_of_one_lane(self) -> Words:
        """`words(1)` in plain integers, which NumPy is slower than where there are few lanes."""
        x, words = START, []
        for starts, frequencies, m in reversed(self.runs):
            for start, frequency in zip(starts[::-1].tolist(), frequencies[::-1].tolist(), strict=True):
                if x >> 32 - m >= frequency:
                    words.append(x & 0xFFFF)
                    x >>= 16
                quotient, rest = divmod(x, frequency)
                x = (quotient << m) + start + rest
        return np.array([x >> 16, x & 0xFFFF, *reversed(words)], np.uint16)


class Decoder:
    """The symbols of `Encoder.words`, read in the order in which they were written."""

    def __init__(self, words: Words, lanes: int) -> None:
        if len(words) < 2 * lanes:
            raise InputError("the coded stream is cut off", expected=f"at least {2 * lanes} words", got=len(words))
        ends = words[: 2 * lanes].astype(np.uint32)
        self._states = ends[::2] << np.uint32(16) | ends[1::2]
        if self._states.min() < START:
            raise InputError("a state of the coded stream is below 65536")
        self._words = words
        self.at = 2 * lanes  # words read so far

    def bits(self, ones: NDArray[np.uint16], truth: Bits | None = None) -> Bits:
        """See `Coder`.

        Raises:
            InputError: the words end too early.
        """
        assert truth is None
        lanes, p = len(self._states), ones.astype(np.uint32)
        if lanes == 1:
            return self._bits_of_one_lane(p)
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
        frequency = frequencies.reshape(-1).astype(np.uint32)
        start = (np.cumsum(frequencies, axis=1) - frequencies).reshape(-1).astype(np.uint32)
        owner = np.repeat(np.arange(len(frequency), dtype=np.uint32), frequency)  # of each of the 2^14 of each context
        row = (context << RANK).astype(np.uint32)
        lanes = len(self._states)
        cells = np.empty(len(context), np.int64)
        if lanes == 1:
            cells[:] = self._ranks_of_one_lane(row, owner, frequency, start)
            cells -= context * frequencies.shape[1]
            return cells
        for begin in range(0, len(context), lanes):
            first = row[begin : begin + lanes]
            x = self._states[: len(first)]
            slot = x & _LOW_OF_RANK
            cell = owner[first + slot]
            cells[begin : begin + lanes] = cell
            x >>= np.uint32(RANK)
            x *= frequency[cell]
            x += slot - start[cell]
            self._refill(x)
        cells -= context * frequencies.shape[1]
        return cells

    def _bits_of_one_lane(self, ones: NDArray[np.uint32]) -> Bits:
        """`bits` in plain integers, which NumPy is slower than where there are few lanes."""
        x, out = int(self._states[0]), bytearray(len(ones))
        words, at = self._words.data, self.at
        for begin in range(0, len(ones), PART):  # a list takes far more memory than an array
            for i, p in enumerate(ones[begin : begin + PART].tolist(), begin):
                slot = x & 0xFFFF
                if slot < p:
                    out[i] = 1
                    x = p * (x >> 16) + slot
                else:
                    x -= p * ((x >> 16) + 1)
                if x < START:
                    if at == len(words):
                        raise InputError("the coded stream ends too early")
                    x = x << 16 | words[at]
                    at += 1
        self._states[0], self.at = x, at
        return np.frombuffer(out, np.bool_)

    def _ranks_of_one_lane(
        self,
        row: NDArray[np.uint32],
        owner: NDArray[np.uint32],
        frequency: NDArray[np.uint32],
        start: NDArray[np.uint32],
    ) -> NDArray[np.int64]:
        """Cells (n,) of `ranks`, in plain integers."""
        x, cells = int(self._states[0]), np.empty(len(row), np.int64)
        words, at = self._words.data, self.at
        owners, frequencies, starts = owner.data, frequency.tolist(), start.tolist()
        for begin in range(0, len(row), PART):
            found = []
            for first in row[begin : begin + PART].tolist():
                slot = x & (1 << RANK) - 1
                cell = owners[first + slot]
                found.append(cell)
                x = frequencies[cell] * (x >> RANK) + slot - starts[cell]
                if x < START:
                    if at == len(words):
                        raise InputError("the coded stream ends too early")
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
        """Check that every word was used and every state is where the encoder started.

        Raises:
            InputError: it is not so.
        """
        if self.at != len(self._words) or (self._states != START).any():
            raise InputError("the coded stream does not end where its symbols end")


_WORD, _LOW, _LOW_OF_RANK = np.uint32(16), np.uint32(0xFFFF), np.uint32((1 << RANK) - 1)
