"""Sub-graphs of standard operators that decode one sparse factor; onnxruntime folds them when it loads the file.

Each factor takes the smallest of four encodings: its values as they are, a code for every entry, a bit for every entry
and the kept values, or the distances between the kept entries and their values. Indices are int32 and fields uint8 as
long as they can be, for onnxruntime keeps all that it folds until it is done: 15 bytes per entry for codes, 24 for the
bitmask, 12 for gaps; and 20 to 45 per kept entry for gaps and values.
"""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from onnx import TensorProto

from atmc_tool.compressed import SparseTensor
from exporters.onnx_builder import GraphBuilder

Decoder = Callable[[GraphBuilder, SparseTensor, str], str]

_FIELD_WIDTHS = (1, 2, 3, 4, 5, 6, 7, 8, 16)
# About how many bytes of nodes it takes to unpack fields of this width and to bring in entries without a value.
_UNPACK_BYTES = {1: 130, 2: 130, 3: 330, 4: 0, 5: 250, 6: 250, 7: 450, 8: 0, 16: 0}
_ESCAPE_BYTES = 210


def decode(graph: GraphBuilder, factor: SparseTensor, name: str) -> str:
    """Add the smallest decoder of `factor`, which has kept entries; its value `name` is float32 (m, n)."""

    def size(decoder: Decoder) -> int:
        alone = GraphBuilder()
        decoder(alone, factor, name)
        return alone.size()

    candidates: list[Decoder] = [decode_gaps, decode_bitmask, decode_values]
    if dense_codes_fit(factor):
        candidates.append(decode_codes)
    return min(candidates, key=size)(graph, factor, name)


def decode_values(graph: GraphBuilder, factor: SparseTensor, name: str) -> str:
    """All m·n values, as they are."""
    return graph.constant(factor.dense(), name)


def dense_codes_fit(factor: SparseTensor) -> bool:
    """Whether the codebook, with zero where there are zeros, has at most 256 values."""
    has_zero = factor.kept < factor.shape[0] * factor.shape[1]
    return factor.codebook is not None and len(factor.codebook) + has_zero <= 256


def decode_codes(graph: GraphBuilder, factor: SparseTensor, name: str) -> str:
    """A code for each of the m·n entries; code 0 is zero where there are zeros.

    Raises:
        ValueError: not `dense_codes_fit`.
    """
    if factor.codebook is None or factor.codes is None or not dense_codes_fit(factor):
        raise ValueError("codes for every entry need a codebook of at most 256 values, zero among them")
    n_entries = factor.shape[0] * factor.shape[1]
    zero = np.zeros(int(factor.kept < n_entries), np.float32)
    codes = np.zeros(n_entries, np.uint8)
    codes[factor.positions] = factor.codes + np.uint8(len(zero))
    codebook = np.concatenate([zero, factor.codebook])
    indices = _unpack_codes(graph, codes, len(codebook))
    shaped = graph.node("Reshape", indices, graph.constant(np.array(factor.shape, np.int64)))
    return graph.node("Gather", graph.constant(codebook), shaped, name=name)


def decode_bitmask(graph: GraphBuilder, factor: SparseTensor, name: str) -> str:
    """A bit for each of the m·n entries, whether it is kept, and the kept values in order."""
    kept = np.zeros(factor.shape[0] * factor.shape[1], np.uint8)
    kept[factor.positions] = 1
    flags = graph.node("Cast", _unpack_bytes(graph, kept, 1), to=TensorProto.INT32)
    return _reshape(graph, _spread(graph, flags, _kept_values(graph, factor)), factor, name)


def decode_gaps(graph: GraphBuilder, factor: SparseTensor, name: str) -> str:
    """The distance of each kept entry from the one before, in fields of the cheapest width, and the kept values.

    Where a distance does not fit its field, each distance is counted from 1, and a field of 0 means the largest field
    and no entry there. So every step goes ahead, and no position occurs twice.
    """
    axis = graph.constant(np.array(0, np.int64))
    width, escaped = _gap_width(factor.positions)
    values = _kept_values(graph, factor)
    if not escaped:
        steps = unpack(graph, np.diff(factor.positions, prepend=0), width)
        positions = graph.node("CumSum", steps, axis)
    else:
        largest = 2**width - 1
        fields = unpack(graph, _escaped_gaps(factor.positions, largest), width)
        is_entry = graph.node("Cast", fields, to=TensorProto.BOOL)
        steps = graph.node("Where", is_entry, fields, graph.constant(np.array(largest, np.int32)))
        ahead = graph.node("CumSum", steps, axis)
        positions = graph.node("Sub", ahead, graph.constant(np.array(1, np.int32)))
        values = _spread(graph, graph.node("Cast", is_entry, to=TensorProto.INT32), values)
    zeros = graph.zeros((factor.shape[0] * factor.shape[1],))
    return _reshape(graph, graph.node("ScatterElements", zeros, positions, values), factor, name)


