"""The container: any safetensors tool reads what is written; what is read is checked before it is believed."""

import json
import struct
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open

from atmc_tool.errors import InputError
from exporters.container import Limits, read_container, write_container

STREAMS = {"a": b"abcde", "b": b"xyz"}
METADATA = {"format": "test", "about": "bytes"}
names = st.text(max_size=8).filter(lambda name: name != "__metadata__")


@given(st.dictionaries(names, st.binary(max_size=40)), st.dictionaries(st.text(), st.text()))
def test_what_is_written_is_read(streams: dict[str, bytes], metadata: dict[str, str]) -> None:
    content = write_container(streams, metadata)
    read, read_metadata = read_container(content, Limits())
    assert [(name, stream.tobytes()) for name, stream in read.items()] == list(streams.items())
    assert all(stream.dtype == np.uint8 for stream in read.values())
    assert read_metadata == metadata
    assert write_container(streams, metadata) == content


@given(st.dictionaries(names.filter(bool), st.binary(max_size=40)))
def test_the_safetensors_library_reads_it(streams: dict[str, bytes]) -> None:
    tensors = safetensors.numpy.load(write_container(streams, METADATA))
    assert {name: tensor.tobytes() for name, tensor in tensors.items()} == streams
    assert all(tensor.dtype == np.uint8 and tensor.ndim == 1 for tensor in tensors.values())


def test_the_safetensors_library_shows_the_metadata(tmp_path: Any) -> None:
    (tmp_path / "file").write_bytes(write_container(STREAMS, METADATA))
    with safe_open(tmp_path / "file", "numpy") as file:
        assert file.metadata() == METADATA


def test_layout_to_the_byte() -> None:
    header = (
        b'{"__metadata__":{"format":"test"},'
        b'"a":{"dtype":"U8","shape":[2],"data_offsets":[0,2]},'
        b'"b":{"dtype":"U8","shape":[0],"data_offsets":[2,2]}}'
    )
    expected = struct.pack("<Q", len(header)) + header + b"hi"
    assert write_container({"a": b"hi", "b": b""}, {"format": "test"}) == expected


def file_of(header: object, data: bytes = b"abcdexyz") -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def entry(begin: object, end: object, **other: object) -> dict[str, object]:
    size = end - begin if isinstance(begin, int) and isinstance(end, int) else 0
    return {"dtype": "U8", "shape": [size], "data_offsets": [begin, end], **other}


BAD: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "too short"),
    "seven bytes": (b"\0" * 7, "too short"),
    "header beyond the file": (struct.pack("<Q", 1000) + b"{}", "header is too long"),
    "header length of all ones": (b"\xff" * 8 + b"{}", "header is too long"),
    "header beyond the limit": (file_of(b" " * 2**21 + b"{}"), "header is too long"),
    "a zip": (b"PK\x03\x04" + bytes(range(200)), "header is too long"),
    "not UTF-8": (file_of(b'{"\xff": 1}'), "not UTF-8"),
    "UTF-16": (file_of('{"a": 1}'.encode("utf-16")), "not UTF-8"),
    "no header": (file_of(b""), "not JSON"),
    "half a header": (file_of(b'{"a": {'), "not JSON"),
    "text after the header": (file_of(b"{} {}", b""), "not JSON"),
    "deep nesting": (file_of(b"[" * 200_000), "nested too deeply"),
    "a number of 5000 digits": (file_of(b'{"a": ' + b"9" * 5000 + b"}"), "not JSON"),
    "NaN": (file_of(b'{"a": NaN}'), "not finite"),
    "infinite by overflow": (file_of(b'{"a": 1e999}'), "not finite"),
    "a list": (file_of([]), "not a JSON object"),
    "a stream twice": (file_of(b'{"a": 1, "b": 2, "a": 3}'), "the key 'a' twice"),
    "a field twice": (file_of(b'{"a": {"dtype": "U8", "dtype": "U8"}}'), "the key 'dtype' twice"),
    "metadata as a list": (file_of({"__metadata__": []}), "object of strings"),
    "metadata with a number": (file_of({"__metadata__": {"version": 1}}), "object of strings"),
    "entry as a number": (file_of({"a": 8}), "not described by"),
    "entry without shape": (file_of({"a": {"dtype": "U8", "data_offsets": [0, 8]}}), "not described by"),
    "entry with more": (file_of({"a": entry(0, 8, strides=[1])}), "not described by"),
    "floats": (file_of({"a": entry(0, 8, dtype="F32", shape=[2])}), "not made of bytes"),
    "a dtype that is a list": (file_of({"a": entry(0, 8, dtype=["U8"])}), "not made of bytes"),
    "one offset": (file_of({"a": entry(0, 8, data_offsets=[0])}), "malformed"),
    "offsets as a string": (file_of({"a": entry(0, 8, data_offsets="08")}), "malformed"),
    "a fractional offset": (file_of({"a": entry(0, 8.0, shape=[8])}), "malformed"),
    "a boolean offset": (file_of({"a": entry(False, 8, shape=[8])}), "malformed"),
    "two dimensions": (file_of({"a": entry(0, 8, shape=[2, 4])}), "malformed"),
    "a hole at the start": (file_of({"a": entry(1, 8)}), "leaves a hole"),
    "a hole": (file_of({"a": entry(0, 3), "b": entry(4, 8)}), "leaves a hole"),
    "an overlap": (file_of({"a": entry(0, 5), "b": entry(4, 8)}), "overlaps"),
    "the same bytes twice": (file_of({"a": entry(0, 8), "b": entry(0, 8)}), "overlaps"),
    "the order of the data not that of the header": (file_of({"b": entry(5, 8), "a": entry(0, 5)}), "leaves a hole"),
    "end before begin": (file_of({"a": entry(0, 8), "b": entry(8, 4)}), "leaves a hole"),
    "negative": (file_of({"a": entry(0, -8)}), "leaves a hole"),
    "begin that its own shape denies": (file_of({"a": entry(3, 8, shape=[8])}), "leaves a hole"),
    "shape of another size": (file_of({"a": entry(0, 8, shape=[9])}), "another size"),
    "cut off": (file_of({"a": entry(0, 8)}, b"abcdefg"), "cut off"),
    "huge": (file_of({"a": entry(0, 2**62)}), "cut off"),
    "bytes after the end": (file_of({"a": entry(0, 8)}, b"abcdefghi"), "bytes follow"),
    "data without streams": (file_of({}), "bytes follow"),
}


@pytest.mark.parametrize(("content", "message"), BAD.values(), ids=BAD.keys())
def test_bad_files_are_refused_in_one_line(content: bytes, message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        read_container(content, Limits())
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 500


def test_the_size_limit_is_inclusive() -> None:
    content = write_container(STREAMS, METADATA)
    read_container(content, Limits(file_bytes=len(content)))
    with pytest.raises(InputError, match=f"at most {len(content) - 1} bytes, got {len(content)}"):
        read_container(content, Limits(file_bytes=len(content) - 1))


def test_trailing_spaces_in_the_header_are_allowed() -> None:
    streams, _ = read_container(file_of(json.dumps({"a": entry(0, 8)}).encode() + b"    "), Limits())
    assert streams["a"].tobytes() == b"abcdexyz"


@pytest.mark.parametrize("damage", [lambda c, i: c[:i], lambda c, i: c[:i] + c[i + 1 :]], ids=["cut", "byte lost"])
def test_no_part_of_a_file_is_a_file(damage: Callable[[bytes, int], bytes]) -> None:
    content = write_container(STREAMS, METADATA)
    for position in range(len(content)):
        with pytest.raises(InputError):
            read_container(damage(content, position), Limits())
