"""Ways to store one sparse tensor in the exported file, and which of them makes the whole file smallest.

Each is one node of a local function (`onnx_functions`) and its initialisers: positions as a bit for every entry, as
bits for blocks and for the entries of those in use, as gaps in fields of the cheapest width, or as they are; or a code
for every entry. Kept values are codes of ⌈log2 K⌉ bits, or raw. Or all values as they are, without a function.

Or the entries of many tensors are in one stream (`onnx_entries`), of which each tensor's node takes its runs.
"""

import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray

from atmc_tool.compressed import SparseTensor
from exporters.codebook_fields import narrowed
from exporters.onnx_builder import GraphBuilder, pack
from exporters.onnx_entries import Entries, skips
from exporters.onnx_functions import with_callees
from exporters.onnx_symbols import LARGEST

_BLOCKS = (4, 8, 16, 32, 64)


@dataclass(frozen=True)
class Stored:
    """A tensor to decode: its entries, at least one of them kept, and the shape that the graph takes it in."""

    factor: SparseTensor
    shape: tuple[int, ...]


Decoder = Callable[[GraphBuilder, Stored, str], None]

TOGETHER = "Decode"
"""The decoder of tensors whose entries are in one stream."""

BYTES_OF_ENTRY = 250
"""What decoding an entry of the stream takes, measured; a stream is for little networks, or for very sparse ones."""

LITTLE = 2**24


def decode(graph: GraphBuilder, tensors: Mapping[str, Stored]) -> None:
    """Provide the tensors as values of their names, in the fewest bytes, functions that they need among them."""
    kinds = choose(tensors)
    together = {name: tensors[name] for name, kind in kinds.items() if kind == TOGETHER}
    decode_entries(graph, together)
    for name, kind in kinds.items():
        if kind != TOGETHER:
            DECODERS[kind](graph, tensors[name], name)


def choose(tensors: Mapping[str, Stored]) -> dict[str, str]:
    """Name → kind of decoder such that all of them with the functions that they need take the fewest bytes.

    A function costs its bytes once, however many tensors use it, so every set of functions is tried.
    """
    if not tensors:
        return {}
    kinds = [*DECODERS, TOGETHER]
    sizes = np.array([[_size(kind, tensor) for kind in DECODERS] for tensor in tensors.values()])
    shares, functions = _shares(list(tensors.values()))
    sizes = np.column_stack([sizes, shares])
    needs = [*({kind} for kind in DECODERS), {TOGETHER, *functions}]
    useful = [i for i in range(1, len(kinds)) if np.isfinite(sizes[:, i]).any()]
    calls = {i: {function.name: function.ByteSize() for function in with_callees(needs[i])} for i in useful}

    def total(selected: tuple[int, ...]) -> float:
        shared: dict[str, int] = {}
        for i in selected:
            shared |= calls[i]
        return float(sizes[:, [0, *selected]].min(axis=1).sum()) + sum(shared.values())

    subsets = (subset for n in range(len(useful) + 1) for subset in itertools.combinations(useful, n))
    allowed = np.array([0, *min(subsets, key=total)])
    picked = allowed[sizes[:, allowed].argmin(axis=1)]
    return {name: kinds[i] for name, i in zip(tensors, picked, strict=True)}


def fits_memory(tensors: Sequence[Stored]) -> bool:
    """Whether one stream of the entries can be decoded in as much memory as the dense tensors take, or in little."""
    needed = sum(BYTES_OF_ENTRY * tensor.factor.kept for tensor in tensors)
    return needed <= max(LITTLE, sum(4 * math.prod(tensor.shape) for tensor in tensors))


def decode_values(graph: GraphBuilder, tensor: Stored, name: str) -> None:
    """All values, as they are."""
    graph.constant(tensor.factor.dense().reshape(tensor.shape), name)


def decode_codes(graph: GraphBuilder, tensor: Stored, name: str) -> None:
    """A code of 1, 2, 4 or 8 bits for every entry; code 0 is zero where there are zeros."""
    codes, codebook = _dense_codes(tensor.factor)
    width = next(width for width in (1, 2, 4, 8) if width >= _bits(len(codebook)))
    shifts = np.arange(0, 8, width, dtype=np.uint8)[:, None]
    padded = np.append(codes, np.zeros(-len(codes) % len(shifts), np.uint8)).reshape(len(shifts), -1)
    packed = np.bitwise_or.reduce(padded << shifts, axis=0)
    parts = (packed, shifts, np.array(2**width - 1, np.uint8))
    values = _codebook(graph, codebook)
    graph.call("DecodeCodes", *map(graph.constant, parts), values, name=name, shape=tensor.shape)


