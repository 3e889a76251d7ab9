"""Everything in a state dict but the compressed weights: arrays as they are. FORMAT.md, sections 2 and 3."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from atmc_tool.errors import AtmcError, InputError
from exporters.codebook_fields import fits_half
from exporters.entropy import split
from exporters.manifest import DTYPES, RestEntry
from exporters.strict_json import brief


def rest_entry(name: str, array: NDArray[Any]) -> RestEntry:
    """What the manifest says about `array`.

    Raises:
        AtmcError: a value is NaN or infinite, or the element type is not stored.
    """
    dtype = next((known for known, kind in DTYPES.items() if array.dtype == kind), None)
    if dtype is None:
        raise AtmcError(f"{name} has a type that can't be stored", expected=", ".join(DTYPES), got=array.dtype)
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        raise AtmcError(
            f"{name} has values that are NaN or infinite", hint="training diverged; lower the learning rate"
        )
    return RestEntry(name=name, dtype=dtype, shape=list(array.shape))


def halves_of(arrays: Mapping[str, NDArray[Any]]) -> list[bool]:
    """Of each float32 array, whether float16 holds it bit by bit."""
    return [fits_half(array) for array in arrays.values() if array.dtype == np.float32]


def encode_rest(arrays: Mapping[str, NDArray[Any]], halves: Sequence[bool]) -> bytes:
    """The arrays one after the other, row-major; `halves` says which of those of float32 are stored as float16."""
    half = iter(halves)
    stored = (
        array.astype(np.float16) if array.dtype == np.float32 and next(half) else array for array in arrays.values()
    )
    return b"".join(array.astype(array.dtype.newbyteorder("<")).tobytes() for array in stored)


def decode_rest(content: bytes, entries: Sequence[RestEntry], halves: Sequence[bool]) -> dict[str, NDArray[Any]]:
    """Name → array, the inverse of `encode_rest`.

    Raises:
        InputError: another size, a byte that is no boolean, or a value that is not finite.
    """
    half = iter(halves)
    halved = [entry.dtype == "F32" and next(half) for entry in entries]
    sizes = [entry.bytes // 2 if is_half else entry.bytes for entry, is_half in zip(entries, halved, strict=True)]
    if sum(sizes) != len(content):
        got = f"{len(content)} bytes"
        raise InputError("stream 'rest' has another size", expected=f"{sum(sizes)} bytes", got=got)
    parts = split(np.frombuffer(content, np.uint8), sizes)
    return {
        entry.name: _array(entry, part, is_half) for entry, part, is_half in zip(entries, parts, halved, strict=True)
    }


def _array(entry: RestEntry, content: NDArray[np.uint8], half: bool) -> NDArray[Any]:
    dtype = np.dtype(DTYPES[entry.dtype])
    if dtype.kind == "b" and content.max(initial=0) > 1:
        raise InputError(f"tensor {brief(entry.name)} holds a byte that is neither false nor true", got=content.max())
    stored = np.dtype(np.float16) if half else dtype
    array = np.frombuffer(content.tobytes(), stored.newbyteorder("<")).astype(dtype).reshape(entry.shape)
    if dtype.kind == "f" and not np.isfinite(array).all():
        raise InputError(f"tensor {brief(entry.name)} has values that are NaN or infinite")
    return array
