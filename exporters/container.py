"""Byte streams in one safetensors file, written with deterministic bytes and read as if the file were hostile.

A safetensors file is: N, the header's length (8 bytes, little-endian) | the header, N bytes of JSON | the data.
See FORMAT.md, section 1. The safetensors library reads what is written here; it is not used for writing because it
keeps neither the order of the streams nor that of the metadata.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from atmc_tool.errors import InputError
from exporters.strict_json import brief, parse_json

METADATA = "__metadata__"


@dataclass(frozen=True)
class Limits:
    """The largest file that a reader takes on; each is checked before anything of that size is allocated.

    file_bytes, header_bytes: of the file and of its header
    manifest_bytes, skeleton_bytes: of these two streams after decompression
    tensors: how many weights, factors and other arrays there are; most cost up to a millisecond, however small, but a
        factor of 8×8 kernels about 10 ms, which takes it in more than a hundred runs: a hostile file costs minutes
    elements: of all dense tensors together; kept: of all stored entries of all factors together
    """

    file_bytes: int = 2**30
    header_bytes: int = 2**20
    manifest_bytes: int = 2**24
    skeleton_bytes: int = 2**26
    tensors: int = 2**14
    elements: int = 2**31
    kept: int = 2**26


def write_container(streams: Mapping[str, bytes], metadata: Mapping[str, str]) -> bytes:
    """A valid safetensors file: `metadata` first in the header, then every stream, in the order given, as U8 (n,)."""
    header: dict[str, Any] = {METADATA: dict(metadata)}
    end = 0
    for name, stream in streams.items():
        begin, end = end, end + len(stream)
        header[name] = {"dtype": "U8", "shape": [len(stream)], "data_offsets": [begin, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    return len(text).to_bytes(8, "little") + text + b"".join(streams.values())


def header_end(content: bytes) -> int:
    """Position of the first byte after the header of a container whose length was checked."""
    return 8 + int.from_bytes(content[:8], "little")


def read_container(content: bytes, limits: Limits) -> tuple[dict[str, NDArray[np.uint8]], dict[str, str]]:
    """(streams, metadata): name → uint8 (n,), views of `content`, in the order of the file.

    Checks, in this order: size, header length, UTF-8, JSON, keys, metadata, every stream's entry, offsets, total.

    Raises:
        InputError: the first of these that fails.
    """
    if len(content) > limits.file_bytes:
        raise InputError(
            "file is too large", expected=f"at most {limits.file_bytes} bytes", got=f"{len(content)} bytes"
        )
    if len(content) < 8:
        raise InputError("file is too short", expected="at least 8 bytes", got=f"{len(content)} bytes")
    start = header_end(content)
    longest = min(len(content), 8 + limits.header_bytes)
    if start > longest:
        hint = "the file is cut off, or it is no .atmc file"
        raise InputError("header is too long", expected=f"at most {longest - 8} bytes", got=f"{start - 8}", hint=hint)
    header = parse_json(content[8:start], "header")
    if not isinstance(header, dict):
        raise InputError("header is not a JSON object", got=type(header).__name__)
    metadata = header.pop(METADATA, {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise InputError("header metadata is not an object of strings")
    data = np.frombuffer(content, np.uint8, offset=start)
    streams: dict[str, NDArray[np.uint8]] = {}
    end = 0
    for name, entry in header.items():
        begin, end = end, _stream_end(name, entry, end)
        if end > len(data):
            raise InputError(f"stream {brief(name)} is cut off", expected=f"{end} bytes of data", got=f"{len(data)}")
        streams[name] = data[begin:end]
    if end != len(data):
        raise InputError("bytes follow the last stream", expected=f"{end} bytes of data", got=f"{len(data)}")
    return streams, metadata


def _stream_end(name: str, entry: object, begin: int) -> int:
    """End of the stream that starts at `begin`, from its header entry."""
    if not isinstance(entry, dict) or entry.keys() != {"dtype", "shape", "data_offsets"}:
        raise InputError(f"stream {brief(name)} is not described by dtype, shape and data_offsets")
    if entry["dtype"] != "U8":
        raise InputError(f"stream {brief(name)} is not made of bytes", expected="dtype U8", got=brief(entry["dtype"]))
    match entry["data_offsets"], entry["shape"]:
        case ([first, end], [size]) if all(type(number) is int for number in (first, end, size)):
            pass
        case offsets, shape:
            raise InputError(
                f"stream {brief(name)} has malformed offsets or shape",
                expected="data_offsets [begin, end] and shape [bytes]",
                got=f"{brief(offsets)} and {brief(shape)}",
            )
    if first != begin or end < begin or size != end - begin:
        expected = f"data_offsets [{begin}, {begin} + n] and shape [n]"
        got = f"{brief([first, end])} and {brief([size])}"
        raise InputError(
            f"stream {brief(name)} leaves a hole, overlaps, or has another size", expected=expected, got=got
        )
    return int(end)