def decode_packed_codes(graph: GraphBuilder, tensor: Stored, name: str) -> None:
    """A code for every entry, of as many bits as it takes; code 0 is zero where there are zeros."""
    codes, codebook = _dense_codes(tensor.factor)
    packed = graph.constant(pack(codes, _bits(len(codebook))))
    graph.call("DecodePackedCodes", packed, _codebook(graph, codebook), name=name, shape=tensor.shape)


def decode_positions(graph: GraphBuilder, tensor: Stored, name: str) -> None:
    """The positions of the kept entries and their values."""
    factor = tensor.factor
    positions = factor.positions.astype(np.min_scalar_type(factor.positions[-1]))
    graph.call(
        "DecodePositions", graph.constant(positions), graph.constant(factor.values), name=name, shape=tensor.shape
    )


def decode_gaps(graph: GraphBuilder, tensor: Stored, name: str, *, raw: bool = False) -> None:
    """The distance of each kept entry from the one before, counted from 1, in fields of the cheapest width; the values.

    A field of 0 is a step of the largest field without an entry there, so every step goes ahead.
    """
    width = min(range(1, 9), key=lambda width: width * _n_fields(tensor.factor.positions, 2**width - 1))
    longest = 2**width - 1
    fields = _escaped_gaps(tensor.factor.positions, longest)
    steps = (graph.constant(pack(fields, width)), graph.constant(np.array(longest, np.int32)))
    values = _kept_values(graph, tensor.factor, raw)
    graph.call("DecodeGaps" + "Raw" * raw, *steps, *values, name=name, shape=tensor.shape, fields=[len(fields)])


def decode_bitmask(graph: GraphBuilder, tensor: Stored, name: str, *, raw: bool = False) -> None:
    """A bit for every entry, whether it is kept, and the kept values in order."""
    parts = (graph.constant(pack(_mask(tensor.factor), 1)), *_kept_values(graph, tensor.factor, raw))
    graph.call("DecodeBitmask" + "Raw" * raw, *parts, name=name, shape=tensor.shape)


