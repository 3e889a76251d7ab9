"""The four IDX files of MNIST and its likes, gzip or not (format: http://yann.lecun.com/exdb/mnist/)."""

import gzip
import math
import struct
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np
from numpy.typing import NDArray

from atmc_tool.data.arrays import checked_images, checked_parts
from atmc_tool.data.data_set import Augmentation, Parts
from atmc_tool.data.download import fetch
from atmc_tool.data.images import MAX_BYTES
from atmc_tool.errors import InputError

FILES = (
    ("train-images-idx3-ubyte", "train-labels-idx1-ubyte"),
    ("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"),
)
UNSIGNED_BYTE = 0x08
CHUNK = 2**20


@dataclass(frozen=True)
class Kind:
    """What the files don't say of themselves."""

    class_names: tuple[str, ...]
    augmentation: Augmentation


KINDS = {
    "mnist": Kind(tuple(map(str, range(10))), Augmentation()),  # centred by its makers
    "fashion-mnist": Kind(
        (
            "T-shirt/top",
            "Trouser",
            "Pullover",
            "Dress",
            "Coat",
            "Sandal",
            "Shirt",
            "Sneaker",
            "Bag",
            "Ankle boot",
        ),
        Augmentation(shift=2, flip=True),
    ),
}


def read_idx_set(name: str, data_dir: Path | None) -> Parts:
    """`mnist` or `fashion-mnist` from `data_dir`/name, from `data_dir` itself, or downloaded into the user's cache.

    Raises:
        InputError: a file is missing or damaged, or nothing is there and the network isn't either.
    """
    folders = [] if data_dir is None else [data_dir / name, data_dir]
    found = next((folder for folder in folders if has_idx(folder)), None)
    if found is None:
        found = fetch(name, [f"{file}.gz" for pair in FILES for file in pair], wanted=data_dir)
    return read_idx_folder(found, KINDS[name])


def has_idx(folder: Path) -> bool:
    """Whether one of the four files is there."""
    return any(_find(folder, file) for pair in FILES for file in pair)


def read_idx_folder(folder: Path, kind: Kind | None) -> Parts:
    """The four files of `folder`; where their kind is not known, the classes are 0 … the largest training label.

    Raises:
        InputError: a file is missing or damaged, or the files don't fit one another.
    """
    paths = [[_find(folder, file) for file in pair] for pair in FILES]
    missing = [
        file
        for pair, found in zip(FILES, paths, strict=True)
        for file, path in zip(pair, found, strict=True)
        if not path
    ]
    if missing:
        what = f"{folder} has no labels" if all("labels" in file for file in missing) else f"{folder} is incomplete"
        raise InputError(what, expected=f"{', '.join(missing)} (.gz or not)", got="no such file")
    train, test = (
        checked_images(read_idx(images, axes=3), read_idx(labels, axes=1), str(images))
        for images, labels in paths
        if images and labels
    )
    kind = kind or Kind(tuple(map(str, range(int(train.labels.max()) + 1))), Augmentation())
    return checked_parts(Parts(train, test, kind.class_names, kind.augmentation), str(folder))


def _find(folder: Path, file: str) -> Path | None:
    return next((path for path in (folder / file, folder / f"{file}.gz") if path.is_file()), None)


def read_idx(path: Path, axes: int) -> NDArray[np.uint8]:
    """One IDX file of unsigned bytes with `axes` axes: 3 for images (n, H, W), 1 for labels (n,).

    Raises:
        InputError: unreadable, not such a file, or shorter or longer than its header says.
    """
    try:
        with path.open("rb") as file:
            zipped = file.read(2) == b"\x1f\x8b"
            file.seek(0)
            return _read_stream(gzip.GzipFile(fileobj=file) if zipped else file, axes, str(path))
    except (OSError, EOFError, zlib.error) as error:
        raise InputError(f"{path} is damaged or not readable", got=f"{type(error).__name__}: {error}") from error


def _read_stream(stream: IO[bytes] | gzip.GzipFile, axes: int, where: str) -> NDArray[np.uint8]:
    magic = bytes([0, 0, UNSIGNED_BYTE, axes])
    header = stream.read(4 + 4 * axes)
    if header[:4] != magic:
        kind = "images" if axes == 3 else "labels"
        raise InputError(
            f"{where} is no IDX file of {kind}",
            expected=f"magic {magic.hex()}",
            got=header[:4].hex() or "an empty file",
        )
    if len(header) < 4 + 4 * axes:
        raise InputError(f"{where} is truncated", expected=f"{4 + 4 * axes} bytes of header", got=len(header))
    shape = struct.unpack(f">{axes}I", header[4:])
    size = math.prod(shape)
    if size > MAX_BYTES:
        raise InputError(f"{where}: its header claims too much", expected=f"at most {MAX_BYTES} bytes", got=size)
    content = bytearray()  # grows with what is really there: a header costs its author nothing
    while chunk := stream.read(min(CHUNK, size + 1 - len(content))):
        content += chunk
    if len(content) != size:
        got = f"{len(content)}{' or more' if len(content) > size else ''}"
        raise InputError(f"{where} is truncated or too long", expected=f"{size} bytes of content", got=got)
    return np.frombuffer(content, np.uint8).reshape(shape)
