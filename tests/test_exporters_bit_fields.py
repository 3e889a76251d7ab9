"""Fields and codebooks as bits: both ways exact, as one large number, and never read past the end."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from atmc_tool.errors import AtmcError, InputError
from exporters.bit_fields import FieldReader, FieldWriter
from exporters.codebook_fields import fits_half, get_codebook, put_codebook

fields = st.lists(
    st.integers(0, 40).flatmap(lambda width: st.tuples(st.integers(0, 2**width - 1), st.just(width))), max_size=30
)


@given(fields)
def test_fields_are_the_digits_of_one_number(values: list[tuple[int, int]]) -> None:
    writer, number, at = FieldWriter(), 0, 0
    for value, width in values:
        writer.put(value, width)
        number += value << at
        at += width
    content = writer.to_bytes()
    assert content == number.to_bytes((at + 7) // 8, "little")
    reader = FieldReader(content)
    assert [reader.get(width) for _, width in values] == [value for value, _ in values]
    assert reader.end() == len(content)
    with pytest.raises(InputError, match="ends inside its fields"):
        reader.get(1)


@given(st.lists(st.integers(0, 300), max_size=30), st.integers(0, 20), st.data())
def test_rows_of_fields(unary: list[int], width: int, data: st.DataObject) -> None:
    values = data.draw(st.lists(st.integers(0, 2**width - 1), max_size=30))
    writer = FieldWriter()
    writer.put(1, 3)
    writer.put_unary(np.array(unary, np.int64))
    writer.put_all(np.array(values, np.int64), width)
    content = writer.to_bytes()
    reader = FieldReader(content)
    assert reader.get(3) == 1
    assert reader.get_unary(len(unary)).tolist() == unary
    assert reader.get_all(len(values), width).tolist() == values
    with pytest.raises(InputError):
        reader.get_all(8, 1)
    with pytest.raises(InputError):
        FieldReader(content[: len(content) // 2]).get_all(8 * len(content), 1)


def test_bits_after_the_last_field_are_zero() -> None:
    reader = FieldReader(b"\x09")
    reader.get(3)
    with pytest.raises(InputError, match="not zero"):
        reader.end()


floats32 = st.floats(width=32, allow_nan=False, allow_infinity=False).filter(bool)
floats16 = st.floats(width=16, allow_nan=False, allow_infinity=False).filter(bool)


@given(st.lists(floats32, min_size=1, max_size=256, unique=True) | st.lists(floats16, min_size=1, unique=True))
def test_codebooks_both_ways(values: list[float]) -> None:
    codebook = np.unique(np.array(values, np.float32))
    writer = FieldWriter()
    put_codebook(writer, codebook)
    content = writer.to_bytes()
    found = get_codebook(FieldReader(content), len(codebook), "w.V")
    assert found.tobytes() == codebook.tobytes()
    assert found.flags.writeable
    assert len(content) <= len(codebook) * (2 if fits_half(codebook) else 4) + 5


def test_a_trained_codebook_takes_little() -> None:
    """256 values of a bell curve in F16: 512 bytes as they are."""
    values = np.random.default_rng(0).normal(size=256).astype(np.float16).astype(np.float32)
    writer = FieldWriter()
    put_codebook(writer, np.unique(values))
    assert len(writer.to_bytes()) < 260


@given(st.integers(1, 256), st.binary(max_size=80))
def test_any_bits_are_a_codebook_or_refused(size: int, content: bytes) -> None:
    try:
        codebook = get_codebook(FieldReader(content), size, "w.V")
    except InputError:
        return
    assert len(codebook) == size
    assert np.isfinite(codebook).all()
    assert codebook.all()
    assert np.all(np.diff(codebook) > 0)


def test_what_float16_holds() -> None:
    for held in ([0.5, -2.0], [65504.0], [2.0**-24], [-0.0], []):
        assert fits_half(np.array(held, np.float32))
    for lost in ([0.1], [65505.0], [1e30], [2.0**-25], [1.0, 1e-30]):
        assert not fits_half(np.array(lost, np.float32))


@pytest.mark.parametrize(("value", "width"), [(8, 3), (1, 0), (-1, 4), (2**28, 28)])
def test_what_a_field_can_not_hold_is_not_written(value: int, width: int) -> None:
    with pytest.raises(AtmcError, match="too small"):
        FieldWriter().put(value, width)
