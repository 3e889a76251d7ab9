"""The kept entries of many tensors in one stream of symbols: gaps between them, codes of their values, and codebooks.

Codes are ranks by how often a value comes up in its tensor, and codebooks are stored as they are, in that order. Or,
where that takes fewer bytes:
- for many values, codes are ranks by magnitude, for weights nearly the same, and the last run of the stream has the
  codebooks, as differences of ordered numbers, which `DecodeCodebooks` of `onnx_functions` makes values of;
- for few values, whose codes need fractions of a bit, codes are taken two by two, and the stream has ranks of these
  pairs by how often they come up, which a table makes codes of.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from atmc_tool.compressed import SparseTensor
from exporters.codebook_fields import fits_half, narrowed
from exporters.onnx_builder import GraphBuilder
from exporters.onnx_functions import with_callees
from exporters.onnx_symbols import LARGEST, Symbols

Ints = NDArray[np.int64]
Floats = NDArray[np.float32]

MOST_PAIRED = 8
"""Values of a tensor, at most, for pairs of codes."""


@dataclass(frozen=True)
class Entries:
    """Entries of quantised factors.

    stream:    the skips of each factor, then the codes of each, or ranks of its pairs of codes, then the steps of the
               codebooks where they have jumps
    codebooks: the values (K_i,) of each factor in the order of its codes
    jumps:     int32 (2, j), the steps that are no symbols: which of them, and how long; None where codebooks are
               stored as they are
    pairs:     int32 (p, 2), the two codes of each rank; None where codes are symbols
    """

    stream: Symbols
    codebooks: Sequence[Floats]
    jumps: NDArray[np.int32] | None = None
    pairs: NDArray[np.int32] | None = None

    @classmethod
    def of(cls, factors: Sequence[SparseTensor]) -> "Entries":
        """In the fewest bytes."""
        gaps = [skips(factor) for factor in factors]
        ranked = [_ranked(factor, -_counts(factor)) for factor in factors]
        codes, codebooks = [codes for codes, _ in ranked], [codebook for _, codebook in ranked]
        found = [cls(Symbols.of([*gaps, *codes]), codebooks)]
        if max(len(codebook) for codebook in codebooks) <= MOST_PAIRED:
            ranks, pairs = _paired(codes)
            found.append(cls(Symbols.of(gaps, ranks), codebooks, pairs=pairs))
        values = np.concatenate(codebooks)
        (function,) = with_callees(["DecodeCodebooks"])
        if fits_half(values) and 2 * len(values) > function.ByteSize():
            ranked = [_ranked(factor, keys(_codebook(factor))) for factor in factors]
            codes, codebooks = [codes for codes, _ in ranked], [codebook for _, codebook in ranked]
            steps = np.diff(keys(np.concatenate(codebooks)), prepend=0) - 1
            far = (steps < 0) | (steps >= LARGEST)
            jumps = np.stack([np.flatnonzero(far), steps[far]]).astype(np.int32)
            found.append(cls(Symbols.of([*gaps, *codes, np.where(far, 0, steps)]), codebooks, jumps))
        return min(found, key=cls._size)

    def provide(self, graph: GraphBuilder) -> tuple[str, str]:
        """The names of the symbols, after them the codes that are in pairs, and of the values of all codebooks."""
        stream = self.stream
        symbols = graph.call("DecodeSymbols", *map(graph.constant, stream.parts()), number=[stream.number])
        values = np.concatenate(self.codebooks)
        if self.jumps is not None:
            start = stream.starts()[-1]
            jumps = map(graph.constant, self.jumps)
            return symbols, graph.call("DecodeCodebooks", symbols, *jumps, start=[start], stop=[start + len(values)])
        if self.pairs is not None:
            bounds = (np.array([bound]) for bound in self._ranks)
            ranks = graph.node("Slice", symbols, *map(graph.constant, bounds))
            two = graph.node("Gather", graph.constant(self.pairs), ranks)
            symbols = graph.node("Concat", symbols, graph.node("Reshape", two, graph.constant(np.array([-1]))), axis=0)
        return symbols, graph.constant(narrowed(values))

    def bounds(self) -> list[tuple[int, int, int, int]]:
        """For each factor: where its skips begin among what `provide` gives, how many, where its codes, its values."""
        starts, n = self.stream.starts(), len(self.codebooks)
        gaps, codes = starts[:n], starts[n : 2 * n]
        if self.pairs is not None:
            codes = [self.stream.number + 2 * (start - self._ranks[0]) for start in codes]
        kept = [len(run) for run in self.stream.runs[:n]]
        values = np.cumsum([0, *map(len, self.codebooks[:-1])]).tolist()
        return list(zip(gaps, kept, codes, values, strict=True))

    @property
    def functions(self) -> set[str]:
        """The functions that `provide` calls."""
        return {"DecodeSymbols"} | ({"DecodeCodebooks"} if self.jumps is not None else set())

    def shares(self) -> list[float]:
        """What each factor takes of the stream and of the codebooks, in bytes."""
        bits = self.stream.bits()
        n, sizes = len(self.codebooks), np.array([len(codebook) for codebook in self.codebooks])
        values: list[float] = [narrowed(codebook).nbytes for codebook in self.codebooks]
        if self.jumps is not None:
            values = list((bits[-1] / 8 + self.jumps.nbytes) * sizes / sizes.sum())
        if self.pairs is not None:
            values = [each + self.pairs.size / n for each in values]
        return [(bits[i] + bits[n + i]) / 8 + values[i] for i in range(n)]

    @property
    def _ranks(self) -> tuple[int, int]:
        """Where the ranks of pairs begin and end in the stream, which has nothing but fillers between them."""
        n = len(self.codebooks)
        starts = self.stream.starts()[n:]
        return min(starts), max(start + len(run) for start, run in zip(starts, self.stream.runs[n:], strict=True))

    def _size(self) -> int:
        """Bytes of all but what is the same for the same factors."""
        graph = GraphBuilder()
        self.provide(graph)
        for bounds in self.bounds():
            graph.node("Decode", at=bounds)
        functions: int = sum(function.ByteSize() for function in with_callees(graph.functions))
        return graph.size() + functions


def skips(factor: SparseTensor) -> Ints:
    """How many zeros are before each kept entry since the one before."""
    return np.diff(factor.positions, prepend=-1) - 1


def keys(values: Floats) -> Ints:
    """2 m + s for values of float16 (K,): the bits m of the magnitude, which grow with it, and the sign s."""
    bits = values.astype(np.float16).view(np.uint16).astype(np.int64)
    return (bits & 0x7FFF) << 1 | bits >> 15


def _ranked(factor: SparseTensor, places: Ints) -> tuple[Ints, Floats]:
    """Codes (k,) and the codebook, its values in the order of their `places` (K,)."""
    order = np.argsort(places, kind="stable")
    ranks = np.empty_like(order)
    ranks[order] = np.arange(len(order))
    return ranks[_codes(factor)], _codebook(factor)[order]


def _paired(codes: Sequence[Ints]) -> tuple[list[Ints], NDArray[np.int32]]:
    """Ranks (⌈k / 2⌉,) of the pairs of codes (k,), by how often they come up in all runs, and the pairs (p, 2)."""
    padded = [np.append(run, np.zeros(len(run) % 2, np.int64)).reshape(-1, 2) for run in codes]
    joined = np.concatenate(padded)
    pairs, which, counts = np.unique(joined, axis=0, return_inverse=True, return_counts=True)
    order = np.argsort(-counts, kind="stable")
    ranks = np.empty_like(order)
    ranks[order] = np.arange(len(order))
    ends = np.cumsum([len(run) for run in padded])
    return np.split(ranks[which.reshape(-1)], ends[:-1]), pairs[order].astype(np.int32)


def _counts(factor: SparseTensor) -> Ints:
    """How often each value comes up, (K,)."""
    return np.bincount(_codes(factor), minlength=len(_codebook(factor)))


def _codes(factor: SparseTensor) -> NDArray[np.uint8]:
    assert factor.codes is not None  # entries are in a stream only where they have some
    return factor.codes


def _codebook(factor: SparseTensor) -> Floats:
    assert factor.codebook is not None
    return factor.codebook
