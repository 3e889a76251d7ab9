"""The files of a folder or of an archive behind one face; an archive is read in place, nothing is extracted."""

import gzip
import io
import os
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from atmc_tool.errors import InputError
from atmc_tool.files import reading

PARTS = ("train", "test", "val")
MAX_TAR_BYTES = 2**28
"""Of an archive, before and after it is unzipped; CIFAR's are about 180 MB."""
CHUNK = 2**20


@dataclass(frozen=True)
class FileTree:
    """sizes: bytes of each file by its path inside the tree, with `/`; read: the content of one, from any thread."""

    where: Path
    sizes: Mapping[str, int]
    read: Callable[[str], bytes]


def open_tree(path: Path) -> FileTree:
    """The parts in a folder, or the files of a zip archive, in which one folder around everything is left out.

    The archive stays open as long as the tree lives.

    Raises:
        InputError: not readable, or no zip archive.
    """
    try:
        if path.is_dir():
            return FileTree(path, dict(_walk(path)), lambda name: (path / name).read_bytes())
        archive = zipfile.ZipFile(path)
        entries = {entry.filename: entry for entry in archive.infolist() if not entry.is_dir()}
    except (OSError, zipfile.BadZipFile) as error:
        kind = "folder" if path.is_dir() else "zip archive"
        raise InputError(f"{path} is no readable {kind}", got=f"{type(error).__name__}: {error}") from error
    top = _common_folder(list(entries))
    sizes = {name.removeprefix(top): entry.file_size for name, entry in entries.items()}
    return FileTree(path, sizes, lambda name: archive.read(entries[top + name]))


def flat_tree(path: Path) -> FileTree:
    """The files directly in a folder, or those of a .tar or .tar.gz, in which one folder around them is left out.

    Raises:
        InputError: not readable, no such archive, or larger than 256 MiB.
    """
    try:
        if path.is_dir():
            sizes = {file.name: file.stat().st_size for file in path.iterdir() if file.is_file()}
            return FileTree(path, sizes, lambda name: (path / name).read_bytes())
        # Wholly in memory: no header of the archive can then make its reader take more than is there.
        archive = tarfile.open(fileobj=io.BytesIO(_unzipped(path)), mode="r:")  # noqa: SIM115 - read from later
        entries = {entry.name.removeprefix("./"): entry for entry in archive if entry.isreg() and not entry.issparse()}
    except (OSError, EOFError, ValueError, OverflowError, RecursionError, tarfile.TarError, zlib.error) as error:
        kind = "folder" if path.is_dir() else ".tar or .tar.gz archive"
        raise InputError(f"{path} is no readable {kind}", got=f"{type(error).__name__}: {error}") from error
    top = _common_folder(list(entries))

    def read(name: str) -> bytes:
        file = archive.extractfile(entries[top + name])
        return file.read() if file else b""

    return FileTree(path, {name.removeprefix(top): entry.size for name, entry in entries.items()}, read)


def _unzipped(path: Path) -> bytes:
    """The content of a file, gzip or not."""
    content = bytearray()  # grows with what is really there
    with reading(path, MAX_TAR_BYTES) as file:
        zipped = file.read(2) == b"\x1f\x8b"
        file.seek(0)
        stream = gzip.GzipFile(fileobj=file) if zipped else file
        while chunk := stream.read(CHUNK):
            content += chunk
            if len(content) > MAX_TAR_BYTES:
                raise InputError(f"{path} is too large", expected=f"at most {MAX_TAR_BYTES} bytes when unzipped")
    return bytes(content)


def _walk(folder: Path) -> Iterator[tuple[str, int]]:
    for part in filter(lambda part: (folder / part).is_dir(), PARTS):
        yield from _files(str(folder / part), f"{part}/")


def _files(folder: str, prefix: str) -> Iterator[tuple[str, int]]:
    """(path, bytes) of every file below `folder`. Plain strings: ImageNet has 1.3 million files."""
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.is_dir():
                yield from _files(entry.path, f"{prefix}{entry.name}/")
            else:
                yield f"{prefix}{entry.name}", entry.stat().st_size


def _common_folder(names: list[str]) -> str:
    """`cifar/` where every name begins with it and it isn't a part itself, else nothing."""
    tops = {name.partition("/")[0] for name in names if "/" in name and not name.startswith("__MACOSX/")}
    return f"{tops.pop()}/" if len(tops) == 1 and not tops & set(PARTS) else ""
