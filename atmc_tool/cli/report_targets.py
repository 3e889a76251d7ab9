"""Where the reports of `verify` go: never over what it reads, and not over each other."""

from collections.abc import Iterable, Mapping
from pathlib import Path

from atmc_tool.errors import UsageError
from atmc_tool.files import remove


def check_targets(targets: Mapping[str, Path], others: Iterable[Path]) -> None:
    """That every report can be written to a path of its own, without loss of a file of `others`.

    targets: what a report is called → where it goes

    Raises:
        UsageError: a target is a folder, or lies below a file, or is one of `others` or another target.
    """
    taken = {path.resolve(): "a file that it would replace" for path in others}
    for name, path in targets.items():
        above = next((folder for folder in path.parents if folder.exists()), None)
        if path.is_dir() or (above is not None and not above.is_dir()):
            raise UsageError(f"{name} can't be written to {path}", expected="a file in a folder")
        if path.resolve() in taken:
            got = taken[path.resolve()]
            raise UsageError(f"{name} can't be written to {path}", expected="a path of its own", got=got)
        taken[path.resolve()] = f"that of {name}"


def remove_targets(targets: Iterable[Path], baseline: Path | None) -> None:
    """Remove what an earlier verification wrote, but for the `baseline` to compare with.

    Raises:
        AtmcError: a file could not be removed.
    """
    for path in targets:
        if baseline is None or path.resolve() != baseline.resolve():
            remove(path)