def decode_blocks(graph: GraphBuilder, tensor: Stored, name: str, *, raw: bool = False) -> None:
    """A bit for every block of entries, a bit for every entry of the blocks in use, and the kept values in order."""
    positions = tensor.factor.positions

    def size(split: tuple[Sequence[int], Sequence[int]]) -> int:
        grid, block = (math.prod(dims) for dims in split)
        used = 1 + np.count_nonzero(np.diff(positions // block))  # they increase
        return grid + block * int(used)

    grid, block = min(_splits(tensor.shape), key=size)
    mask = _mask(tensor.factor).reshape(math.prod(grid), math.prod(block))
    used: NDArray[np.uint8] = mask.max(axis=1)
    inside = np.concatenate([np.zeros_like(mask[:1]), mask[used > 0]])
    parts = (graph.constant(pack(used, 1)), graph.constant(pack(inside.reshape(-1), 1)))
    shaped = (*grid, *block) == tensor.shape
    value = graph.call(
        "DecodeBlocks" + "Raw" * raw,
        *parts,
        *_kept_values(graph, tensor.factor, raw),
        name=name if shaped else "",
        grid=grid,
        shape=[len(inside), *block],
    )
    if not shaped:
        graph.node("Reshape", value, graph.constant(np.array(tensor.shape, np.int64)), name=name)


def decode_entries(graph: GraphBuilder, tensors: Mapping[str, Stored]) -> None:
    """Gaps between the kept entries and codes of their values, those of all tensors in one stream of symbols."""
    if not tensors:
        return
    entries = Entries.of([tensor.factor for tensor in tensors.values()])
    symbols, values = entries.provide(graph)
    for (name, tensor), bounds in zip(tensors.items(), entries.bounds(), strict=True):
        graph.call(TOGETHER, symbols, values, _shape(graph, tensor), name=name, at=bounds)


# The name of the function → what makes its node; the first needs no function.
DECODERS: dict[str, Decoder] = {
    "": decode_values,
    "DecodeCodes": decode_codes,
    "DecodePackedCodes": decode_packed_codes,
    "DecodePositions": decode_positions,
    "DecodeGaps": decode_gaps,
    "DecodeGapsRaw": partial(decode_gaps, raw=True),
    "DecodeBitmask": decode_bitmask,
    "DecodeBitmaskRaw": partial(decode_bitmask, raw=True),
    "DecodeBlocks": decode_blocks,
    "DecodeBlocksRaw": partial(decode_blocks, raw=True),
}
_RAW = ("", "DecodePositions", "DecodeGapsRaw", "DecodeBitmaskRaw", "DecodeBlocksRaw")


def applies(kind: str, tensor: Stored) -> bool:
    """Whether the decoder can be used: codes need a codebook, those of every entry a place for zero, blocks a grid."""
    factor = tensor.factor
    if kind == TOGETHER:
        return factor.codebook is not None and int(skips(factor).max()) < LARGEST
    if kind.startswith("DecodeBlocks") and not any(_splits(tensor.shape)):
        return False
    if factor.codebook is None:
        return kind in _RAW
    n_codes = len(factor.codebook) + (factor.kept < math.prod(factor.shape))
    return n_codes <= 256 or kind not in ("DecodeCodes", "DecodePackedCodes")


def _size(kind: str, tensor: Stored) -> float:
    """Bytes of the tensor's own nodes and initialisers; infinite where the decoder does not apply."""
    if not applies(kind, tensor):
        return math.inf
    alone = GraphBuilder()
    DECODERS[kind](alone, tensor, "W")
    return alone.size()


def _shares(tensors: Sequence[Stored]) -> tuple[NDArray[np.float64], set[str]]:
    """Bytes of each tensor's own node and of its part of one stream of them all; infinite where it can't be in one.

    And the functions that the stream takes.
    """
    shares = np.full(len(tensors), np.inf)
    able = [i for i, tensor in enumerate(tensors) if applies(TOGETHER, tensor)]
    if not able or not fits_memory([tensors[i] for i in able]):
        return shares, set()
    entries = Entries.of([tensors[i].factor for i in able])
    shapes = GraphBuilder()
    for i in able:
        _shape(shapes, tensors[i])
    for i, share in zip(able, entries.shares(), strict=True):
        alone = GraphBuilder()
        alone.call(TOGETHER, "0", "1", "2", name="W", at=[10**4] * 4)
        shares[i] = alone.size() + share + shapes.size() / len(able)
    return shares, entries.functions


def _kept_values(graph: GraphBuilder, factor: SparseTensor, raw: bool) -> tuple[str, ...]:
    """The names of what the look-up of kept values needs."""
    if raw:
        return (graph.constant(factor.values),)
    assert factor.codes is not None  # as `applies` says
    assert factor.codebook is not None
    return graph.constant(pack(factor.codes, _bits(len(factor.codebook)))), _codebook(graph, factor.codebook)


def _shape(graph: GraphBuilder, tensor: Stored) -> str:
    """The name of the tensor's shape, which those of the same share."""
    return graph.constant(np.array(tensor.shape, np.int64))


def _codebook(graph: GraphBuilder, values: NDArray[np.float32]) -> str:
    """The name of the codebook as float16 where that gives the same values, else as it is."""
    return graph.constant(narrowed(values))


def _dense_codes(factor: SparseTensor) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
    """A code for every entry, uint8 (m·n,), and the codebook that they index."""
    assert factor.codes is not None  # as `applies` says
    assert factor.codebook is not None
    zero = np.zeros(int(factor.kept < math.prod(factor.shape)), np.float32)
    codes = np.zeros(math.prod(factor.shape), np.uint8)
    codes[factor.positions] = factor.codes + np.uint8(len(zero))
    return codes, np.concatenate([zero, factor.codebook])


def _bits(n_codes: int) -> int:
    return max(1, (n_codes - 1).bit_length())


def _mask(factor: SparseTensor) -> NDArray[np.uint8]:
    mask: NDArray[np.uint8] = np.zeros(math.prod(factor.shape), np.uint8)
    mask[factor.positions] = 1
    return mask


def _splits(shape: tuple[int, ...]) -> Iterator[tuple[tuple[int, ...], tuple[int, ...]]]:
    """Ways to cut a tensor into a grid of blocks: at one of its dimensions, or rows into runs of the same length."""
    for axis in range(1, len(shape)):
        yield shape[:axis], shape[axis:]
    row = math.prod(shape[1:])
    for block in _BLOCKS:
        if row % block == 0 and row > block:
            yield (shape[0], row // block), (block,)


def _n_fields(positions: NDArray[np.int64], longest: int) -> int:
    gaps = np.diff(positions, prepend=-1)
    return len(gaps) + int(np.sum((gaps - 1) // longest))


def _escaped_gaps(positions: NDArray[np.int64], longest: int) -> NDArray[np.int64]:
    """The gaps, counted from 1, in fields of 1 … longest, each after as many fields of 0 as `longest` goes into it."""
    gaps = np.diff(positions, prepend=-1)
    escapes = (gaps - 1) // longest
    fields = np.zeros(len(gaps) + int(escapes.sum()), np.int64)
    fields[np.cumsum(escapes) + np.arange(len(gaps))] = gaps - escapes * longest
    return fields
