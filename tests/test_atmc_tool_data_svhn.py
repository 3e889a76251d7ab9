"""SVHN's MATLAB files: read as written, every kind of damage one line."""

import contextlib
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.io import savemat

from atmc_tool import data
from atmc_tool.data.mat import read_variables
from atmc_tool.errors import InputError

Arrays = dict[str, Any]


def arrays(n: int, seed: int) -> Arrays:
    random = np.random.default_rng(seed)
    return {
        "X": random.integers(0, 256, (32, 32, 3, n), dtype=np.uint8),
        "y": random.permutation(np.arange(n) % 10 + 1).astype(np.uint8)[:, None],
    }


def write_set(folder: Path, compressed: bool = True) -> tuple[Arrays, Arrays]:
    folder.mkdir(parents=True, exist_ok=True)
    train, test = arrays(30, 0), arrays(20, 1)
    savemat(folder / "train_32x32.mat", train, do_compression=compressed)
    savemat(folder / "test_32x32.mat", test, do_compression=compressed)
    return train, test


@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize(("below", "spec"), [("", "svhn"), ("svhn", "svhn"), ("mine", "mine")])
def test_images_and_digits_are_read_as_written(below: str, spec: str, compressed: bool, tmp_path: Path) -> None:
    train, test = write_set(tmp_path / below, compressed)
    read = data.load_data(spec, data_dir=tmp_path)
    assert (read.n_classes, read.image_shape) == (10, (3, 32, 32))
    assert read.class_names == tuple("0123456789")
    assert read.augmentation == data.Augmentation(shift=4, flip=False)
    assert len(read.train) + len(read.validation) == 30
    for number in range(20):
        assert np.array_equal(read.test.images[number].transpose(1, 2, 0), test["X"][..., number])
        assert read.test.labels[number] == (0 if test["y"][number] == 10 else test["y"][number])
    assert sorted(np.unique(read.train.labels)) == list(range(10))
    assert read.train.images.sum() + read.validation.images.sum() == train["X"].sum(dtype=np.int64)


def test_digits_stored_as_other_numbers_are_the_same(tmp_path: Path) -> None:
    train, test = write_set(tmp_path)
    expected = data.load_data("svhn", data_dir=tmp_path)
    savemat(tmp_path / "train_32x32.mat", {**train, "y": train["y"].astype(np.float64)})
    savemat(tmp_path / "test_32x32.mat", {**test, "y": test["y"].T.astype(np.int32)})
    assert data.load_data("svhn", data_dir=tmp_path).digest == expected.digest


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda a: {"X": a["X"]}, "got none"),
        (lambda a: {"y": a["y"]}, "got none"),
        (lambda a: {**a, "X": a["X"].astype(np.float64)}, "got float64 (32, 32, 3, 30)"),
        (lambda a: {**a, "X": a["X"][:, :, 0]}, "got uint8 (32, 32, 30)"),
        (lambda a: {**a, "X": a["X"][:16]}, "got uint8 (16, 32, 3, 30)"),
        (lambda a: {**a, "X": {"a": 1}}, "not an array of real numbers"),
        (lambda a: {**a, "y": a["y"][:29]}, "expected y, (30, 1), got uint8 (29, 1)"),
        (lambda a: {**a, "y": np.full((30, 1), "a", object)}, "not an array of real numbers"),
        (lambda a: {**a, "y": a["y"] - 1}, "expected 1 to 10, got 0"),
        (lambda a: {**a, "y": a["y"] + 1}, "expected 1 to 10, got 11"),
        (lambda a: {**a, "y": a["y"] + 0.5}, "expected 1 to 10"),
        (lambda a: {**a, "y": a["y"] * np.nan}, "got nan"),
        (lambda a: {**a, "y": a["y"] * 1j}, "not an array of real numbers"),
    ],
)
def test_other_content_is_named(change: Callable[[Arrays], Arrays], says: str, tmp_path: Path) -> None:
    train, _ = write_set(tmp_path)
    savemat(tmp_path / "train_32x32.mat", change(train))
    message = refusal(tmp_path)
    assert says in message
    assert "train_32x32.mat" in message


