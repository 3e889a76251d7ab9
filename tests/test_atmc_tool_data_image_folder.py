"""Image folders and zips of them: pixels as they are, classes by name, every kind of damage named in one line."""

import io
import shutil
import struct
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from atmc_tool import data
from atmc_tool.errors import InputError

CLASSES = ("ant", "bee", "cat")


def pixels(seed: int, shape: tuple[int, ...] = (6, 5, 3)) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def png(array: np.ndarray) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(array).save(stream, "PNG")
    return stream.getvalue()


def write_folder(folder: Path, shape: tuple[int, ...] = (6, 5, 3), per_class: int = 4) -> Path:
    for part in ("train", "test"):
        for label, name in enumerate(CLASSES):
            (folder / part / name).mkdir(parents=True)
            for i in range(per_class):
                seed = 1000 * (part == "test") + 100 * label + i
                (folder / part / name / f"{i}.png").write_bytes(png(pixels(seed, shape)))
    return folder


def zip_of(folder: Path, path: Path, prefix: str = "") -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for file in sorted(folder.rglob("*")):
            archive.write(file, prefix + file.relative_to(folder).as_posix())
    return path


def test_pixels_and_labels_are_those_of_the_files(tmp_path: Path) -> None:
    read = data.load_data(str(write_folder(tmp_path / "set")))
    assert read.class_names == CLASSES
    assert read.image_shape == (3, 6, 5)
    expected = [pixels(1000 + 100 * label + i).transpose(2, 0, 1) for label in range(3) for i in range(4)]
    assert np.array_equal(read.test.images, expected)
    assert read.test.labels.tolist() == [0] * 4 + [1] * 4 + [2] * 4
    assert read.augmentation == data.Augmentation()


@pytest.mark.parametrize("prefix", ["", "wrapped/"])
def test_a_zip_equals_its_folder_and_nothing_is_extracted(tmp_path: Path, prefix: str) -> None:
    folder = write_folder(tmp_path / "set")
    (folder / "train" / "ant" / "notes.txt").write_text("not an image")
    (folder / "train" / "ant" / ".hidden.png").write_text("not an image")
    path = zip_of(folder, tmp_path / "set.zip", prefix)
    before = sorted(tmp_path.rglob("*"))
    assert data.load_data(str(path)).digest == data.load_data(str(folder)).digest
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize(
    ("shape", "image_shape", "augmentation"),
    [
        ((32, 32, 3), (3, 32, 32), data.Augmentation(4, True)),
        ((32, 32), (1, 32, 32), data.Augmentation()),
        ((7, 9), (1, 7, 9), data.Augmentation()),
    ],
)
def test_gray_and_colour(
    tmp_path: Path, shape: tuple[int, ...], image_shape: tuple[int, ...], augmentation: data.Augmentation
) -> None:
    read = data.load_data(str(write_folder(tmp_path / "set", shape)))
    assert read.image_shape == image_shape
    assert read.augmentation == augmentation


def test_only_images_within_the_limit_are_read(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "set")
    seen: list[tuple[int, int]] = []
    limited = data.load_data(str(folder), limit=3, progress=lambda done, total: seen.append((done, total)))
    assert seen == [(6, 6)]
    kept = np.concatenate([limited.train.labels, limited.validation.labels])
    assert sorted(kept) == [0, 1, 2]
    whole = data.load_data(str(folder))
    of_test = {image.tobytes() for image in limited.test.images}
    assert of_test < {image.tobytes() for image in whole.test.images}


def remove_test(folder: Path) -> None:
    shutil.rmtree(folder / "test")


def empty_train(folder: Path) -> None:
    shutil.rmtree(folder / "train")
    (folder / "train").mkdir()


def one_class(folder: Path) -> None:
    for name in ("bee", "cat"):
        shutil.rmtree(folder / "train" / name)
        shutil.rmtree(folder / "test" / name)


def rgba(folder: Path) -> None:
    (folder / "train" / "ant" / "0.png").write_bytes(png(pixels(0, (6, 5, 4))))


