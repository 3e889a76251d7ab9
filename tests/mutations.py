"""Damaged and hostile `.atmc` files, made from an honest one, and what reading them comes to.

Kinds of mutants:

- `raw`: bits, bytes and runs of the file changed, cut out, doubled, swapped, or the file cut off or made longer;
- `sealed`: stored bytes of a stream, the content of a compressed one, or values of the manifest changed, and every
  size of the container and digest set right again, so that what decodes the streams meets them.

A mutant of the first kind must be refused, or hold the very network of the honest file. One of the second kind is a
file that anybody could have made: it may be a network of its own, but one that can be written and read again.
"""

import ctypes
import hashlib
import json
import lzma
import random
import re
import resource
import time
import tracemalloc
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from atmc_tool.compressed import CompressedModel
from atmc_tool.errors import InputError
from exporters.atmc_file import decode_model, encode_model
from exporters.container import Limits, read_container, write_container

NUMBERS = (0, 1, 2, 3, 7, 255, 256, 257, 2**15, 2**16, 2**20, 2**26, 2**31 - 1, 2**31, 2**32, 2**63 - 1, 2**63, 10**40)
LZMA2 = [{"id": lzma.FILTER_LZMA2, "dict_size": 2**20}]
KINDS = ("raw", "sealed")
M_MMAP_THRESHOLD = -3  # glibc's malloc.h


@dataclass(frozen=True)
class Reading:
    """What reading a file came to.

    outcome: `refused`; `same`, the network of the honest file; `other`, another network
    seconds: of processor time
    peak:    bytes allocated at the most, as Python and NumPy count them; 0 where they were not counted
    """

    outcome: str
    seconds: float
    peak: int


def model_digest(model: CompressedModel) -> str:
    """SHA-256 of everything that a network is."""
    digest = hashlib.sha256(model.skeleton + json.dumps(model.manifest, sort_keys=True).encode())
    for name, weight in model.weights.items():
        digest.update(repr((name, weight.shape)).encode())
        for factor, tensor in sorted(weight.factors.items()):
            digest.update(repr((factor, tensor.shape)).encode() + tensor.positions.tobytes() + tensor.values.tobytes())
    for name, array in model.rest.items():
        digest.update(repr((name, array.dtype, array.shape)).encode() + array.tobytes())
    return digest.hexdigest()


def read(content: bytes, honest: str, most: int | None = None) -> Reading:
    """Read `content`; `honest` is the digest of the honest network. Any exception but InputError goes through.

    A network that is not the honest one is written and read again, and has to be itself.

    most: bytes that the process may grow by while it reads, where MemoryError is one of those exceptions (Linux); the
          peak is then not counted, which takes 15 times as long as reading
    """
    model, counts = None, [0]
    with _counted(counts) if most is None else bounded(most):
        started = time.process_time()
        try:
            model = decode_model(content)
        except InputError as error:
            str(error)
        seconds = time.process_time() - started
    if model is None:
        return Reading("refused", seconds, counts[0])
    found = model_digest(model)
    if found != honest:
        assert model_digest(decode_model(encode_model(model))) == found
    return Reading("same" if found == honest else "other", seconds, counts[0])


@contextmanager
def _counted(counts: list[int]) -> Iterator[None]:
    """The peak of what is allocated, in bytes, as the only one of `counts`."""
    tracemalloc.start()
    try:
        yield
    finally:
        counts[0] = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()


def keep_little() -> None:
    """From now on, whatever has 64 KiB or more goes back to the system when it is freed (glibc)."""
    ctypes.CDLL(None).mallopt(M_MMAP_THRESHOLD, 2**16)


