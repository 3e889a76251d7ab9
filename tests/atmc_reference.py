"""A second decoder of `.atmc`, slow and obvious, written from exporters/FORMAT.md alone; and a writer of any content.

It shares no code with the package. Values are plain Python: floats as their four bytes.
"""

import hashlib
import json
import lzma
import struct
from typing import Any

import slow_decoder

WIDTH = {"F64": 8, "F32": 4, "F16": 2, "I64": 8, "I32": 4, "I16": 2, "I8": 1} | {
    "U64": 8, "U32": 4, "U16": 2, "U8": 1, "BOOL": 1
}  # fmt: skip
FILTERS = [{"id": lzma.FILTER_LZMA2, "dict_size": 2**20}]


def decode(content: bytes) -> dict[str, Any]:
    """{"weights": name → (shape, factor → (shape, [(position, value bytes, code or None)], codebook or None)), ...}."""
    (length,) = struct.unpack("<Q", content[:8])
    header_bytes, data = content[: 8 + length], content[8 + length :]
    header = json.loads(header_bytes[8:])
    metadata = header.pop("__metadata__")
    assert (metadata["format"], metadata["version"]) == ("atmc", "1")
    assert metadata["level"] in ("1", "3")
    stored, end = {}, 0
    for name, entry in header.items():
        first, last = entry["data_offsets"]
        assert entry == {"dtype": "U8", "shape": [last - first], "data_offsets": [end, last]}
        stored[name], end = data[first:last], last
    assert end == len(data)
    assert next(iter(stored)) == "manifest"
    zeroed = header_bytes.replace(metadata["sha256"].encode(), b"0" * 64, 1)
    assert hashlib.sha256(zeroed + stored["manifest"]).hexdigest() == metadata["sha256"]
    manifest = json.loads(_plain(stored.pop("manifest")))
    assert stored.keys() == manifest["streams"].keys()
    streams = {}
    for name, entry in manifest["streams"].items():
        assert hashlib.sha256(stored[name]).hexdigest() == entry["sha256"]
        streams[name] = _plain(stored[name])
        assert len(streams[name]) == entry["bytes"]
    return _tensors(manifest, streams, metadata["level"] == "3")


def manifest_of(content: bytes) -> dict[str, Any]:
    """The manifest of a good file."""
    (length,) = struct.unpack("<Q", content[:8])
    begin, end = json.loads(content[8 : 8 + length])["manifest"]["data_offsets"]
    manifest: dict[str, Any] = json.loads(_plain(content[8 + length + begin : 8 + length + end]))
    return manifest


def _plain(stored: bytes) -> bytes:
    return lzma.decompress(stored, lzma.FORMAT_RAW, filters=FILTERS)


def _tensors(manifest: dict[str, Any], streams: dict[str, bytes], level_3: bool) -> dict[str, Any]:
    codebooks, values = (_floats(streams.get(name, b"")) for name in ("codebooks", "values"))
    codes, gaps = list(streams.get("codes", b"")), list(streams.get("gaps", b""))
    singles = sum(entry["dtype"] == "F32" for entry in manifest["rest"])
    coded: dict[str, Any] = {"halves": [False] * singles}
    if level_3:
        listed = [(_shapes(w)[f], *w["factors"][f], w["shape"], f) for w in manifest["weights"] for f in _factors(w)]
        coded = slow_decoder.decode(streams["coded"], listed, singles)
    weights: dict[str, Any] = {}
    for weight in manifest["weights"]:
        factors = {}
        for name in _factors(weight):
            kept, size = weight["factors"][name]
            codebook, own = coded["factors"].pop(0) if level_3 else (None, None)
            if size and not level_3:
                codebook = [codebooks.pop(0) for _ in range(size)]
            positions: list[int] = own[0] if own else []
            entry_codes: list[Any] = [None] * kept
            if size:
                entry_codes = own[1] if own else _codes(codes, kept, size)
            while len(positions) < kept:
                positions.append((positions[-1] if positions else -1) + 1 + _gap(gaps))
            entries = [
                (position, codebook[code] if codebook else values.pop(0), code)
                for position, code in zip(positions, entry_codes, strict=True)
            ]
            rows, columns = _shapes(weight)[name]
            assert not entries or entries[-1][0] < rows * columns
            factors[name] = ((rows, columns), entries, codebook)
        weights[weight["name"]] = (tuple(weight["shape"]), factors)
    assert not codebooks
    assert not values
    assert not codes
    assert not gaps
    rest, at = {}, 0
    for entry in manifest["rest"]:
        half = entry["dtype"] == "F32" and coded["halves"].pop(0)
        count = 1
        for dimension in entry["shape"]:
            count *= dimension
        size = count * (2 if half else WIDTH[entry["dtype"]])
        content = streams.get("rest", b"")[at : at + size]
        at += size
        if half:
            content = struct.pack(f"<{count}f", *struct.unpack(f"<{count}e", content))
        rest[entry["name"]] = (entry["dtype"], tuple(entry["shape"]), content)
    assert at == len(streams.get("rest", b""))
    return {
        "weights": weights,
        "rest": rest,
        "skeleton": streams.get("skeleton", b""),
        "facts": manifest["facts"],
    }


