"""Positions, codes and numbers of sparse factors as bytes: format level 1. FORMAT.md, section 3.1.

Chosen by measurement, in bytes, on (a) a digits network by ATMC, 2,638 of 52,768 weights, 4 bits, (b) ResNet-20, 5 %
kept, 4 bits, (c) the same, 20 %:
- gaps as LEB128 1644 / 8481 / 22759, as bytes with escape 255: 1662 / 8448 / 22772;
- codes packed to 4 bits 1287 / 6493 / 25077, a byte each 1322 / 6683 / 25903; widths 1, 2, 4, 8 only: 3-bit codes then
  take 4 (6 to 20 % smaller after LZMA than codes that straddle bytes; 5- to 7-bit codes lose 1 to 3 %);
- codebooks as byte planes 229 / 1023 / 1040, as they are 251 / 1083 / 1103;
- raw LZMA2 against .xz: 57 to 200 bytes less per stream; lc = lp = pb = 0 is within 0.4 % of the best of all settings.
"""

import lzma
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from atmc_tool.compressed import SparseTensor
from atmc_tool.errors import InputError
from exporters.strict_json import brief

T = TypeVar("T", bound=np.generic)

DICTIONARY_BYTES = 2**20
LONGEST_GAP = 5
"""Bytes of the longest gap: positions are below 2³¹, so five groups of seven bits hold any."""


class FactorHeader(NamedTuple):
    """What the manifest says about a factor: `conv1.weight.V`, (rows, columns), entries, codebook values (0: none).

    `kernel`, (height, width), is how many columns of it belong together: level 3.
    """

    name: str
    shape: tuple[int, int]
    kept: int
    codebook_size: int
    kernel: tuple[int, int] = (1, 1)

    @property
    def elements(self) -> int:
        """Dense elements."""
        return self.shape[0] * self.shape[1]

    def fault(self, factor: SparseTensor) -> str | None:
        """What breaks the rules of `SparseTensor` and of this header in `factor`, if anything does."""
        positions, codebook, codes = factor.positions, factor.codebook, factor.codes
        if factor.shape != self.shape:
            return f"has shape {factor.shape} instead of {self.shape}"
        if not len(positions) == len(factor.values) == self.kept:
            return "has positions and values of different numbers"
        if self.kept and (positions[0] < 0 or positions[-1] >= self.elements or np.any(np.diff(positions) <= 0)):
            return "has positions that do not increase strictly inside the tensor"
        if not np.isfinite(factor.values).all():
            return "has values that are NaN or infinite"
        if codebook is None or codes is None:
            return None if codebook is None and codes is None else "has codes or a codebook but not both"
        if not np.isfinite(codebook).all() or not codebook.all() or np.any(np.diff(codebook) <= 0):
            return "has a codebook that is not finite, strictly increasing and without zero"
        if len(codes) != self.kept or codes.max(initial=0) >= len(codebook):
            return "has codes that do not fit its entries and its codebook"
        if codebook[codes].tobytes() != factor.values.tobytes():
            return "has values that are not those of its codes"
        return None


def compress(content: bytes, lp: int = 0) -> bytes:
    """A raw LZMA2 stream; lp = 2 tells it that the numbers inside take four bytes each."""
    lzma2 = {"id": lzma.FILTER_LZMA2, "preset": 9 | lzma.PRESET_EXTREME, "dict_size": DICTIONARY_BYTES}
    return lzma.compress(content, lzma.FORMAT_RAW, filters=[{**lzma2, "lc": 0, "lp": lp, "pb": 0}])


def store(content: bytes) -> bytes:
    """A raw LZMA2 stream of what can't be compressed: chunks of 64 KiB as they are, 3 bytes before each, 1 behind."""
    chunks = []
    for begin in range(0, len(content), 2**16):
        chunk = content[begin : begin + 2**16]
        chunks.append((b"\2" if begin else b"\1") + (len(chunk) - 1).to_bytes(2, "big") + chunk)
    return b"".join(chunks) + b"\0"


