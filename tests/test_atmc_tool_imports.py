"""The house's import rules (CONTRIBUTING.md), read from the sources themselves."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("atmc_tool", "exporters", "evaluators")
FILES = sorted(path.relative_to(ROOT) for package in PACKAGES for path in (ROOT / package).rglob("*.py"))

FRONT_DOOR = Path("atmc_tool/__init__.py")  # `atmc_tool.load`, which it imports when it is asked for it

ONNXRUNTIME = {
    Path("evaluators/classifier.py"),
    Path("evaluators/latency.py"),  # measures processes that hold nothing else
    Path("exporters/int8.py"),  # its quantiser
    Path("atmc_tool/cli/doctor.py"),  # says whether it is there
}


def imports(path: Path) -> Iterator[tuple[str, bool]]:
    """(module, at module level?) for every import of the file, but those for type checkers only."""
    tree = ast.parse((ROOT / path).read_text())
    inner = {
        id(node)
        for outer in ast.walk(tree)
        if isinstance(outer, ast.FunctionDef | ast.AsyncFunctionDef)
        for node in ast.walk(outer)
    }
    typing_only = {
        id(node)
        for block in ast.walk(tree)
        if isinstance(block, ast.If) and isinstance(block.test, ast.Name) and block.test.id == "TYPE_CHECKING"
        for node in ast.walk(block)
    }
    for node in ast.walk(tree):
        if id(node) in typing_only:
            continue
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name, id(node) not in inner
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            yield node.module or "", id(node) not in inner


def room(path: Path) -> str:
    return "cli" if path.parts[:2] == ("atmc_tool", "cli") else path.parts[0]


def test_files_are_found() -> None:
    assert len(FILES) > 40


@pytest.mark.parametrize("path", FILES, ids=str)
def test_arrows_go_down_only(path: Path) -> None:
    modules = [module for module, _ in imports(path)]
    tops = {module.split(".")[0] for module in modules}
    here = room(path)
    if here == "exporters":
        assert "evaluators" not in tops
    if here == "evaluators":
        assert "exporters" not in tops
    if here == "atmc_tool" and path != FRONT_DOOR:
        assert not tops & {"exporters", "evaluators"}
    if here != "cli" and path.name != "__main__.py":
        assert not [module for module in modules if module.startswith("atmc_tool.cli")]


@pytest.mark.parametrize("path", FILES, ids=str)
def test_libraries_stay_in_their_rooms(path: Path) -> None:
    tops = {module.split(".")[0] for module, _ in imports(path)}
    if room(path) != "cli":
        assert "click" not in tops
    if path != Path("atmc_tool/cli/render.py"):
        assert "rich" not in tops
    if path not in ONNXRUNTIME:
        assert "onnxruntime" not in tops
    if path != Path("evaluators/report/figures.py"):
        assert "matplotlib" not in tops
    if path != Path("atmc_tool/cli/signature.py"):
        assert "model_signing" not in tops
    if path != Path("atmc_tool/trackers.py"):
        assert not tops & {"mlflow", "tensorboard"}
    if path != Path("atmc_tool/ray_pool.py"):
        assert "ray" not in tops
    if path != Path("atmc_tool/cli/output_folder.py"):
        assert "fsspec" not in tops


@pytest.mark.parametrize("path", FILES, ids=str)
def test_no_torch_at_module_level(path: Path) -> None:
    torch_free = (
        room(path) in ("evaluators", "exporters")
        or path.parts[:2] in (("atmc_tool", "attacks"), ("atmc_tool", "data"))
        or path in (Path("atmc_tool/__init__.py"), Path("atmc_tool/config.py"), Path("atmc_tool/compressed.py"))
    )
    allowed = (Path("exporters/onnx_skeleton.py"), Path("atmc_tool/data/loader.py"))
    if torch_free and path not in allowed:
        assert "torch" not in {module.split(".")[0] for module, top in imports(path) if top}


@pytest.mark.parametrize("path", FILES, ids=str)
def test_a_file_is_about_one_thing(path: Path) -> None:
    assert len((ROOT / path).read_text().splitlines()) <= 350
    assert ast.get_docstring(ast.parse((ROOT / path).read_text())), "say what lives here"
