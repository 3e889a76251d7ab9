"""A list of SHA-256 sums that `sha256sum --check` reads."""

import os
from collections.abc import Mapping
from pathlib import Path


def digest_list(folder: Path, digests: Mapping[Path, str]) -> bytes:
    """One line for each file → SHA-256, its path relative to `folder`, in which the list will lie."""
    lines = [_line(Path(os.path.relpath(path, folder)).as_posix(), digest) for path, digest in digests.items()]
    return "".join(lines).encode(errors="surrogateescape")


def _line(name: str, digest: str) -> str:
    escaped = name.replace("\\", "\\\\").replace("\n", "\\n").replace("\r", "\\r")  # as GNU coreutils do it
    return f"{'' if escaped == name else chr(92)}{digest}  {escaped}\n"