@contextmanager
def bounded(most: int) -> Iterator[None]:
    """The process can't grow by more than `most` bytes (Linux).

    It may use what it has freed and kept: see `keep_little`.
    """
    used = re.search(r"VmData:\s*(\d+) kB", Path("/proc/self/status").read_text())
    assert used is not None
    before = resource.getrlimit(resource.RLIMIT_DATA)
    resource.setrlimit(resource.RLIMIT_DATA, (1024 * int(used[1]) + most, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, before)


def mutants(content: bytes, seed: int) -> Iterator[tuple[str, bytes]]:
    """(kind, mutant) without end; the same ones for the same `content` and `seed`."""
    rng = random.Random(seed)  # nothing secret
    while True:
        kind = rng.choice(KINDS)
        yield kind, damaged(content, rng) if kind == "raw" else sealed(content, rng)


def damaged(content: bytes, rng: random.Random) -> bytes:
    """`content` after one to three changes of its bytes; never `content` itself."""
    changed = content
    while changed == content:
        for _ in range(rng.randint(1, 3)):
            changed = _damage(changed, rng)
    return changed


def _damage(content: bytes, rng: random.Random) -> bytes:
    if not content:
        return rng.randbytes(8)
    at = rng.randrange(len(content))
    length = min(rng.choice((1, 2, 4, 8, 64, 1000)), len(content) - at)
    part = content[at : at + length]
    other = rng.randrange(len(content))
    match rng.randrange(10):
        case 0 | 1 | 2:
            return content[:at] + bytes([content[at] ^ 1 << rng.randrange(8)]) + content[at + 1 :]
        case 3:
            return content[:at] + rng.randbytes(length) + content[at + length :]
        case 4:
            return content[:at] + bytes([rng.choice((0, 127, 128, 255))]) * length + content[at + length :]
        case 5:
            return content[:at]
        case 6:
            return content + rng.randbytes(length)
        case 7:
            return content[:at] + content[at + length :]
        case 8:
            return content[:at] + part + content[at:]
        case _:
            return content[:other] + part + content[other + length :]


def sealed(content: bytes, rng: random.Random) -> bytes:
    """`content` with a stream or the manifest changed, and all sizes and digests right again."""
    found, metadata = read_container(content, Limits())
    streams = {name: stream.tobytes() for name, stream in found.items()}
    manifest = json.loads(_decompress(streams["manifest"]) or b"")
    match rng.randrange(4):
        case 0:
            name = rng.choice([name for name in streams if name != "manifest"])
            streams[name] = damaged(streams[name], rng)
        case 1:
            packed = [name for name in streams if name != "manifest" and _decompress(streams[name]) is not None]
            name = rng.choice(packed)
            inner = damaged(_decompress(streams[name]) or b"", rng)
            streams[name] = _compress(inner)
            if "bytes" in manifest["streams"].get(name, {}) and rng.random() < 0.7:
                manifest["streams"][name]["bytes"] = len(inner)
        case 2:
            _change(manifest, rng)
        case _:
            if rng.random() < 0.5:
                streams["manifest"] = _compress(damaged(json.dumps(manifest).encode(), rng))
                return _seal(streams, metadata, None)
            metadata[rng.choice([*metadata, "new"])] = rng.choice(["", "1", "2", "3", "atmc", "0" * 64, "\0"])
    return _seal(streams, metadata, manifest)


def _seal(streams: dict[str, bytes], metadata: dict[str, str], manifest: Any) -> bytes:
    """The file of these streams, with the digests of FORMAT.md, sections 1 and 2."""
    if isinstance(manifest, dict):
        entries = manifest.get("streams")
        for name, entry in entries.items() if isinstance(entries, dict) else ():
            if isinstance(entry, dict) and name in streams:
                entry["sha256"] = hashlib.sha256(streams[name]).hexdigest()
    if manifest is not None:
        streams["manifest"] = _compress(json.dumps(manifest).encode())
    metadata = {**metadata, "sha256": "0" * 64}
    content = write_container(streams, metadata)
    start = 8 + int.from_bytes(content[:8], "little")
    first = len(next(iter(streams.values()), b""))
    digest = hashlib.sha256(content[: start + first]).hexdigest()
    return content.replace(b"0" * 64, digest.encode(), 1)


def _decompress(stored: bytes) -> bytes | None:
    """The content of a raw LZMA2 stream; None where it is none."""
    try:
        return lzma.LZMADecompressor(lzma.FORMAT_RAW, filters=LZMA2).decompress(stored, 2**26)
    except lzma.LZMAError:
        return None


def _compress(content: bytes) -> bytes:
    return lzma.compress(content, lzma.FORMAT_RAW, filters=LZMA2)


def _change(value: Any, rng: random.Random) -> None:
    """Change something inside a JSON object or array."""
    while True:
        keys = list(value) if isinstance(value, dict) else list(range(len(value)))
        if not keys:
            value["x" if isinstance(value, dict) else slice(0, 0)] = [0]
            return
        key = rng.choice(keys)
        inner = value[key]
        if isinstance(inner, dict | list) and rng.random() < 0.9:
            value = inner
            continue
        match rng.randrange(5):
            case 0:
                del value[key]
            case 1 if isinstance(inner, int):
                value[key] = inner + rng.choice((-1, 1, 8, -8))
            case 2 if isinstance(value, list):
                value.append(inner)
            case 3:
                value[key] = rng.choice((None, True, -1, 0.5, "", "x" * 2000, [], {}, [[]]))
            case _:
                value[key] = rng.choice(NUMBERS)
        return
