"""CIFAR in each published layout, as folder and archive; what is damaged or hostile is one line, and never run."""

import contextlib
import gzip
import io
import os
import pickle
import struct
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from atmc_tool import data
from atmc_tool.data.cifar import CLASS_NAMES, LAYOUTS, Layout
from atmc_tool.data.cifar_pickle import read_batch
from atmc_tool.errors import InputError, UsageError

N = 6  # images of a file


def batch(seed: int, classes: int) -> tuple[np.ndarray, list[int]]:
    """Pixels (N, 3072) and labels."""
    random = np.random.default_rng(seed)
    return random.integers(0, 256, (N, 3072), dtype=np.uint8), random.integers(0, classes, N).tolist()


def python_2_pickle(fields: dict[str, object]) -> bytes:
    """A dict of arrays and lists of integers or text as Python 2 and its NumPy wrote them, by protocol 2."""

    def text(value: bytes) -> bytes:
        return b"T" + struct.pack("<I", len(value)) + value

    out = b"\x80\x02}("
    for key, value in fields.items():
        out += text(key.encode())
        if isinstance(value, np.ndarray):
            out += b"cnumpy.core.multiarray\n_reconstruct\nq\x01cnumpy\nndarray\nK\x00\x85U\x01b\x87R"
            out += b"(K\x01" + b"".join(b"J" + struct.pack("<i", size) for size in value.shape) + b"\x86"
            out += b"cnumpy\ndtype\nU\x02u1K\x00K\x01\x87R(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
            out += b"\x89" + text(value.tobytes()) + b"tb"
        elif isinstance(value, list):
            out += b"]("
            out += b"".join(b"K" + bytes([v]) if isinstance(v, int) else text(v.encode()) for v in value) + b"e"
        else:
            out += text(str(value).encode())
    return out + b"u."


def content(layout: Layout, seed: int, write: Callable[[dict[str, object]], bytes] = python_2_pickle) -> bytes:
    pixels, labels = batch(seed, len(CLASS_NAMES[layout.name]))
    if layout.labels:
        rest = [bytes([7] * (layout.labels - 1) + [label]) for label in labels]
        return b"".join(first + image.tobytes() for first, image in zip(rest, pixels, strict=True))
    key = "labels" if layout.name == "cifar10" else "fine_labels"
    others = {"coarse_labels": [3] * N} if layout.name == "cifar100" else {}
    names = [f"image_{number}.png" for number in range(N)]
    return write({"batch_label": "a batch", key: labels, **others, "data": pixels, "filenames": names})


def write_layout(folder: Path, layout: Layout) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for seed, name in enumerate((*layout.train, layout.test)):
        (folder / name).write_bytes(content(layout, seed))
    (folder / "readme.html").write_text("about")


def pack(folder: Path, archive: Path) -> Path:
    with tarfile.open(archive, "w:gz" if archive.suffix == ".gz" else "w") as file:
        file.add(folder, folder.name)
    return archive


def layout_of(folder: str) -> Layout:
    return next(layout for layout in LAYOUTS if layout.folder == folder)


@pytest.mark.parametrize("place", ["folder", "named folder", "files", "archive", "path", "path of archive"])
@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda layout: layout.folder)
def test_every_layout_is_read_as_written_wherever_it_lies(layout: Layout, place: str, tmp_path: Path) -> None:
    folder = tmp_path / (layout.name if place == "files" else layout.folder)
    if place == "named folder":
        folder = tmp_path / layout.name / layout.folder
    write_layout(folder, layout)
    spec = str(folder) if place == "path" else layout.name
    if "archive" in place:
        pack(folder, tmp_path / layout.archive)
        for file in folder.iterdir():
            file.unlink()
        folder.rmdir()
        spec = layout.archive if place == "path of archive" else layout.name
    read = data.load_data(spec, data_dir=tmp_path, validation=0.2)
    n_files = len(layout.train)
    expected = [batch(seed, read.n_classes) for seed in range(n_files + 1)]
    assert read.n_classes == len(read.class_names) == (10 if layout.name == "cifar10" else 100)
    assert read.augmentation == data.Augmentation(shift=4, flip=True)
    assert np.array_equal(read.test.images, expected[-1][0].reshape(N, 3, 32, 32))
    assert read.test.labels.tolist() == expected[-1][1]
    joined = sorted(
        (image.tobytes(), int(label))
        for part in (read.train, read.validation)
        for image, label in zip(part.images, part.labels, strict=True)
    )
    written = [pair for pixels, labels in expected[:-1] for pair in zip(pixels, labels, strict=True)]
    assert joined == sorted((pixels.tobytes(), label) for pixels, label in written)


@pytest.mark.parametrize("name", CLASS_NAMES)
def test_layouts_of_the_same_images_are_the_same_data(name: str, tmp_path: Path) -> None:
    digests = set()
    for layout in LAYOUTS:
        if layout.name == name:
            write_layout(tmp_path / layout.folder, layout)
            digests.add(data.load_data(str(tmp_path / layout.folder)).digest)
    assert len(digests) == 1