def refusal(folder: Path) -> str:
    with pytest.raises(InputError) as caught:
        data.load_data("svhn", data_dir=folder)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("content", [b"", b"hello", b"\x89HDF\r\n\x1a\n" + bytes(600), bytes(200)])
def test_other_files_are_refused(content: bytes, tmp_path: Path) -> None:
    write_set(tmp_path)
    (tmp_path / "test_32x32.mat").write_bytes(content)
    assert "test_32x32.mat is damaged or no MATLAB file" in refusal(tmp_path)


@pytest.mark.parametrize("compressed", [False, True])
def test_damage_anywhere_in_the_headers_never_ends_in_another_error(compressed: bool, tmp_path: Path) -> None:
    write_set(tmp_path, compressed)
    path = tmp_path / "test_32x32.mat"
    sound = path.read_bytes()
    for position in (*range(124, 260), len(sound) // 2, *range(len(sound) - 140, len(sound))):
        for change in (0x55, 0x80):
            damaged = bytearray(sound)
            damaged[position] ^= change
            path.write_bytes(damaged)
            with contextlib.suppress(InputError):  # harmless in names and in values
                data.load_data("svhn", data_dir=tmp_path)
        path.write_bytes(sound[:position])
        refusal(tmp_path)


def test_the_other_byte_order_and_other_variables() -> None:
    """Written by hand, for SciPy writes this machine's order alone."""
    digits = np.array([[1, 2, 3]], ">i2")

    def element(kind: int, content: bytes) -> bytes:
        return struct.pack(">II", kind, len(content)) + content + bytes(-len(content) % 8)

    def matrix(name: bytes, array: np.ndarray) -> bytes:
        head = element(6, struct.pack(">II", 10, 0)) + element(5, struct.pack(">ii", *array.shape)) + element(1, name)
        body = head + element(3, array.tobytes())
        return element(14, body)

    header = b"by hand".ljust(124) + b"\x01\x00MI"
    zipped = zlib.compress(matrix(b"zipped", (digits + 1).astype(">i2")))
    content = (
        header + matrix(b"other", digits) + matrix(b"plain", digits) + struct.pack(">II", 15, len(zipped)) + zipped
    )
    found = read_variables(content, ("plain", "zipped"))
    assert {name: array.tolist() for name, array in found.items()} == {"plain": [[1, 2, 3]], "zipped": [[2, 3, 4]]}


@pytest.mark.parametrize("compressed", [False, True])
def test_variables_are_those_that_scipy_wrote(compressed: bool, tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    kinds = ["u1", "i1", "u2", "i2", "u4", "i4", "u8", "i8", "f4", "f8"]
    written = {kind: random.integers(0, 99, (2, 1, 3)).astype(kind) for kind in kinds}
    written |= {"empty": np.zeros((0, 4)), "a_variable_of_a_long_name": np.eye(3)}
    savemat(
        tmp_path / "a.mat", {**written, "text": "hello", "cell": np.array([1, "a"], object)}, do_compression=compressed
    )
    found = read_variables((tmp_path / "a.mat").read_bytes(), written.keys())
    assert found.keys() == written.keys()
    for name, array in written.items():
        assert found[name].dtype == array.dtype
        np.testing.assert_array_equal(found[name], array)


def test_a_zipped_variable_that_expands_is_refused_before_it_does(tmp_path: Path) -> None:
    write_set(tmp_path)
    head = struct.pack("<II", 14, 2**30)
    bomb = zlib.compress(head + bytes(2**20))
    content = (tmp_path / "test_32x32.mat").read_bytes()[:128] + struct.pack("<II", 15, len(bomb)) + bomb
    (tmp_path / "test_32x32.mat").write_bytes(content)
    assert "a variable of type 14 and 1073741824 bytes" in refusal(tmp_path)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    write_set(tmp_path)
    (tmp_path / "test_32x32.mat").unlink()
    assert "is incomplete: expected test_32x32.mat" in refusal(tmp_path)


def test_a_file_beyond_the_limit_is_not_read(tmp_path: Path) -> None:
    write_set(tmp_path)
    with (tmp_path / "train_32x32.mat").open("wb") as file:
        file.truncate(2**29 + 1)  # a hole: takes no space
    assert "train_32x32.mat is too large: expected at most 536870912 bytes" in refusal(tmp_path)
