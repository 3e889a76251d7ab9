"""NumPy archives: layouts told apart, and every wrong array named in one line."""

import io
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from atmc_tool import data
from atmc_tool.errors import InputError

Arrays = dict[str, Any]


def arrays(shape: tuple[int, ...] = (5, 6)) -> Arrays:
    random = np.random.default_rng(0)
    return {
        "x_train": random.integers(0, 256, (20, *shape), dtype=np.uint8),
        "y_train": np.arange(20) % 4,
        "x_test": random.integers(0, 256, (8, *shape), dtype=np.uint8),
        "y_test": np.arange(8) % 4,
    }


def load(folder: Path, content: Arrays) -> data.DataSet:
    np.savez(folder / "a.npz", **content)
    return data.load_data(str(folder / "a.npz"))


@pytest.mark.parametrize(
    ("shape", "image_shape", "axes"),
    [
        ((5, 6), (1, 5, 6), None),
        ((5, 6, 3), (3, 5, 6), (0, 3, 1, 2)),
        ((3, 5, 6), (3, 5, 6), (0, 1, 2, 3)),
        ((5, 6, 1), (1, 5, 6), (0, 3, 1, 2)),
        ((1, 5, 6), (1, 5, 6), (0, 1, 2, 3)),
    ],
)
def test_layouts(
    tmp_path: Path, shape: tuple[int, ...], image_shape: tuple[int, ...], axes: tuple[int, ...] | None
) -> None:
    content = arrays(shape)
    read = load(tmp_path, content)
    assert read.image_shape == image_shape
    expected = content["x_test"][:, None] if axes is None else content["x_test"].transpose(axes)
    assert np.array_equal(read.test.images, expected)
    assert (read.n_classes, read.class_names) == (4, ("0", "1", "2", "3"))
    assert read.augmentation == data.Augmentation()


def test_labels_as_a_column_and_wider_integers_are_read(tmp_path: Path) -> None:
    content = arrays()
    column = {"y_train": content["y_train"][:, None].astype(np.uint16), "x_test": content["x_test"].astype(np.int64)}
    assert load(tmp_path, {**content, **column}).digest == load(tmp_path, content).digest


def with_nan() -> np.ndarray:
    images = np.zeros((20, 5, 6), np.float32)
    images[3, 2, 1] = np.nan
    return images


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"y_train": None}, "a.npz has no labels: expected arrays x_train, y_train, x_test, y_test, got no y_train"),
        ({"x_test": None, "y_test": None}, "a.npz is incomplete.*got no x_test, y_test"),
        ({"x_train": with_nan()}, r"a.npz \(train\): images hold NaN: expected uint8 0 to 255"),
        (
            {"x_train": np.full((20, 5, 6), 0.5)},
            r"not integers: expected uint8 0 to 255, got float64.*round\(255 \* x\)",
        ),
        ({"x_train": np.ones((20, 5, 6), bool)}, "not integers.*got bool"),
        ({"x_train": np.full((20, 5, 6), 256)}, "images are out of range: expected uint8 0 to 255, got 256 to 256"),
        ({"x_train": np.full((20, 5, 6), -1)}, "images are out of range"),
        ({"x_train": np.zeros((20, 30), np.uint8)}, r"wrong number of axes.*got \(20, 30\)"),
        ({"x_train": np.zeros((20, 3, 5, 3), np.uint8)}, "axis of the channels is ambiguous"),
        ({"x_train": np.zeros((20, 5, 6, 7), np.uint8)}, "axis of the channels is missing"),
        ({"x_train": np.zeros((20, 0, 6), np.uint8)}, "no pixels"),
        (
            {"x_train": np.zeros((20, 6, 6), np.uint8)},
            r"differ in shape: expected \(1, 6, 6\) \(C, H, W\), got \(1, 5, 6\)",
        ),
        ({"x_train": np.zeros((0, 5, 6), np.uint8), "y_train": np.zeros(0, int)}, r"\(train\) is empty"),
        ({"x_test": np.zeros((0, 5, 6), np.uint8), "y_test": np.zeros(0, int)}, r"\(test\) is empty"),
        ({"y_train": np.arange(19) % 4}, "differ in number: expected 20 labels, got 19"),
        ({"y_train": np.arange(20) % 4 * 1.0}, "labels are not integers.*got float64"),
        ({"y_train": np.eye(20, 4, dtype=int)}, "labels are not integers.*not one-hot rows"),
        ({"y_train": np.arange(20) % 4 - 1}, "a label is out of range: expected 0 to classes − 1, got -1"),
        ({"y_train": np.full(20, 2**63, np.uint64)}, "a label is out of range"),
        ({"y_train": np.arange(20) % 4 + 1}, "labels are out of range.*none equal to 0.*count classes from 0"),
        ({"y_train": np.arange(20) % 4 * 2}, "labels are out of range.*labels up to 6 and none equal to 1"),
        ({"y_train": np.zeros(20, int)}, "too few classes: expected at least 2, got 1"),
        ({"y_test": np.arange(8)}, r"\(test\): a label is out of range: expected 0 to 3, got 4"),
    ],
)
def test_wrong_arrays_are_named(tmp_path: Path, change: Arrays, message: str) -> None:
    content = {key: value for key, value in {**arrays(), **change}.items() if value is not None}
    with pytest.raises(InputError, match=message) as caught:
        load(tmp_path, content)
    assert "\n" not in str(caught.value)


class Hostile:
    """An object whose unpickling would show."""

    def __reduce__(self) -> tuple[Callable[..., object], tuple[str]]:
        return print, ("unpickled",)


def test_pickled_objects_are_refused_and_not_loaded(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(InputError, match=r"x_train\.npy holds pickled objects"):
        load(tmp_path, {**arrays(), "x_train": np.array([Hostile()] * 20, dtype=object)})
    assert "unpickled" not in capsys.readouterr().out


@pytest.mark.parametrize(
    "change",
    [lambda _: b"", lambda content: content[: len(content) // 2], lambda _: b"hello" * 100],
)
def test_a_damaged_archive_is_named(tmp_path: Path, change: Callable[[bytes], bytes]) -> None:
    load(tmp_path, arrays())
    path = tmp_path / "a.npz"
    path.write_bytes(change(path.read_bytes()))
    with pytest.raises(InputError, match=r"a\.npz is damaged or no \.npz"):
        data.load_data(str(path))


def test_a_flipped_bit_is_noticed(tmp_path: Path) -> None:
    load(tmp_path, arrays())
    path = tmp_path / "a.npz"
    content = bytearray(path.read_bytes())
    content[300] ^= 1  # a pixel of x_train
    path.write_bytes(content)
    with pytest.raises(InputError, match="Bad CRC-32"):
        data.load_data(str(path))


def test_a_header_that_claims_more_than_is_there_is_refused_before_allocation(tmp_path: Path) -> None:
    stream = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        stream, {"descr": "|u1", "fortran_order": False, "shape": (2**20, 2**10, 2**10)}
    )
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        archive.writestr("x_train.npy", stream.getvalue() + b"\0" * 100)
    with pytest.raises(
        InputError, match=r"x_train\.npy is truncated or too large: expected 1099511627776 bytes.*got 100"
    ):
        data.load_data(str(tmp_path / "a.npz"))