def test_class_names_are_in_the_order_of_the_labels() -> None:
    assert [len(set(names)) for names in CLASS_NAMES.values()] == [10, 100]
    assert all(list(names) == sorted(names) for names in CLASS_NAMES.values())


@pytest.mark.parametrize("protocol", [2, 3, 4])
def test_pickles_of_python_3_are_read_too(protocol: int) -> None:
    pixels, labels = batch(0, 10)
    for keys in (("data", "labels"), (b"data", b"labels")):
        for array in (pixels, np.asfortranarray(pixels)):
            fields = {keys[0]: array, keys[1]: labels, "more": [None, True, "text"]}
            got, numbers = read_batch(pickle.dumps(fields, protocol), "labels", 3072, "here")
            assert np.array_equal(got, pixels)
            assert numbers.tolist() == labels


def refusal(content: bytes) -> str:
    with pytest.raises(InputError) as caught:
        read_batch(content, "labels", 3072, "data_batch_1")
    message = str(caught.value)
    assert message.startswith("data_batch_1")
    assert "\n" not in message
    return message


class Calls:
    """Unpickled, it is the result of a call."""

    def __init__(self, function: Callable[..., object], *arguments: object) -> None:
        self.call = function, arguments

    def __reduce__(self) -> tuple[Callable[..., object], tuple[object, ...]]:
        return self.call


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize("nested", [False, True])
def test_code_in_a_pickle_is_not_run(protocol: int, nested: bool, tmp_path: Path) -> None:
    marker = tmp_path / "marker"
    for hostile in (
        Calls(os.mkdir, str(marker)),
        Calls(open, str(marker), "w"),
        Calls(eval, f"open({str(marker)!r}, 'w')"),
        Calls(np.memmap, str(marker), "u1", "w+", 0, (9,)),
        Calls(np.fromfile, str(marker)),
    ):
        pixels, labels = batch(0, 10)
        value: Any = {"data": pixels, "labels": labels, "x": [hostile]} if nested else hostile
        message = refusal(pickle.dumps(value, protocol))
        assert not marker.exists()
        assert protocol not in (2, 3, 4) or "contains code" in message  # of the others no batch is read at all


def test_a_pickle_that_changes_a_stand_in_changes_it_for_itself_alone() -> None:
    pixels, labels = batch(0, 10)
    sound = python_2_pickle({"data": pixels, "labels": labels})
    poison = b"\x80\x02cnumpy\ndtype\nN}U\x0c__defaults__(K\x01K\x01ts\x86b."
    refusal(poison)
    assert np.array_equal(read_batch(sound, "labels", 3072, "here")[0], pixels)


def test_what_would_take_more_memory_than_the_file_has_is_refused_first() -> None:
    refusal(b"\x80\x02Nr\xff\xff\xff\xff.")  # an index of the memo
    refusal(b"\x80\x02T\xff\xff\xff\x7fabc.")  # a length
    refusal(b"\x80\x02)" + b"\x85" * 100_000 + b"K\x01}h\x00s.")  # a deep tuple
    pixels, labels = batch(0, 10)
    sound = python_2_pickle({"data": pixels, "labels": labels})
    rows = b"J" + struct.pack("<i", N)
    assert sound.count(rows) == 1
    refusal(sound.replace(rows, b"J" + struct.pack("<i", 2**31 - 1)))


@pytest.mark.parametrize(
    ("value", "says"),
    [
        ([], "damaged or no CIFAR file"),
        ({}, "'data' is no array"),
        ({"data": [1, 2], "labels": [1]}, "'data' is no array"),
        ({"data": np.zeros((2, 3072)), "labels": [1, 2]}, "no array of uint8"),
        ({"data": np.zeros((2, 3071), np.uint8), "labels": [1, 2]}, "not of shape"),
        ({"data": np.zeros((2, 2, 1536), np.uint8), "labels": [1, 2]}, "not of shape"),
        ({"data": np.zeros((2, 3072), object), "labels": [1, 2]}, "no array of uint8"),
        ({"data": np.zeros((2, 3072), np.uint8)}, "has no labels"),
        ({"data": np.zeros((2, 3072), np.uint8), "labels": [1, "2"]}, "has no labels"),
        ({"data": np.zeros((2, 3072), np.uint8), "labels": [1]}, "expected 2 labels, got 1"),
    ],
)
def test_another_form_is_named(value: object, says: str) -> None:
    assert says in refusal(pickle.dumps(value, 2))


def test_a_cut_or_flipped_pickle_never_ends_in_another_error() -> None:
    pixels, labels = batch(0, 10)
    sound = python_2_pickle({"labels": labels, "data": pixels, "filenames": ["a"] * N})
    head = sound.index(pixels.tobytes())
    refused = 0
    for position in (*range(head), *range(head + pixels.size, len(sound))):
        refusal(sound[:position])
        for bit in range(8):
            damaged = bytearray(sound)
            damaged[position] ^= 1 << bit
            try:
                read_batch(bytes(damaged), "labels", 3072, "here")
            except InputError:
                refused += 1
    assert refused > 4 * head  # the rest are labels, names of files and numbers that nobody reads