def decompress(stored: bytes, size: int, what: str, *, exact: bool = True) -> bytes:
    """The `size` bytes (at most `size` where not `exact`) that `compress` was given; `what` names them in errors.

    Never more than size + 1 bytes are decompressed, whatever the stream holds.

    Raises:
        InputError: not one whole LZMA2 stream, or another size.
    """
    decompressor = lzma.LZMADecompressor(
        lzma.FORMAT_RAW, filters=[{"id": lzma.FILTER_LZMA2, "dict_size": DICTIONARY_BYTES}]
    )
    try:
        content = decompressor.decompress(stored, max_length=size + 1)
    except lzma.LZMAError as error:
        raise InputError(f"{what} is not an LZMA2 stream", got=str(error)) from error
    if len(content) > size:
        raise InputError(f"{what} is larger than stated", expected=f"at most {size} bytes")
    if not decompressor.eof or decompressor.unused_data:
        raise InputError(f"{what} does not end where its LZMA2 stream ends")
    if exact and len(content) < size:
        raise InputError(f"{what} is smaller than stated", expected=f"{size} bytes", got=f"{len(content)} bytes")
    return content


def encode_factors(factors: Sequence[SparseTensor]) -> dict[str, bytes]:
    """Stream name → its bytes before compression, for all factors one after the other."""
    quantized = [(factor.codes, factor.codebook) for factor in factors if factor.codebook is not None]
    plain = [factor.values for factor in factors if factor.codebook is None]
    none = np.zeros(0, np.float32)
    return {
        "codebooks": encode_floats(np.concatenate([none, *(codebook for _, codebook in quantized)])),
        "values": encode_floats(np.concatenate([none, *plain])),
        "codes": b"".join(encode_codes(codes, len(codebook)) for codes, codebook in quantized if codes is not None),
        "gaps": b"".join(encode_positions(factor.positions) for factor in factors),
    }


def decode_factors(contents: Mapping[str, bytes], headers: Sequence[FactorHeader]) -> list[SparseTensor]:
    """The inverse of `encode_factors`; the streams have the sizes that follow from `headers`.

    Raises:
        InputError: positions outside the tensor, codes outside the codebook, or values that are not allowed.
    """
    quantized = [header for header in headers if header.codebook_size]
    positions = iter(decode_positions(contents["gaps"], headers))
    values = split(decode_floats(contents["values"]), [h.kept for h in headers if not h.codebook_size])
    codebooks = split(decode_floats(contents["codebooks"]), [h.codebook_size for h in quantized])
    packed = np.frombuffer(contents["codes"], np.uint8)
    packs = split(packed, [code_bytes(h.kept, h.codebook_size) for h in quantized])
    factors = []
    for header in headers:
        if header.codebook_size:
            codes = decode_codes(next(packs).tobytes(), header)
            codebook = next(codebooks)
            factor = SparseTensor(header.shape, next(positions), codebook[codes], codes, codebook)
        else:
            factor = SparseTensor(header.shape, next(positions), next(values))
        if fault := header.fault(factor):
            raise InputError(f"factor {brief(header.name)} {fault}")
        factors.append(factor)
    return factors


def split(array: NDArray[T], lengths: Sequence[int]) -> Iterator[NDArray[T]]:
    """`array` cut into parts of these lengths, which add up to its own."""
    ends = np.cumsum(lengths, dtype=np.int64)
    return (array[end - length : end] for end, length in zip(ends, lengths, strict=True))


def encode_positions(positions: NDArray[np.int64]) -> bytes:
    """Strictly increasing positions (k,) → the number of skipped positions before each, as LEB128."""
    gaps = np.diff(positions, prepend=-1) - 1
    place = np.arange(LONGEST_GAP)
    lengths = 1 + np.count_nonzero(gaps[:, None] >> 7 * place[1:], axis=1)
    place = place[: lengths.max(initial=1)]
    groups = gaps[:, None] >> 7 * place & 127 | (place < lengths[:, None] - 1) << 7  # (k, longest), low bits first
    stream: NDArray[np.uint8] = groups.astype(np.uint8)[place < lengths[:, None]]
    return stream.tobytes()


