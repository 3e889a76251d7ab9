"""Where a command writes: a folder, or one that an fsspec URL names, with a copy of it on this machine."""

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path, PurePosixPath
from tempfile import TemporaryDirectory
from typing import Any

from atmc_tool.errors import AtmcError, InputError, MissingEnvironmentError
from atmc_tool.files import TEMPORARY

URL = re.compile(r"[a-z][a-z0-9+.-]+://.+")


@dataclass(frozen=True)
class OutputFolder:
    """A folder to write into.

    path: on this machine
    name: as the user wrote it
    keep: makes what the user named equal to `path`
    """

    path: Path
    name: str
    keep: Callable[[], None] = lambda: None


@contextmanager
def output_folder(output: str) -> Iterator[OutputFolder]:
    """The folder `output`. Of a URL: a copy, gone at the end, when for the last time what was changed is written back.

    Raises:
        MissingEnvironmentError: a package for such URLs is not installed.
        AtmcError: it can't be read or written.
    """
    if URL.fullmatch(output) is None:
        yield OutputFolder(Path(output), str(Path(output)))
        return
    if find_spec("fsspec") is None:
        hint = "pip install 'atmc-tool[cluster]', or name a folder"
        raise MissingEnvironmentError(f"{output} needs a package that is not installed", hint=hint)
    import fsspec

    try:
        files, root = fsspec.core.url_to_fs(output)
    except (ImportError, ValueError) as error:
        raise MissingEnvironmentError(f"can't use {output}", got=str(error)) from error
    with TemporaryDirectory(prefix="atmc-") as folder:
        copy = _Copy(files, root.rstrip("/"), Path(folder) / "output", output)
        copy.read()
        try:
            yield OutputFolder(copy.path, output.rstrip("/"), copy.write_back)
        finally:
            copy.write_back()


class _Copy:
    """Files beneath `root` of a file system of fsspec, and the same beneath `path` of this machine."""

    def __init__(self, files: Any, root: str, path: Path, name: str) -> None:
        self._files, self._root, self.path, self._name = files, root, path, name
        self._known: dict[str, tuple[int, int]] = {}  # as both have them

    def read(self) -> None:
        """Bring everything here."""
        with self._errors("read"):
            found = self._files.find(self._root) if self._files.exists(self._root) else []
        for each in sorted((path.removeprefix(self._root).lstrip("/") for path in found), key=_order):
            if ".." in PurePosixPath(each).parts:
                raise InputError(f"{self._name} holds a path that leads out of it", got=each)
            (self.path / each).parent.mkdir(parents=True, exist_ok=True)
            with self._errors("read"):
                self._files.get_file(f"{self._root}/{each}", str(self.path / each))
        self._known = self._state()

    def write_back(self) -> None:
        """Write what is new or changed here, remove what is gone. Results come after the runs that they are of."""
        state = self._state()
        with self._errors("write"):
            for each in sorted(state, key=_order):
                if self._known.get(each) != state[each] and (self.path / each).is_file():
                    self._files.makedirs(f"{self._root}/{each}".rpartition("/")[0], exist_ok=True)
                    self._files.put_file(str(self.path / each), f"{self._root}/{each}")
            for gone in self._known.keys() - state.keys():
                self._files.rm_file(f"{self._root}/{gone}")
        self._known = state

    def _state(self) -> dict[str, tuple[int, int]]:
        found = {}
        for path in self.path.rglob("*"):
            if path.suffix != TEMPORARY and path.is_file():
                with suppress(FileNotFoundError):  # a run at work removes its old checkpoints
                    found[path.relative_to(self.path).as_posix()] = _version(path)
        return found

    @contextmanager
    def _errors(self, what: str) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # every file system has its own
            raise AtmcError(f"can't {what} {self._name}: {type(error).__name__}: {error}") from error


def _version(path: Path) -> tuple[int, int]:
    facts = path.stat()
    return facts.st_size, facts.st_mtime_ns


def _order(path: str) -> tuple[int, str]:
    """Inner files first: a network beside its run is the newer one, as where it was made."""
    return -path.count("/"), path
