"""The user's own code by name: the only place that imports it."""

import difflib
import hashlib
import importlib
import importlib.util
import re
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

from atmc_tool.errors import InputError, UsageError

SPEC = re.compile(r"(?P<module>.+\.py|[A-Za-z_][\w.]*):(?P<name>[A-Za-z_]\w*)")


def is_callable_spec(spec: str) -> bool:
    """Whether `spec` has the form `pkg.mod:callable` or `file.py:callable`."""
    return SPEC.fullmatch(spec) is not None


def load_callable(spec: str) -> Callable[..., Any]:
    """The callable that `pkg.mod:callable` or `file.py:callable` names; this runs the code of that module.

    Modules are searched for as usual and then in the current folder; a file may import its neighbours.

    Raises:
        UsageError: not of that form, no such module, no such name in it, or not callable.
        InputError: no such file, or the code fails when it is imported.
    """
    match = SPEC.fullmatch(spec)
    if match is None:
        raise UsageError("not a callable", expected="pkg.mod:callable or file.py:callable", got=repr(spec))
    source, name = match["module"], match["name"]
    module = _import_file(Path(source).expanduser()) if source.endswith(".py") else _import_module(source)
    if not hasattr(module, name):
        near = difflib.get_close_matches(name, dir(module), n=1)
        raise UsageError(f"{source} has no {name}", hint=f"did you mean {near[0]}?" if near else "")
    value = getattr(module, name)
    if not callable(value):
        raise UsageError(f"{spec} can't be called", expected="a function or class", got=type(value).__name__)
    return value  # type: ignore[no-any-return]  # what it returns is checked where it is called


def _import_module(name: str) -> ModuleType:
    _make_importable(Path.cwd())
    importlib.invalidate_caches()
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is not None and (name == error.name or name.startswith(f"{error.name}.")):
            raise UsageError(
                f"no module {name}", hint="install it, run where it is, or give file.py:callable"
            ) from error
        raise _failed(name, error) from error
    except (Exception, SystemExit) as error:  # user's code, any error
        raise _failed(name, error) from error


def _import_file(path: Path) -> ModuleType:
    """The module of a file; the same module when it is asked for again, so that its classes are the same."""
    if not path.is_file():
        raise InputError(f"no such file: {path}", expected="a Python file")
    path = path.resolve()
    name = f"{path.stem}_{hashlib.sha256(str(path).encode()).hexdigest()[:12]}"
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise InputError(f"{path} can't be imported", expected="a Python file")
    module = importlib.util.module_from_spec(spec)
    _make_importable(path.parent)
    sys.modules[name] = module  # dataclasses and pickle look their module up there
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:  # user's code, any error
        del sys.modules[name]
        raise _failed(str(path), error) from error
    return module


def _make_importable(folder: Path) -> None:
    if str(folder) not in sys.path:
        sys.path.append(str(folder))  # last: a file of the user's hides no installed module


def _failed(source: str, error: BaseException) -> InputError:
    return InputError(f"{source} fails when imported", got=f"{type(error).__name__}: {error}")