def decode_positions(content: bytes, headers: Sequence[FactorHeader]) -> list[NDArray[np.int64]]:
    """The positions of every factor.

    Raises:
        InputError: more or fewer gaps than entries, a gap longer than it need be, a position outside its factor.
    """
    gaps = _decode_leb128(content, sum(header.kept for header in headers))
    positions = []
    for header, part in zip(headers, split(gaps, [header.kept for header in headers]), strict=True):
        factor = np.cumsum(part + 1) - 1
        if header.kept and factor[-1] >= header.elements:
            expected = f"positions below {header.elements}"
            raise InputError(f"factor {brief(header.name)}: gaps leave the tensor", expected=expected, got=factor[-1])
        positions.append(factor)
    return positions


def _decode_leb128(content: bytes, count: int) -> NDArray[np.int64]:
    groups = np.frombuffer(content, np.uint8)
    last = np.flatnonzero(groups < 128)
    if len(last) != count or (len(groups) and groups[-1] >= 128):
        raise InputError("gaps do not match the counts", expected=f"{count} gaps", got=f"{len(last)}")
    if not count:
        return np.zeros(0, np.int64)
    first = np.concatenate([[0], last[:-1] + 1])
    lengths = last - first + 1
    if lengths.max() > LONGEST_GAP or np.any((groups[last] == 0) & (lengths > 1)):
        raise InputError("a gap is longer than it need be", expected=f"LEB128 of at most {LONGEST_GAP} bytes, minimal")
    gaps: NDArray[np.int64] = (groups[first] & 127).astype(np.int64)
    for place in range(1, int(lengths.max())):
        longer = np.flatnonzero(lengths > place)
        gaps[longer] |= (groups[first[longer] + place] & 127).astype(np.int64) << 7 * place
    return gaps


def code_width(codebook_size: int) -> int:
    """Bits in which a code is stored: the smallest of 1, 2, 4, 8 that holds every index of the codebook."""
    return next(width for width in (1, 2, 4, 8) if codebook_size <= 1 << width)


def code_bytes(count: int, codebook_size: int) -> int:
    """Bytes of `count` packed codes."""
    return -(-count * code_width(codebook_size) // 8)


def encode_codes(codes: NDArray[np.uint8], codebook_size: int) -> bytes:
    """Codes (k,) packed, the first in the lowest bits of its byte; unused high bits of the last byte are zero."""
    width = code_width(codebook_size)
    padded = np.zeros((code_bytes(len(codes), codebook_size), 8 // width), np.uint8)
    padded.reshape(-1)[: len(codes)] = codes
    packed: NDArray[np.uint8] = np.bitwise_or.reduce(padded << np.arange(0, 8, width, dtype=np.uint8), axis=1)
    return packed.tobytes()


def decode_codes(content: bytes, header: FactorHeader) -> NDArray[np.uint8]:
    """uint8 (kept,), the inverse of `encode_codes`; `content` has the `code_bytes` of `header`.

    Raises:
        InputError: a code outside the codebook, or unused bits that are not zero.
    """
    width = code_width(header.codebook_size)
    packed = np.frombuffer(content, np.uint8)[:, None]
    unpacked = (packed >> np.arange(0, 8, width, dtype=np.uint8) & np.uint8((1 << width) - 1)).reshape(-1)
    codes = unpacked[: header.kept]
    if codes.max(initial=0) >= header.codebook_size:
        expected = f"codes below {header.codebook_size}"
        raise InputError(
            f"factor {brief(header.name)}: a code is outside the codebook", expected=expected, got=codes.max()
        )
    if unpacked[header.kept :].any():
        raise InputError(f"factor {brief(header.name)}: unused bits after the last code are not zero")
    return codes


def encode_floats(values: NDArray[np.float32]) -> bytes:
    """float32 (n,) as byte planes: the lowest bytes of all values, then the next ones, ..., the highest ones."""
    return values.astype("<f4").view(np.uint8).reshape(-1, 4).T.tobytes()


def decode_floats(content: bytes) -> NDArray[np.float32]:
    """float32 (n,), the inverse of `encode_floats`; `content` has 4 n bytes."""
    planes = np.frombuffer(content, np.uint8).reshape(4, -1)
    return np.ascontiguousarray(planes.T).view("<f4").reshape(-1).astype(np.float32)