@pytest.mark.parametrize(
    ("folder", "file", "change", "says"),
    [
        (
            "cifar-10-batches-bin",
            "data_batch_2.bin",
            lambda c: c[:-1],
            "data_batch_2.bin is truncated or no CIFAR file: expected a multiple of 3073 bytes",
        ),
        ("cifar-10-batches-bin", "data_batch_2.bin", lambda _: b"", "expected a multiple of 3073 bytes, got 0"),
        ("cifar-10-batches-bin", "test_batch.bin", lambda c: b"\x0a" + c[1:], "expected 0 to 9, got 10"),
        ("cifar-100-binary", "train.bin", lambda c: c[:1] + b"\x64" + c[2:], "expected 0 to 99, got 100"),
        ("cifar-100-binary", "test.bin", lambda c: c + b"\0", "expected a multiple of 3074 bytes"),
        ("cifar-10-batches-py", "test_batch", lambda c: c[: len(c) // 2], "test_batch is damaged or no CIFAR file"),
        ("cifar-10-batches-py", "data_batch_5", None, "is incomplete: expected data_batch_5"),
        ("cifar-10-batches-bin", "data_batch_1.bin", None, "is incomplete: expected data_batch_1.bin"),
    ],
)
@pytest.mark.parametrize("packed", [False, True])
def test_damaged_files_are_named(
    folder: str, file: str, change: Callable[[bytes], bytes] | None, says: str, packed: bool, tmp_path: Path
) -> None:
    layout, path = layout_of(folder), tmp_path / folder
    write_layout(path, layout)
    if change is None:
        (path / file).unlink()
    else:
        (path / file).write_bytes(change((path / file).read_bytes()))
    place = pack(path, tmp_path / "any.tar") if packed else path
    with pytest.raises(InputError) as caught:
        data.load_data(str(place))
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_file_beyond_the_limit_is_not_read(tmp_path: Path) -> None:
    layout = layout_of("cifar-10-batches-bin")
    write_layout(tmp_path, layout)
    with (tmp_path / "data_batch_3.bin").open("wb") as file:
        file.truncate(2**28 + 1)  # a hole: takes no space
    with pytest.raises(InputError, match=r"data_batch_3\.bin is too large: expected at most 268435456 bytes"):
        data.load_data(str(tmp_path))


def member(name: str, **fields: Any) -> bytes:
    """The header of a file in an archive."""
    info = tarfile.TarInfo(name)
    for field, value in fields.items():
        setattr(info, field, value)
    return info.tobuf()


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "no readable .tar"),
        (b"hello", "no readable .tar"),
        (gzip.compress(b"hello"), "no readable .tar"),
        (gzip.compress(bytes(20_000))[:-9], "no readable .tar"),
        (gzip.compress(bytes(2**28 + 1), 1), "too large"),
        (member("x/data_batch_1.bin", size=2**30), "no readable .tar"),
        (member("x/data_batch_1.bin", type=tarfile.SYMTYPE, linkname="/etc/passwd") + bytes(1024), "no data set"),
        (member("x", type=tarfile.XHDTYPE, size=2**33) + bytes(1024), ""),
        (member("x", type=tarfile.GNUTYPE_LONGNAME, size=2**33) * 3000, ""),
    ],
    ids=range(9),
)
def test_hostile_archives_are_refused(content: bytes, says: str, tmp_path: Path) -> None:
    (tmp_path / "a.tar.gz").write_bytes(content)
    with pytest.raises(InputError) as caught:
        data.load_data(str(tmp_path / "a.tar.gz"))
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


def test_every_byte_of_a_small_archive_may_be_damaged(tmp_path: Path) -> None:
    layout = layout_of("cifar-100-binary")
    write_layout(tmp_path / layout.folder, layout)
    sound = bytearray(pack(tmp_path / layout.folder, tmp_path / "a.tar").read_bytes())
    buffer = io.BytesIO(bytes(sound))
    with tarfile.open(fileobj=buffer) as archive:
        heads = [entry.offset for entry in archive]
    for position in (place for head in heads for place in range(head, head + 512, 7)):
        damaged = bytearray(sound)
        damaged[position] ^= 0x15
        (tmp_path / "a.tar").write_bytes(damaged)
        with contextlib.suppress(InputError):  # harmless in dates and the like
            data.load_data(str(tmp_path / "a.tar"))


def test_another_archive_under_the_known_name_is_refused(tmp_path: Path) -> None:
    write_layout(tmp_path / "cifar-100-binary", layout_of("cifar-100-binary"))
    pack(tmp_path / "cifar-100-binary", tmp_path / "cifar-10-python.tar.gz")
    with pytest.raises(InputError, match=r"holds no cifar10: expected data_batch_1"):
        data.load_data("cifar10", data_dir=tmp_path)


def test_a_missing_archive_is_named_and_a_misspelt_name_corrected(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such file or folder: cifar-10-python"):
        data.load_data("cifar-10-python.tar.gz", data_dir=tmp_path)
    with pytest.raises(UsageError, match=r"did you mean cifar10\?"):
        data.load_data("cifar-10", data_dir=tmp_path)
