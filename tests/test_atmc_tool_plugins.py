"""The user's callables: found by module or by file, and every way to fail in one line with its exit code."""

import sys
from pathlib import Path

import pytest

from atmc_tool.errors import AtmcError, InputError, UsageError
from atmc_tool.plugins import is_callable_spec, load_callable


@pytest.fixture(autouse=True)
def _clean_imports(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", list(sys.path))


def test_a_callable_of_an_installed_module() -> None:
    from collections import OrderedDict

    assert load_callable("collections:OrderedDict") is OrderedDict


def test_a_module_of_the_current_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "plugin_package"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "things.py").write_text("def make(): return 7")
    monkeypatch.chdir(tmp_path)
    assert load_callable("plugin_package.things:make")() == 7


def test_a_file_with_a_neighbour_and_a_dataclass(tmp_path: Path) -> None:
    (tmp_path / "plugin_neighbour.py").write_text("VALUE = 8")
    (tmp_path / "mine.py").write_text(
        "from __future__ import annotations\n"
        "from dataclasses import dataclass\n"
        "from plugin_neighbour import VALUE\n"
        "@dataclass\n"
        "class Thing:\n    value: int = VALUE\n"
    )
    thing = load_callable(f"{tmp_path}/mine.py:Thing")
    assert thing().value == 8
    assert load_callable(f"{tmp_path}/mine.py:Thing") is thing


def test_files_of_the_same_name_are_different_modules(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "same.py").write_text(f"def make(): return {name!r}")
    assert [load_callable(f"{tmp_path}/{name}/same.py:make")() for name in ("a", "b")] == ["a", "b"]


def test_a_file_hides_no_installed_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "colorsys", raising=False)
    (tmp_path / "colorsys.py").write_text("def rgb_to_hsv(): return 'hidden'")
    monkeypatch.chdir(tmp_path)
    assert load_callable("colorsys:rgb_to_hsv")(0, 0, 0) == (0, 0, 0)


@pytest.mark.parametrize(
    ("spec", "error", "message"),
    [
        ("nothing", UsageError, "expected pkg.mod:callable or file.py:callable, got 'nothing'"),
        ("a.py:", UsageError, "not a callable"),
        (":f", UsageError, "not a callable"),
        ("no_such_module_here.sub:f", UsageError, "no module no_such_module_here.sub"),
        ("collections.nothing:f", UsageError, "no module collections.nothing"),
        ("collections:OrderedDic", UsageError, "collections has no OrderedDic. Hint: did you mean OrderedDict"),
        ("string:digits", UsageError, "can't be called: expected a function or class, got str"),
        ("no/such/file.py:f", InputError, "no such file: no/such/file.py"),
    ],
)
def test_what_is_wrong_is_named(spec: str, error: type[AtmcError], message: str) -> None:
    with pytest.raises(error, match=message):
        load_callable(spec)


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("def f(:", "fails when imported: got SyntaxError"),
        ("raise ValueError('no\\nluck')", "fails when imported: got ValueError: no luck"),
        ("import sys; sys.exit(0)", "fails when imported: got SystemExit"),
        ("import no_such_module_here", "got ModuleNotFoundError: No module named 'no_such_module_here'"),
    ],
)
@pytest.mark.parametrize("by_file", [False, True])
def test_code_that_fails_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: str, message: str, by_file: bool
) -> None:
    name = f"plugin_broken_{abs(hash((code, by_file)))}"
    (tmp_path / f"{name}.py").write_text(code)
    monkeypatch.chdir(tmp_path)
    spec = f"{name}.py:f" if by_file else f"{name}:f"
    for _ in range(2):  # a failed import leaves nothing behind that a second one would take for the module
        with pytest.raises(InputError, match=message) as caught:
            load_callable(spec)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        ("pkg.mod:f", True),
        ("dir/file.py:f", True),
        (r"C:\data\file.py:f", True),
        (r"C:\data\set.zip", False),
        ("mnist", False),
        ("set.npz", False),
        ("mod:a b", False),
    ],
)
def test_the_form_of_a_spec(spec: str, expected: bool) -> None:
    assert is_callable_spec(spec) is expected