def unpack(graph: GraphBuilder, fields: NDArray[np.integer], width: int) -> str:
    """The int32 value (n,) of n fields below 2^width, stored in n·width bits, each part up to whole bytes."""
    if width > 8:
        return graph.node("Cast", graph.constant(fields.astype(np.uint16)), to=TensorProto.INT32)
    small = fields.astype(np.uint8)
    if width == 4:
        return graph.node("Cast", graph.nibbles(small), to=TensorProto.INT32)
    parts: list[str] = []
    for part in (part for part in (8, 4, 2, 1) if width & part):
        offset = width & (part - 1)  # of the part in the field; widths are sums of powers of two
        value = _unpack_bytes(graph, small >> np.uint8(offset) & np.uint8(2**part - 1), part)
        shift = graph.constant(np.array(offset, np.uint8)) if offset else ""
        parts.append(graph.node("BitShift", value, shift, direction="LEFT") if offset else value)
    field = parts[0]
    for value in parts[1:]:
        field = graph.node("BitwiseOr", field, value)
    return graph.node("Cast", field, to=TensorProto.INT32)


def _unpack_bytes(graph: GraphBuilder, fields: NDArray[np.uint8], width: int) -> str:
    """The uint8 value (n,) of n fields of 1, 2, 4 or 8 bits, the first in the lowest bits of a byte."""
    if width == 8:
        return graph.constant(fields)
    if width == 4:
        return graph.node("Cast", graph.nibbles(fields), to=TensorProto.UINT8)
    shifts = np.arange(0, 8, width, dtype=np.uint8)
    padded = np.append(fields, np.zeros(-len(fields) % len(shifts), np.uint8))
    packed = np.bitwise_or.reduce(padded.reshape(-1, len(shifts)) << shifts, axis=1, keepdims=True)
    shifted = graph.node("BitShift", graph.constant(packed), graph.constant(shifts), direction="RIGHT")
    field = graph.node("BitwiseAnd", shifted, graph.constant(np.array(2**width - 1, np.uint8)))
    flat = graph.node("Reshape", field, graph.constant(np.array([-1])))
    if len(padded) == len(fields):
        return flat
    return graph.node("Slice", flat, graph.constant(np.array([0])), graph.constant(np.array([len(fields)])))


def _kept_values(graph: GraphBuilder, factor: SparseTensor) -> str:
    """The float32 value (k,) of the kept entries: by codes, or as they are where that is smaller."""
    if factor.codebook is None or factor.codes is None:
        return graph.constant(factor.values)
    coded = 4 * len(factor.codebook) + min(_stream_bytes(factor.kept, w) for w in range(factor.bits, 9)) + 60
    if 4 * factor.kept <= coded:
        return graph.constant(factor.values)
    return graph.node(
        "Gather", graph.constant(factor.codebook), _unpack_codes(graph, factor.codes, len(factor.codebook))
    )


def _unpack_codes(graph: GraphBuilder, codes: NDArray[np.uint8], n_codes: int) -> str:
    bits = max(1, (n_codes - 1).bit_length())
    return unpack(graph, codes, min(range(bits, 9), key=lambda width: _stream_bytes(len(codes), width)))


def _spread(graph: GraphBuilder, flags: str, values: str) -> str:
    """The i-th value where the i-th 1 of the int32 `flags` (n,) is, zero where they are 0: float32 (n,)."""
    count = graph.node("CumSum", flags, graph.constant(np.array(0, np.int64)))
    index = graph.node("Mul", count, flags)
    zero_first = graph.node("Concat", graph.constant(np.zeros(1, np.float32)), values, axis=0)
    return graph.node("Gather", zero_first, index)


def _reshape(graph: GraphBuilder, flat: str, factor: SparseTensor, name: str) -> str:
    return graph.node("Reshape", flat, graph.constant(np.array(factor.shape, np.int64)), name=name)


def _gap_width(positions: NDArray[np.int64]) -> tuple[int, bool]:
    """The width of the fields that makes the stream of gaps smallest, and whether some gap does not fit it."""
    plain = np.diff(positions, prepend=0).max(initial=0)
    gaps = np.diff(positions, prepend=-1)

    def size(width: int) -> int:
        if plain < 2**width:
            return _stream_bytes(len(gaps), width)
        escapes = int(np.sum((gaps - 1) // (2**width - 1)))
        return _stream_bytes(len(gaps) + escapes, width) + _ESCAPE_BYTES

    width = min(_FIELD_WIDTHS, key=size)
    return width, bool(plain >= 2**width)


def _stream_bytes(n_fields: int, width: int) -> int:
    return -(-n_fields * width // 8) + _UNPACK_BYTES[width]


def _escaped_gaps(positions: NDArray[np.int64], largest: int) -> NDArray[np.int64]:
    """The gaps, counted from 1, in fields of 1 … largest, each after as many fields of 0 as `largest` goes into it."""
    gaps = np.diff(positions, prepend=-1)
    escapes = (gaps - 1) // largest
    fields = np.zeros(len(gaps) + int(escapes.sum()), np.int64)
    fields[np.cumsum(escapes) + np.arange(len(gaps))] = gaps - escapes * largest
    return fields
