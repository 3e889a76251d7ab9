"""The kept entries of many tensors in one stream of symbols: gaps between them, codes of their values, and codebooks.

Codes are ranks by how often a value comes up in its tensor, and codebooks are stored as they are, in that order. Or,
where that takes fewer bytes, codes are ranks by magnitude, for weights nearly the same, and the last run of the stream
has the codebooks, as differences of ordered numbers, which `DecodeCodebooks` of `onnx_functions` makes values of.
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


@dataclass(frozen=True)
class Entries:
    """Entries of quantised factors.

    stream:    the skips of each factor, then the codes of each, then the steps of the codebooks where they have jumps
    codebooks: the values (K_i,) of each factor in the order of its codes
    jumps:     int32 (2, j), the steps that are no symbols: which of them, and how long; None where codebooks are
               stored as they are
    """

    stream: Symbols
    codebooks: Sequence[Floats]
    jumps: NDArray[np.int32] | None

    @classmethod
    def of(cls, factors: Sequence[SparseTensor]) -> "Entries":
        """In the fewest bytes."""
        gaps = [skips(factor) for factor in factors]
        ranked = [_ranked(factor, -_counts(factor)) for factor in factors]
        plain = cls(Symbols.of([*gaps, *(codes for codes, _ in ranked)]), [codebook for _, codebook in ranked], None)
        values = np.concatenate(plain.codebooks)
        (function,) = with_callees(["DecodeCodebooks"])
        if not fits_half(values) or 2 * len(values) <= function.ByteSize():
            return plain
        ranked = [_ranked(factor, keys(_codebook(factor))) for factor in factors]
        codebooks = [codebook for _, codebook in ranked]
        steps = np.diff(keys(np.concatenate(codebooks)), prepend=0) - 1
        far = (steps < 0) | (steps >= LARGEST)
        jumps = np.stack([np.flatnonzero(far), steps[far]]).astype(np.int32)
        stream = Symbols.of([*gaps, *(codes for codes, _ in ranked), np.where(far, 0, steps)])
        return min(plain, cls(stream, codebooks, jumps), key=cls._size)

    def provide(self, graph: GraphBuilder) -> tuple[str, str]:
        """The names of the symbols and of the values of all codebooks, one codebook after the other."""
        stream = self.stream
        symbols = graph.call("DecodeSymbols", *map(graph.constant, stream.parts()), number=[stream.number])
        values = np.concatenate(self.codebooks)
        if self.jumps is None:
            return symbols, graph.constant(narrowed(values))
        start = stream.starts()[-1]
        jumps = map(graph.constant, self.jumps)
        stop = start + len(values)
        return symbols, graph.call("DecodeCodebooks", symbols, *jumps, start=[start], stop=[stop])

    @property
    def functions(self) -> set[str]:
        """The functions that `provide` calls."""
        return {"DecodeSymbols"} | ({"DecodeCodebooks"} if self.jumps is not None else set())

    def shares(self) -> list[float]:
        """What each factor takes of the stream and of the codebooks, in bytes."""
        bits = self.stream.bits()
        n, sizes = len(self.codebooks), np.array([len(codebook) for codebook in self.codebooks])
        if self.jumps is None:
            values = [narrowed(codebook).nbytes for codebook in self.codebooks]
        else:
            values = list((bits[-1] / 8 + self.jumps.nbytes) * sizes / sizes.sum())
        return [(bits[i] + bits[n + i]) / 8 + values[i] for i in range(n)]

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


def _counts(factor: SparseTensor) -> Ints:
    """How often each value comes up, (K,)."""
    return np.bincount(_codes(factor), minlength=len(_codebook(factor)))


def _codes(factor: SparseTensor) -> NDArray[np.uint8]:
    assert factor.codes is not None  # entries are in a stream only where they have some
    return factor.codes


def _codebook(factor: SparseTensor) -> Floats:
    assert factor.codebook is not None
    return factor.codebook
