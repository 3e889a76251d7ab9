"""Numeric arrays of a MATLAB file of version 5 (format: MathWorks, "MAT-File Format", chapter 1).

SciPy has a reader too. It is not used, for one damaged byte can make it (1.17.1) end the whole process.
"""

import math
import struct
import zlib
from collections.abc import Container, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

HEADER = 128
MAX_VARIABLE_BYTES = 2**29  # SVHN's largest takes 225 MB
_HEAD = 1024  # unzipped bytes in which a variable's name is found
_MATRIX, _COMPRESSED = 14, 15
_TYPES = {1: "i1", 2: "u1", 3: "i2", 4: "u2", 5: "i4", 6: "u4", 7: "f4", 9: "f8", 12: "i8", 13: "u8"}
_COMPLEX = 0x800
_NUMERIC = range(6, 16)  # classes of arrays, from double to uint64


def read_variables(content: bytes, wanted: Container[str]) -> dict[str, NDArray[Any]]:
    """Name → array, of the type in which its values are stored, for those of `wanted` that are there.

    Raises:
        ValueError, struct.error, zlib.error: not such a file, damaged, no numeric array, or larger than 512 MiB.
    """
    order = {b"\x00\x01IM": "<", b"\x01\x00MI": ">"}.get(content[124:HEADER])
    if order is None:
        raise ValueError("no header of version 5")
    found: dict[str, NDArray[Any]] = {}
    for matrix in _matrices(memoryview(content)[HEADER:], order, wanted):
        name, kind, shape, rest = _described(matrix, order)
        if name in wanted:
            found[name] = _array(kind, shape, rest, order)
    return found


def _matrices(view: memoryview, order: str, wanted: Container[str]) -> Iterator[memoryview]:
    """The content of every variable; of those that are zipped, the `wanted` ones alone."""
    while view:
        kind, content, view = _element(view, order)
        if kind == _MATRIX:
            yield content
        elif kind == _COMPRESSED:
            stream = zlib.decompressobj()
            head = stream.decompress(content, _HEAD)
            kind, size = struct.unpack_from(f"{order}II", head)
            if kind != _MATRIX or size > MAX_VARIABLE_BYTES:
                raise ValueError(f"a variable of type {kind} and {size} bytes")
            if _described(memoryview(head)[8:], order)[0] not in wanted:
                continue
            missing = 8 + size - len(head)
            whole = head + (stream.decompress(stream.unconsumed_tail, missing) if missing > 0 else b"")
            if stream.decompress(stream.unconsumed_tail, 1) or not stream.eof or len(whole) != 8 + size:
                raise ValueError("a zipped variable is truncated or too long")
            yield memoryview(whole)[8:]


def _described(matrix: memoryview, order: str) -> tuple[str, int, tuple[int, ...], memoryview]:
    """Name, class, shape, and the elements that hold the values."""
    _, flags, rest = _element(matrix, order)
    _, dimensions, rest = _element(rest, order)
    _, name, rest = _element(rest, order)
    (bits,) = struct.unpack_from(f"{order}I", flags)
    shape = struct.unpack(f"{order}{len(dimensions) // 4}i", dimensions)
    kind = -1 if bits & _COMPLEX else bits & 0xFF
    return bytes(name).decode("latin1"), kind, shape, rest


def _array(kind: int, shape: tuple[int, ...], rest: memoryview, order: str) -> NDArray[Any]:
    if kind not in _NUMERIC:
        raise ValueError("not an array of real numbers")
    stored, content, _ = _element(rest, order)
    if stored not in _TYPES:
        raise ValueError(f"values of unknown type {stored}")
    dtype = np.dtype(order + _TYPES[stored])
    if min(shape, default=-1) < 0 or math.prod(shape) * dtype.itemsize != len(content):
        raise ValueError(f"{len(content)} bytes for an array {shape}")
    return np.frombuffer(content, dtype).reshape(shape, order="F")


def _element(view: memoryview, order: str) -> tuple[int, memoryview, memoryview]:
    """Type and content of the first element, and what comes after it."""
    kind, size = struct.unpack_from(f"{order}II", view)
    start = 8
    if kind >> 16:  # a small element: size and type in one word, the content in the next
        kind, size, start = kind & 0xFFFF, kind >> 16, 4
    end = start + size
    if end > len(view) or (start == 4 and size > 4):
        raise ValueError("an element is truncated")
    return kind, view[start:end], view[end if kind == _COMPRESSED else end + -end % 8 :]
