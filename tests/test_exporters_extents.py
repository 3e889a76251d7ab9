"""Extents: what is written is read, and rows and columns are left out where that is cheaper."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from atmc_tool.errors import InputError
from exporters.bit_fields import FieldReader, FieldWriter
from exporters.extents import Extent, extent, get_extent, is_extent, put_extent
from exporters.kernels import Kernels, Shape


@given(st.integers(0, 2**32), st.sampled_from([(7, 9, 1, 1), (5, 4, 2, 3), (1, 6, 1, 1), (300, 200, 1, 1)]), st.data())
def test_any_extent_is_read_as_it_was_written(seed: int, sizes: tuple[int, int, int, int], data: st.DataObject) -> None:
    shape = Shape(*sizes)
    elements = shape.rows * shape.columns * shape.area
    kept = data.draw(st.integers(1, elements))
    positions = np.sort(np.random.default_rng(seed).choice(elements, kept, replace=False))
    kernels = Kernels.of(positions, shape)
    held = extent(kernels, shape, kept)
    assert is_extent(held, kernels, shape)
    assert held.work(shape) <= 1024 * kept or held.rows < shape.rows or held.columns < shape.columns
    fields = FieldWriter()
    put_extent(fields, held, shape, kept)
    if held.work(shape) <= 1024 * kept:
        assert get_extent(FieldReader(fields.to_bytes()), shape, kept, "w") == held


def test_rows_are_left_out_where_many_are_empty_and_not_where_a_few_are_by_chance() -> None:
    shape = Shape(64, 64, 1, 1)
    rng = np.random.default_rng(0)
    dense = Kernels.of(np.arange(8 * 64), shape)
    assert extent(dense, shape, 8 * 64) == Extent(8, 64, 8 * 64)
    by_chance = Kernels.of(np.sort(rng.choice(64 * 64, 80, replace=False)), shape)
    assert len(np.unique(by_chance.at // 64)) < 64
    assert extent(by_chance, shape, 80) == Extent(64, 64, 80)


def test_an_extent_that_the_kernels_do_not_have_is_found() -> None:
    shape = Shape(4, 4, 1, 1)
    kernels = Kernels.of(np.array([0, 1, 5]), shape)
    assert is_extent(Extent(2, 2, 3), kernels, shape)
    assert is_extent(Extent(4, 4, 3), kernels, shape)
    for wrong in (Extent(3, 2, 3), Extent(2, 3, 3), Extent(2, 2, 2), Extent(4, 4, 4)):
        assert not is_extent(wrong, kernels, shape)


@pytest.mark.parametrize("rows", [7, 8])
def test_as_many_lines_as_there_are_can_not_be_fewer(rows: int) -> None:
    fields = FieldWriter()
    fields.put(1, 1)
    fields.put(rows - 1, 3)
    with pytest.raises(InputError, match="fewer than 7"):
        get_extent(FieldReader(fields.to_bytes() + bytes(4)), Shape(7, 1, 1, 1), 7, "w")
