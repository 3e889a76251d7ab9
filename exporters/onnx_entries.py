"""The kept entries of many tensors in one stream of symbols: gaps between them, codes of their values, and codebooks.

Codes are ranks by how often a value comes up in its tensor, and codebooks are stored as they are, in that order. Or,
where that takes fewer bytes:
- for many values, codes are ranks by magnitude, for weights nearly the same, and the last run of the stream has the
  codebooks, as differences of ordered numbers, which `DecodeCodebooks` of `onnx_functions` makes values of;
- for few values, whose codes take fractions of a bit, those of all tensors one after the other are taken two by two,
  and the last run of the stream has ranks of these pairs by how often they come up.
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

    stream:    the skips of each factor, then the codes of each, then the steps of the codebooks where they have jumps;
               where there are pairs, the skips and then the ranks of the pairs
    kept:      how many entries each factor has
    codebooks: the values (K_i,) of each factor in the order of its codes
    jumps:     int32 (2, j), the steps that are no symbols: which of them, and how long; None where codebooks are
               stored as they are
    pairs:     int32 (p, 2), the two codes of each rank; None where codes are symbols
    """

    stream: Symbols
    kept: Sequence[int]
    codebooks: Sequence[Floats]
    jumps: NDArray[np.int32] | None = None
    pairs: NDArray[np.int32] | None = None

    @classmethod
    def of(cls, factors: Sequence[SparseTensor]) -> "Entries":
        """In the fewest bytes."""
        gaps = [skips(factor) for factor in factors]
        kept = [factor.kept for factor in factors]
        ranked = [_ranked(factor, -_counts(factor)) for factor in factors]
        codes, codebooks = [codes for codes, _ in ranked], [codebook for _, codebook in ranked]
        found = [cls(Symbols.of([*gaps, *codes]), kept, codebooks)]
        if max(len(codebook) for codebook in codebooks) <= MOST_PAIRED:
            ranks, pairs = _paired(np.concatenate(codes))
            found.append(cls(Symbols.of([*gaps, ranks]), kept, codebooks, pairs=pairs))
        values = np.concatenate(codebooks)
        (function,) = with_callees(["DecodeCodebooks"])
        if fits_half(values) and 2 * len(values) > function.ByteSize():
            ranked = [_ranked(factor, keys(_codebook(factor))) for factor in factors]
            codes, codebooks = [codes for codes, _ in ranked], [codebook for _, codebook in ranked]
            steps = np.diff(keys(np.concatenate(codebooks)), prepend=0) - 1
            far = (steps < 0) | (steps >= LARGEST)
            jumps = np.stack([np.flatnonzero(far), steps[far]]).astype(np.int32)
            found.append(cls(Symbols.of([*gaps, *codes, np.where(far, 0, steps)]), kept, codebooks, jumps))
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
            bounds = (np.array([end]) for end in self._bounds_of_pairs)
            ranks = graph.node("Slice", symbols, *map(graph.constant, bounds))
            two = graph.node("Gather", graph.constant(self.pairs), ranks)
            symbols = graph.node("Concat", symbols, graph.node("Reshape", two, graph.constant(np.array([-1]))), axis=0)
        return symbols, graph.constant(narrowed(values))

    def starts(self) -> list[tuple[int, int]]:
        """Where the skips and the codes of each factor begin among what `provide` gives."""
        starts, n = self.stream.starts(), len(self.kept)
        if self.pairs is None:
            return list(zip(starts[:n], starts[n : 2 * n], strict=True))
        before = np.cumsum([self.stream.number, *self.kept[:-1]]).tolist()
        return list(zip(starts[:n], before, strict=True))

    @property
    def functions(self) -> set[str]:
        """The functions that `provide` calls."""
        return {"DecodeSymbols"} | ({"DecodeCodebooks"} if self.jumps is not None else set())

    def shares(self) -> list[float]:
        """What each factor takes of the stream and of the codebooks, in bytes."""
        bits = self.stream.bits()
        n, sizes = len(self.codebooks), np.array([len(codebook) for codebook in self.codebooks])
        codes = bits[n : 2 * n]
        values: list[float] = [narrowed(codebook).nbytes for codebook in self.codebooks]
        if self.pairs is not None:
            codes = list(bits[-1] * np.array(self.kept) / sum(self.kept))
        if self.jumps is not None:
            values = list((bits[-1] / 8 + self.jumps.nbytes) * sizes / sizes.sum())
        return [(bits[i] + codes[i]) / 8 + values[i] for i in range(n)]

    @property
    def _bounds_of_pairs(self) -> tuple[int, int]:
        start = self.stream.starts()[-1]
        return start, start + len(self.stream.runs[-1])

    def _size(self) -> int:
        graph = GraphBuilder()
        self.provide(graph)
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


def _paired(codes: Ints) -> tuple[Ints, NDArray[np.int32]]:
    """Ranks (⌈k / 2⌉,) of the pairs of codes (k,) by how often they come up, and the pairs (p, 2) in this order."""
    pairs, which, counts = np.unique(
        np.append(codes, np.zeros(len(codes) % 2, np.int64)).reshape(-1, 2),
        axis=0,
        return_inverse=True,
        return_counts=True,
    )
    order = np.argsort(-counts, kind="stable")
    ranks = np.empty_like(order)
    ranks[order] = np.arange(len(order))
    return ranks[which.reshape(-1)], pairs[order].astype(np.int32)


def _counts(factor: SparseTensor) -> Ints:
    """How often each value comes up, (K,)."""
    return np.bincount(_codes(factor), minlength=len(_codebook(factor)))


def _codes(factor: SparseTensor) -> NDArray[np.uint8]:
    assert factor.codes is not None  # entries are in a stream only where they have some
    return factor.codes


def _codebook(factor: SparseTensor) -> Floats:
    assert factor.codebook is not None
    return factor.codebook