def cut(folder: Path) -> None:
    content = (folder / "train" / "bee" / "1.png").read_bytes()
    (folder / "train" / "bee" / "1.png").write_bytes(content[: len(content) // 2])


def other_format(folder: Path) -> None:
    """An icon under the name of a PNG: decoders that nobody asked for stay out of reach."""
    Image.fromarray(pixels(0, (16, 16, 3))).save(folder / "train" / "ant" / "0.png", "ICO")


def huge(folder: Path) -> None:
    """A PNG whose header claims 30,000 × 30,000 pixels."""
    content = b"\x89PNG\r\n\x1a\n"
    header = struct.pack(">IIBBBBB", 30_000, 30_000, 8, 2, 0, 0, 0)
    for chunk in (b"IHDR" + header, b"IDAT" + zlib.compress(b"\0" * 99)):
        content += struct.pack(">I", len(chunk) - 4) + chunk + struct.pack(">I", zlib.crc32(chunk))
    for name in CLASSES:
        for i in range(4):
            (folder / "train" / name / f"{i}.png").write_bytes(content)


DAMAGE: list[tuple[Callable[[Path], object], str]] = [
    (remove_test, r"holds no images for test: expected test/<class>/<image>"),
    (empty_train, r"holds no images for train"),
    (one_class, r"classes don't fit: expected 2 or more in train, and no others in test, got 1"),
    (
        lambda folder: (folder / "train" / "a.png").write_bytes(png(pixels(0))),
        "an image without a label.*got train/a.png",
    ),
    (lambda folder: shutil.copytree(folder / "train" / "ant", folder / "train" / "bee" / "x"), "an image too deep"),
    (lambda folder: shutil.move(folder / "test" / "ant", folder / "test" / "dog"), "and test/dog"),
    (
        lambda folder: (folder / "test" / "cat" / "3.png").write_bytes(png(pixels(0, (6, 6, 3)))),
        r"images differ in shape: expected \(3, 6, 5\) \(C, H, W\), got \(3, 6, 6\) in test/cat/3.png",
    ),
    (
        lambda folder: (folder / "train" / "cat" / "3.png").write_bytes(png(pixels(0, (6, 5)))),
        r"images differ in shape.*got \(1, 6, 5\) in train/cat/3.png",
    ),
    (rgba, "expected 8-bit gray or RGB, got RGBA"),
    (other_format, "train/ant/0.png is damaged or no image: expected PNG, JPEG"),
    (cut, "train/bee/1.png is damaged"),
    (lambda folder: (folder / "train" / "bee" / "1.png").write_bytes(b""), "train/bee/1.png is damaged"),
    (lambda folder: (folder / "train" / "bee" / "1.png").write_bytes(b"\0" * 500), "train/bee/1.png is damaged"),
    (huge, r"train/ant/0.png is damaged: got DecompressionBomb"),
]


@pytest.mark.parametrize("as_zip", [False, True])
@pytest.mark.parametrize(("damage", "message"), DAMAGE)
def test_damage_is_named(tmp_path: Path, damage: Callable[[Path], object], message: str, as_zip: bool) -> None:
    folder = write_folder(tmp_path / "set")
    damage(folder)
    path = zip_of(folder, tmp_path / "set.zip") if as_zip else folder
    with pytest.raises(InputError, match=message) as caught:
        data.load_data(str(path))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda _: b"", "no readable zip archive"),
        (lambda content: content[: len(content) // 2], "no readable zip archive"),
        (lambda content: content.replace(b"IDAT", b"IDXT"), "damaged: got BadZipFile: Bad CRC-32"),
    ],
)
def test_a_damaged_zip_is_named(tmp_path: Path, change: Callable[[bytes], bytes], message: str) -> None:
    folder = write_folder(tmp_path / "set")
    path = tmp_path / "set.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        for file in sorted(folder.rglob("*.png")):
            archive.write(file, file.relative_to(folder).as_posix())
    path.write_bytes(change(path.read_bytes()))
    with pytest.raises(InputError, match=message):
        data.load_data(str(path))


def test_an_absurd_size_in_a_zip_is_refused_before_reading(tmp_path: Path) -> None:
    path = zip_of(write_folder(tmp_path / "set"), tmp_path / "set.zip")
    content = bytearray(path.read_bytes())
    entry = content.rindex(b"PK\x01\x02")  # the last entry of the central directory: train/cat/3.png
    content[entry + 24 : entry + 28] = struct.pack("<I", 2**31)  # its uncompressed size
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"train/cat/3\.png is too large: expected at most 268435456 bytes"):
        data.load_data(str(path))
