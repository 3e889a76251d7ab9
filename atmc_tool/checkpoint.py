"""Checkpoints of a run: whole or absent, with a digest, read without executing code."""

import hashlib
import pickle
import re
from pathlib import Path
from typing import Any, BinaryIO

import torch

from atmc_tool.errors import InputError
from atmc_tool.files import reading, remove_leftovers, writing

MAX_CHECKPOINT_BYTES = 64 << 30
KEPT_CHECKPOINTS = 2
DIGEST_BYTES = 64  # in front of torch's bytes
_NAME = re.compile(r"step-(\d+)\.ckpt")


def save_checkpoint(folder: Path, step: int, state: dict[str, Any], *, keep: int | None = None) -> None:
    """Write `folder/step-<step>.ckpt` (64 hexadecimal digits of SHA-256, then torch's format).

    The last two are kept, and that of step `keep`. It goes to the file tensor by tensor: of what is on the CPU there is
    no copy in memory.

    Raises:
        AtmcError: the file could not be written; older checkpoints are untouched.
    """
    with writing(folder / _name(step), hint="free space, then go on with --resume") as file:
        file.write(bytes(DIGEST_BYTES))
        content = _Digested(file)
        torch.save(state, content)  # type: ignore[arg-type]  # it needs no more than `write` and `flush`
        file.seek(0)
        file.write(content.digest())
    for old in _checkpoints(folder)[KEPT_CHECKPOINTS:]:
        if old.name != _name(keep):
            old.unlink(missing_ok=True)


def has_checkpoint(folder: Path) -> bool:
    """Whether there is any, whole or damaged."""
    return bool(_checkpoints(folder))


def drop_checkpoints(folder: Path, after: int) -> None:
    """Remove the checkpoints of later steps than `after`, the newest first: being killed here does no harm."""
    for path in _checkpoints(folder):
        if path.name == _name(after):
            return
        path.unlink(missing_ok=True)


def load_checkpoint(folder: Path) -> dict[str, Any] | None:
    """The newest checkpoint that is whole, on the CPU, or None where there is none.

    What a killed write left there is removed.

    Raises:
        InputError: there are checkpoints and none is whole.
    """
    remove_leftovers(folder)
    files = _checkpoints(folder)
    for path in files:
        with reading(path, MAX_CHECKPOINT_BYTES) as file:
            digest = file.read(DIGEST_BYTES)
            if hashlib.file_digest(file, "sha256").hexdigest().encode() != digest:
                continue
            file.seek(DIGEST_BYTES)
            try:
                state: dict[str, Any] = torch.load(file, map_location="cpu", weights_only=True)
            except (pickle.UnpicklingError, RuntimeError):
                continue
        return state
    if files:
        raise InputError(f"no checkpoint in {folder} is whole", hint="start again with --overwrite")
    return None


def _name(step: int | None) -> str:
    return f"step-{step}.ckpt"


def _checkpoints(folder: Path) -> list[Path]:
    """Checkpoint files, newest first."""
    found = [(int(match[1]), path) for path in folder.glob("step-*.ckpt") if (match := _NAME.fullmatch(path.name))]
    return [path for _, path in sorted(found, reverse=True)]


class _Digested:
    """A file that torch writes to, and the SHA-256 of what it wrote."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._sha256 = hashlib.sha256()
        self._error: OSError | None = None

    def write(self, content: memoryview) -> int:
        self._sha256.update(content)
        if self._error is None:
            try:
                self._file.write(content)
            except OSError as error:  # torch would make a RuntimeError of it that does not say what it was
                self._error = error
        return len(content)

    def flush(self) -> None:
        """Nothing: the file is flushed when it is whole."""

    def digest(self) -> bytes:
        """64 hexadecimal digits.

        Raises:
            OSError: something could not be written.
        """
        if self._error is not None:
            raise self._error
        return self._sha256.hexdigest().encode()