def _factors(weight: dict[str, Any]) -> list[str]:
    return [name for name in "UVC" if name in weight["factors"]]


def _shapes(weight: dict[str, Any]) -> dict[str, tuple[int, int]]:
    m, n = weight["shape"][0], 1
    for size in weight["shape"][1:]:
        n *= size
    return {"U": (m, min(m, n)), "V": (min(m, n), n), "C": (m, n)}


def _floats(planes: bytes) -> list[bytes]:
    n = len(planes) // 4
    return [bytes(planes[plane * n + i] for plane in range(4)) for i in range(n)]


def _codes(stream: list[int], kept: int, size: int) -> list[int]:
    width = 1
    while 2**width < size:
        width *= 2
    codes: list[int] = []
    while len(codes) < kept:
        byte = stream.pop(0)
        for _ in range(8 // width):
            codes.append(byte % 2**width)
            byte //= 2**width
    assert not any(codes[kept:])
    assert all(code < size for code in codes)
    return codes[:kept]


def _gap(stream: list[int]) -> int:
    gap, place = 0, 1
    while True:
        byte = stream.pop(0)
        gap += byte % 128 * place
        place *= 128
        if byte < 128:
            return gap


def seal(manifest: dict[str, Any] | bytes, contents: dict[str, bytes], **metadata: str) -> bytes:
    """A file of any manifest and any contents, with right digests, so that a reader gets to what is wrong in them.

    Where the manifest has no `streams` they are filled in; `metadata` overrides the header's.
    """
    stored = {name: lzma.compress(content, lzma.FORMAT_RAW, filters=FILTERS) for name, content in contents.items()}
    if isinstance(manifest, dict):
        entries = {
            name: {"bytes": len(contents[name]), "sha256": hashlib.sha256(stream).hexdigest()}
            for name, stream in stored.items()
        }
        manifest = json.dumps({"streams": entries, **manifest}).encode()
    head = lzma.compress(manifest, lzma.FORMAT_RAW, filters=FILTERS)
    return seal_stored({"manifest": head, **stored}, **metadata)


def seal_stored(stored: dict[str, bytes], **metadata: str) -> bytes:
    """A file of these stored streams, the first of which the root digest covers."""
    known = {"format": "atmc", "version": "1", "level": "1", "sha256": "0" * 64}
    header: dict[str, Any] = {"__metadata__": {**known, **metadata}}
    end = 0
    for name, stream in stored.items():
        header[name] = {"dtype": "U8", "shape": [len(stream)], "data_offsets": [end, end + len(stream)]}
        end += len(stream)
    text = json.dumps(header).encode()
    start = struct.pack("<Q", len(text)) + text
    if "sha256" not in metadata:
        root = hashlib.sha256(start + next(iter(stored.values()))).hexdigest()
        start = start.replace(b"0" * 64, root.encode(), 1)
    return start + b"".join(stored.values())
