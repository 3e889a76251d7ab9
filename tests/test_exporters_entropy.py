"""Level 1: every stream is decoded to what was encoded, equals a slow reference, and is refused otherwise."""

import lzma
import tracemalloc
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from atmc_tool.compressed import SparseTensor
from atmc_tool.errors import InputError
from exporters import entropy
from exporters.entropy import FactorHeader

position_lists = st.lists(st.integers(0, 2**31 - 2), unique=True, max_size=60).map(sorted)


def header(kept: int, codebook_size: int = 0, elements: int = 2**31 - 1) -> FactorHeader:
    return FactorHeader("w.V", (1, elements), kept, codebook_size)


def slow_leb128(positions: list[int]) -> bytes:
    stream, previous = [], -1
    for position in positions:
        gap, previous = position - previous - 1, position
        while gap > 127:
            stream.append(gap % 128 + 128)
            gap //= 128
        stream.append(gap)
    return bytes(stream)


@given(position_lists)
def test_positions_are_leb128_gaps(positions: list[int]) -> None:
    stream = entropy.encode_positions(np.array(positions, np.int64))
    assert stream == slow_leb128(positions)
    (decoded,) = entropy.decode_positions(stream, [header(len(positions))])
    assert decoded.dtype == np.int64
    assert decoded.tolist() == positions


def test_gaps_at_every_change_of_length() -> None:
    for gap in (0, 127, 128, 2**14 - 1, 2**14, 2**21 - 1, 2**21, 2**28 - 1, 2**28, 2**31 - 3):
        positions = np.array([gap, gap + 1])
        stream = entropy.encode_positions(positions)
        assert stream == slow_leb128(positions.tolist())
        assert entropy.decode_positions(stream, [header(2)])[0].tolist() == positions.tolist()


@given(st.lists(position_lists, max_size=5))
def test_factors_lie_one_after_the_other(factors: list[list[int]]) -> None:
    stream = b"".join(slow_leb128(positions) for positions in factors)
    headers = [header(len(positions)) for positions in factors]
    assert [part.tolist() for part in entropy.decode_positions(stream, headers)] == factors


@pytest.mark.parametrize(
    ("stream", "kept", "message"),
    [
        (b"", 1, "expected 1 gaps, got 0"),
        (b"\0", 0, "expected 0 gaps, got 1"),
        (b"\1\2\3", 2, "expected 2 gaps, got 3"),
        (b"\1\x80", 1, "do not match"),
        (b"\x80\x00", 1, "longer than it need be"),
        (b"\x80\x80\x80\x80\x80\x01", 1, "longer than it need be"),
        (b"\x0a", 1, "expected positions below 10, got 10"),
        (b"\x09\x00", 2, "expected positions below 10, got 10"),
        (b"\xff\xff\xff\xff\x7f" * 3, 3, "expected positions below 10"),
    ],
)
def test_bad_gaps_are_refused(stream: bytes, kept: int, message: str) -> None:
    with pytest.raises(InputError, match=message):
        entropy.decode_positions(stream, [header(kept, elements=10)])


@pytest.mark.parametrize(
    ("size", "width"), [(1, 1), (2, 1), (3, 2), (4, 2), (5, 4), (16, 4), (17, 8), (255, 8), (256, 8)]
)
def test_codes_take_the_smallest_width(size: int, width: int) -> None:
    assert entropy.code_width(size) == width


@given(st.integers(1, 256), st.data())
def test_codes_are_packed_from_the_lowest_bits(size: int, data: st.DataObject) -> None:
    codes = data.draw(st.lists(st.integers(0, size - 1), max_size=40))
    stream = entropy.encode_codes(np.array(codes, np.uint8), size)
    number = sum(code << i * entropy.code_width(size) for i, code in enumerate(codes))
    assert stream == number.to_bytes(entropy.code_bytes(len(codes), size), "little")
    decoded = entropy.decode_codes(stream, header(len(codes), size))
    assert decoded.dtype == np.uint8
    assert decoded.tolist() == codes


@pytest.mark.parametrize(
    ("stream", "kept", "size", "message"),
    [
        (b"\x0c", 2, 3, "expected codes below 3, got 3"),
        (b"\x10", 1, 16, "unused bits"),
        (b"\x02", 1, 1, "unused bits"),
        (b"\x01", 1, 1, "expected codes below 1, got 1"),
        (b"\xff", 1, 255, "expected codes below 255, got 255"),
    ],
)
def test_bad_codes_are_refused(stream: bytes, kept: int, size: int, message: str) -> None:
    with pytest.raises(InputError, match=message):
        entropy.decode_codes(stream, header(kept, size))


@given(st.lists(st.floats(width=32)))
def test_floats_are_byte_planes(values: list[float]) -> None:
    array = np.array(values, np.float32)
    stream = entropy.encode_floats(array)
    raw = array.astype("<f4").tobytes()
    assert stream == raw[0::4] + raw[1::4] + raw[2::4] + raw[3::4]
    assert entropy.decode_floats(stream).tobytes() == array.tobytes()


