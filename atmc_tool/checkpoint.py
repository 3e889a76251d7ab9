"""Checkpoints of a run: whole or absent, with a digest, read without executing code."""

import io
import pickle
import re
from pathlib import Path
from typing import Any

import torch

from atmc_tool.errors import InputError
from atmc_tool.files import read_bytes, remove_leftovers, sha256, write_atomic

MAX_CHECKPOINT_BYTES = 64 << 30
KEPT_CHECKPOINTS = 2
_NAME = re.compile(r"step-(\d+)\.ckpt")


def save_checkpoint(folder: Path, step: int, state: dict[str, Any], *, keep: int | None = None) -> None:
    """Write `folder/step-<step>.ckpt` (64 hexadecimal digits of SHA-256, then torch's format).

    The last two are kept, and that of step `keep`.

    Raises:
        AtmcError: the file could not be written; older checkpoints are untouched.
    """
    buffer = io.BytesIO()
    torch.save(state, buffer)
    content = buffer.getvalue()
    hint = "free space, then go on with --resume"
    write_atomic(folder / _name(step), sha256(content).encode() + content, hint=hint)
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
        content = read_bytes(path, MAX_CHECKPOINT_BYTES)
        if sha256(content[64:]).encode() != content[:64]:
            continue
        try:
            state: dict[str, Any] = torch.load(io.BytesIO(content[64:]), map_location="cpu", weights_only=True)
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
