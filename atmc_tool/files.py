"""Files that are either whole or absent: temporary file, fsync, rename; and their digests."""

import glob
import hashlib
import os
import tempfile
from pathlib import Path

from atmc_tool.errors import AtmcError, InputError

TEMPORARY = ".tmp"  # what the name of a file that is being written ends in


def write_atomic(path: Path, content: bytes, *, hint: str = "free space or choose another folder with -o") -> None:
    """Write `content` to `path` so that a reader sees the old file or the new one, never a part.

    A process that is killed here leaves a temporary file beside `path`: `remove_leftovers`.

    Raises:
        AtmcError: the file could not be written (no space, no permission); nothing is left behind.
    """
    temporary: Path | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=TEMPORARY, dir=path.parent)
        temporary = Path(name)
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.chmod(0o666 & ~_umask())
        temporary.replace(path)
    except OSError as error:
        if temporary is not None:
            temporary.unlink(missing_ok=True)
        raise AtmcError(f"can't write {path}: {error.strerror or error}", hint=hint) from error


def leftovers(folder: Path, name: str = "*") -> list[Path]:
    """Temporary files in `folder` of unfinished writes of files called `name`, by default of any."""
    return sorted(folder.glob(f".{name if name == '*' else glob.escape(name)}.????????{TEMPORARY}"))


def remove_leftovers(folder: Path, name: str = "*") -> None:
    """Remove `leftovers`; call it only where no other process writes."""
    for path in leftovers(folder, name):
        path.unlink(missing_ok=True)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def read_bytes(path: Path, limit: int) -> bytes:
    """The content of `path`.

    Raises:
        InputError: no such file, not a file, not readable, or larger than `limit` bytes.
    """
    try:
        size = path.stat().st_size
        if size > limit:
            raise InputError(f"{path} is too large", expected=f"at most {limit} bytes", got=f"{size} bytes")
        return path.read_bytes()
    except OSError as error:
        raise InputError(f"can't read {path}: {error.strerror or error}") from error


def sha256(content: bytes) -> str:
    """Hexadecimal SHA-256 of `content`."""
    return hashlib.sha256(content).hexdigest()
