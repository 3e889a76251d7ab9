"""The files of a folder or of a zip archive behind one face; an archive is read in place, nothing is extracted."""

import os
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from atmc_tool.errors import InputError

PARTS = ("train", "test")


@dataclass(frozen=True)
class FileTree:
    """sizes: bytes of each file by its path inside the tree, with `/`; read: the content of one, from any thread."""

    where: Path
    sizes: Mapping[str, int]
    read: Callable[[str], bytes]


@contextmanager
def open_tree(path: Path) -> Iterator[FileTree]:
    """The parts in a folder, or the files of a zip archive, in which one folder around everything is left out.

    Raises:
        InputError: not readable, or no zip archive.
    """
    try:
        if path.is_dir():
            yield FileTree(path, dict(_walk(path)), lambda name: (path / name).read_bytes())
            return
        with zipfile.ZipFile(path) as archive:
            entries = {entry.filename: entry for entry in archive.infolist() if not entry.is_dir()}
            top = _common_folder(list(entries))
            yield FileTree(
                path,
                {name.removeprefix(top): entry.file_size for name, entry in entries.items()},
                lambda name: archive.read(entries[top + name]),
            )
    except (OSError, zipfile.BadZipFile) as error:
        kind = "folder" if path.is_dir() else "zip archive"
        raise InputError(f"{path} is no readable {kind}", got=f"{type(error).__name__}: {error}") from error


def _walk(folder: Path) -> Iterator[tuple[str, int]]:
    def fail(error: OSError) -> None:
        raise error

    for part in filter(lambda part: (folder / part).is_dir(), PARTS):
        for current, _, names in os.walk(folder / part, onerror=fail, followlinks=True):
            for name in names:
                file = Path(current, name)
                yield file.relative_to(folder).as_posix(), file.stat().st_size


def _common_folder(names: list[str]) -> str:
    """`cifar/` where every name begins with it and it isn't a part itself, else nothing."""
    tops = {name.partition("/")[0] for name in names if "/" in name and not name.startswith("__MACOSX/")}
    return f"{tops.pop()}/" if len(tops) == 1 and not tops & set(PARTS) else ""
