"""IDX files: read as written, every kind of damage named in one line."""

import gzip
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from atmc_tool import data
from atmc_tool.data.idx import read_idx
from atmc_tool.errors import InputError

TRAIN_IMAGES, TRAIN_LABELS = "train-images-idx3-ubyte", "train-labels-idx1-ubyte"


def idx_bytes(array: np.ndarray) -> bytes:
    return struct.pack(f">BBBB{array.ndim}I", 0, 0, 8, array.ndim, *array.shape) + array.tobytes()


def write_set(folder: Path, *, zipped: bool = False) -> dict[str, np.ndarray]:
    """The four files in `folder`, and what is in them."""
    folder.mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(0)
    arrays: dict[str, np.ndarray] = {}
    for part, n in (("train", 30), ("t10k", 20)):
        arrays[f"{part}-images-idx3-ubyte"] = random.integers(0, 256, (n, 4, 5), dtype=np.uint8)
        arrays[f"{part}-labels-idx1-ubyte"] = (np.arange(n) % 10).astype(np.uint8)
    for name, array in arrays.items():
        content = idx_bytes(array)
        (folder / f"{name}{'.gz' if zipped else ''}").write_bytes(gzip.compress(content) if zipped else content)
    return arrays


@pytest.mark.parametrize("zipped", [False, True])
@pytest.mark.parametrize("below", ["mnist", ""])
def test_files_are_read_as_written(tmp_path: Path, zipped: bool, below: str) -> None:
    arrays = write_set(tmp_path / below, zipped=zipped)
    read = data.load_data("mnist", data_dir=tmp_path)
    assert np.array_equal(read.test.images[:, 0], arrays["t10k-images-idx3-ubyte"])
    assert np.array_equal(read.test.labels, arrays["t10k-labels-idx1-ubyte"])
    assert len(read.train) + len(read.validation) == 30
    assert (read.n_classes, read.image_shape) == (10, (1, 4, 5))


def test_a_path_to_idx_files_is_a_data_set(tmp_path: Path) -> None:
    write_set(tmp_path / "fashion-mnist")
    write_set(tmp_path / "else")
    named, other = data.load_data(str(tmp_path / "fashion-mnist")), data.load_data(str(tmp_path / "else"))
    assert named.class_names[9] == "Ankle boot"
    assert named.augmentation == data.Augmentation(2, True)
    assert other.class_names == tuple("0123456789")
    assert other.augmentation == data.Augmentation()


def huge(content: bytes) -> bytes:
    return content[:4] + struct.pack(">III", 2**31, 28, 28) + content[16:]


@pytest.mark.parametrize("zipped", [False, True])
@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        (TRAIN_IMAGES, lambda _: b"", "expected magic 00000803, got an empty file"),
        (TRAIN_IMAGES, lambda content: content[:10], "is truncated: expected 16 bytes of header, got 10"),
        (TRAIN_IMAGES, lambda content: content[:-1], "is truncated or too long"),
        (TRAIN_IMAGES, lambda content: content + b"\0", "is truncated or too long"),
        (TRAIN_IMAGES, lambda content: b"\0\0\x0d\x03" + content[4:], "expected magic 00000803, got 00000d03"),
        (TRAIN_LABELS, lambda content: b"\0\0\x08\x03" + content[4:], "no IDX file of labels.*got 00000803"),
        (TRAIN_IMAGES, huge, "its header claims too much"),
        (TRAIN_IMAGES, lambda content: content[:4] + struct.pack(">III", 2**21, 4, 5) + content[16:], "truncated"),
        (
            TRAIN_LABELS,
            lambda _: idx_bytes(np.zeros(29, np.uint8)),
            "differ in number: expected 30 labels, got 29",
        ),
        (TRAIN_LABELS, lambda _: idx_bytes(np.full(30, 10, np.uint8)), "out of range: expected 0 to 9, got 10"),
        (TRAIN_IMAGES, lambda _: idx_bytes(np.zeros((30, 4, 4), np.uint8)), "differ in shape"),
        (TRAIN_IMAGES, lambda _: idx_bytes(np.zeros((0, 4, 5), np.uint8)), "differ in number"),
    ],
)
def test_damage_is_named(
    tmp_path: Path, zipped: bool, name: str, change: Callable[[bytes], bytes], message: str
) -> None:
    write_set(tmp_path)
    content = change((tmp_path / name).read_bytes())
    (tmp_path / name).unlink()
    path = tmp_path / (f"{name}.gz" if zipped else name)
    path.write_bytes(gzip.compress(content) if zipped else content)
    with pytest.raises(InputError, match=message) as caught:
        data.load_data("mnist", data_dir=tmp_path)
    assert "\n" not in str(caught.value)


def test_a_set_without_images_is_refused(tmp_path: Path) -> None:
    write_set(tmp_path)
    (tmp_path / TRAIN_IMAGES).write_bytes(idx_bytes(np.zeros((0, 4, 5), np.uint8)))
    (tmp_path / TRAIN_LABELS).write_bytes(idx_bytes(np.zeros(0, np.uint8)))
    with pytest.raises(InputError, match="is empty"):
        data.load_data("mnist", data_dir=tmp_path)


@pytest.mark.parametrize("damage", ["cut", "flipped bit", "wrong check sum"])
def test_a_damaged_gzip_file_is_named(tmp_path: Path, damage: str) -> None:
    random = np.random.default_rng(0)
    content = bytearray(gzip.compress(idx_bytes(random.integers(0, 256, (50, 10, 10), dtype=np.uint8))))
    if damage == "cut":
        del content[len(content) // 2 :]
    else:
        content[len(content) // 2 if damage == "flipped bit" else -6] ^= 0x10
    (tmp_path / "images").write_bytes(content)
    with pytest.raises(InputError, match=f"{tmp_path}/images is damaged"):
        read_idx(tmp_path / "images", axes=3)


def test_a_set_without_labels_says_so(tmp_path: Path) -> None:
    write_set(tmp_path)
    (tmp_path / TRAIN_LABELS).unlink()
    with pytest.raises(InputError, match=f"has no labels: expected {TRAIN_LABELS}"):
        data.load_data("mnist", data_dir=tmp_path)
