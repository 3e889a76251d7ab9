"""metrics.jsonl: a JSON object per line, one line per epoch; what a killed run left half written is no line."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from atmc_tool.errors import AtmcError
from atmc_tool.files import write_atomic

METRICS = "metrics.jsonl"


def append_metrics(path: Path, line: Mapping[str, Any]) -> None:
    """Add `line` to `path`.

    Raises:
        AtmcError: it could not be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a") as file:
            file.write(json.dumps(line) + "\n")
    except OSError as error:
        hint = "free space, then go on with --resume"
        raise AtmcError(f"can't write {path}: {error.strerror or error}", hint=hint) from error


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The whole lines of `path` that say of which step they are; none where there is no file."""
    try:
        text = path.read_text(errors="replace")
    except FileNotFoundError:
        return []
    found = []
    for line in text.splitlines():
        try:
            value = json.loads(line)
        except json.JSONDecodeError:
            continue
        if isinstance(value, dict) and isinstance(value.get("step"), int):
            found.append(value)
    return found


def trim_metrics(path: Path, step: int, rollbacks: int = 0) -> None:
    """Drop what a killed run wrote after `step` or after its rollback number `rollbacks`, and what is no whole line."""
    lines = [line for line in read_metrics(path) if line["step"] <= step and line.get("rollback", 0) <= rollbacks]
    kept = "".join(json.dumps(line) + "\n" for line in lines).encode()
    if path.exists() and path.read_bytes() != kept:
        write_atomic(path, kept)
