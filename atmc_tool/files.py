"""Files that are either whole or absent: temporary file, fsync, rename; and their digests."""

import glob
import hashlib
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from io import BufferedReader
from pathlib import Path
from typing import BinaryIO

from atmc_tool.errors import AtmcError, InputError

TEMPORARY = ".tmp"  # what the name of a file that is being written ends in
HINT = "free space or choose another folder with -o"


def write_atomic(path: Path, content: bytes, *, hint: str = HINT) -> None:
    """Write `content` to `path` so that a reader sees the old file or the new one, never a part; see `writing`."""
    with writing(path, hint=hint) as file:
        file.write(content)


@contextmanager
def writing(path: Path, *, hint: str = HINT) -> Iterator[BinaryIO]:
    """A file to write, which takes the place of `path` where the block ends without an error, whole and on the disk.

    A process that is killed here leaves a temporary file beside `path`: `remove_leftovers`.

    Raises:
        AtmcError: the file could not be written (no space, no permission).
        Whatever else the block raises. In either case nothing is left behind.
    """
    temporary: Path | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=TEMPORARY, dir=path.parent)
        temporary = Path(name)
        with os.fdopen(descriptor, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.chmod(0o666 & ~_umask())
        temporary.replace(path)
    except BaseException as error:
        if temporary is not None:
            temporary.unlink(missing_ok=True)
        if isinstance(error, OSError):
            raise AtmcError(f"can't write {path}: {error.strerror or error}", hint=hint) from error
        raise


def leftovers(folder: Path, name: str = "*") -> list[Path]:
    """Temporary files in `folder` of unfinished writes of files called `name`, by default of any."""
    return sorted(folder.glob(f".{name if name == '*' else glob.escape(name)}.????????{TEMPORARY}"))


def remove(path: Path) -> None:
    """Remove the file `path`, if it is there.

    Raises:
        AtmcError: it could not be removed.
    """
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        raise AtmcError(f"can't remove {path}: {error.strerror}") from error


def remove_leftovers(folder: Path, name: str = "*") -> None:
    """Remove `leftovers`; call it only where no other process writes."""
    for path in leftovers(folder, name):
        path.unlink(missing_ok=True)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def read_bytes(path: Path, limit: int) -> bytes:
    """The content of `path`; see `reading`."""
    with reading(path, limit) as file:
        return file.read()


@contextmanager
def reading(path: Path, limit: int) -> Iterator[BufferedReader]:
    """The file `path` to read.

    Raises:
        InputError: no such file, not a file, not readable, or larger than `limit` bytes.
    """
    try:
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            if size > limit:
                raise InputError(f"{path} is too large", expected=f"at most {limit} bytes", got=f"{size} bytes")
            yield file
    except OSError as error:
        raise InputError(f"can't read {path}: {error.strerror or error}") from error


def sha256(content: bytes) -> str:
    """Hexadecimal SHA-256 of `content`."""
    return hashlib.sha256(content).hexdigest()