@given(st.binary(max_size=300), st.sampled_from([0, 2]))
def test_any_lzma2_decoder_reads_what_is_compressed(content: bytes, lp: int) -> None:
    stored = entropy.compress(content, lp)
    filters = [{"id": lzma.FILTER_LZMA2, "dict_size": 2**20}]
    assert lzma.decompress(stored, lzma.FORMAT_RAW, filters=filters) == content
    assert entropy.decompress(stored, len(content), "stream") == content


TEXT = b"abcabcabc" * 20


@pytest.mark.parametrize(
    ("damage", "size", "message"),
    [
        (lambda stored: stored, len(TEXT) - 1, "larger than stated"),
        (lambda stored: stored, 0, "larger than stated"),
        (lambda stored: stored, len(TEXT) + 1, "smaller than stated"),
        (lambda stored: stored[:-1], len(TEXT), "does not end"),
        (lambda stored: stored[:5], len(TEXT), "does not end"),
        (lambda _: b"", len(TEXT), "does not end"),
        (lambda stored: stored + b"\0", len(TEXT), "does not end"),
        (lambda stored: stored + stored, len(TEXT), "does not end"),
        (lambda stored: b"\x7f" + stored[1:], len(TEXT), "not an LZMA2 stream"),
        (lambda _: lzma.compress(TEXT), len(TEXT), "not an LZMA2 stream"),
    ],
)
def test_bad_streams_are_refused(damage: Callable[[bytes], bytes], size: int, message: str) -> None:
    with pytest.raises(InputError, match=message):
        entropy.decompress(damage(entropy.compress(TEXT)), size, "stream")


def test_a_bomb_is_not_inflated() -> None:
    bomb = entropy.compress(bytes(2**24))
    assert len(bomb) < 2**24 / 5000
    tracemalloc.start()
    with pytest.raises(InputError, match="larger than stated"):
        entropy.decompress(bomb, 1000, "stream")
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 2**21


def quantized(positions: list[int], codes: list[int], codebook: list[float], columns: int = 10) -> SparseTensor:
    book, indices = np.array(codebook, np.float32), np.array(codes, np.uint8)
    return SparseTensor((1, columns), np.array(positions, np.int64), book[indices], indices, book)


GOOD = quantized([1, 4, 9], [0, 2, 1], [-1.0, 0.5, 2.0])


def replace(tensor: SparseTensor, **fields: Any) -> SparseTensor:
    return SparseTensor(**{**vars(tensor), **fields})


def floats(*values: float) -> NDArray[np.float32]:
    return np.array(values, np.float32)


@pytest.mark.parametrize(
    ("tensor", "message"),
    [
        (replace(GOOD, shape=(10, 1)), "has shape"),
        (replace(GOOD, positions=np.array([1, 4])), "different numbers"),
        (replace(GOOD, positions=np.array([1, 4, 4])), "increase strictly"),
        (replace(GOOD, positions=np.array([-1, 4, 9])), "increase strictly"),
        (replace(GOOD, positions=np.array([1, 4, 10])), "increase strictly"),
        (replace(GOOD, values=floats(1, 2, np.nan)), "NaN or infinite"),
        (replace(GOOD, codes=None), "not both"),
        (replace(GOOD, codebook=None), "not both"),
        (replace(GOOD, codebook=floats(-1, 0, 2)), "without zero"),
        (replace(GOOD, codebook=floats(-1, 2, 2)), "strictly increasing"),
        (replace(GOOD, codebook=floats(-1, 0.5, np.inf)), "not finite"),
        (replace(GOOD, codes=np.array([0, 1, 3], np.uint8)), "do not fit"),
        (replace(GOOD, codes=np.array([0, 1], np.uint8)), "do not fit"),
        (replace(GOOD, values=floats(-1, 2, 2)), "not those of its codes"),
    ],
)
def test_every_broken_rule_of_a_factor_is_named(tensor: SparseTensor, message: str) -> None:
    rules = FactorHeader("w.V", (1, 10), 3, 3)
    assert rules.fault(GOOD) is None
    fault = rules.fault(tensor)
    assert fault is not None
    assert message in fault


def test_byte_counts_on_a_known_source() -> None:
    """5 % of 50,000 at random, 16 equally likely codes: within 5 % of the source's entropy, H(.05) + .05 · 4 bits."""
    rng = np.random.default_rng(0)
    positions = np.flatnonzero(rng.random(50_000) < 0.05)
    codes = rng.integers(0, 16, len(positions)).astype(np.uint8)
    gaps = len(entropy.compress(entropy.encode_positions(positions)))
    packed = len(entropy.compress(entropy.encode_codes(codes, 16)))
    density = len(positions) / 50_000
    entropy_bits = -density * np.log2(density) - (1 - density) * np.log2(1 - density)
    assert gaps <= 1.05 * 50_000 * entropy_bits / 8
    assert packed <= 1.005 * len(positions) / 2
