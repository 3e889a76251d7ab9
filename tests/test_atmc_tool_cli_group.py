import os
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT, Cli, run_atmc

from atmc_tool.cli import COMMANDS

HEAVY = ("torch", "onnxruntime", "onnx", "numpy", "scipy", "pydantic", "rich")


def test_help_lists_every_command_and_says_what_exit_codes_mean(cli: Cli, tmp_path: Path) -> None:
    shown = cli("--help", tmp_path)
    assert shown.code == 0
    assert all(name in shown.out for name in COMMANDS)
    assert "5 gate failed" in " ".join(shown.out.split())


@pytest.mark.parametrize("command", COMMANDS)
def test_help_of_a_command_has_an_example(command: str, cli: Cli, tmp_path: Path) -> None:
    shown = cli(f"{command} --help", tmp_path)
    assert (shown.code, shown.err) == (0, "")
    assert f"Example: atmc-tool {command}" in shown.out


@pytest.mark.parametrize("line", ["--help", *(f"{command} --help" for command in COMMANDS)])
def test_help_imports_nothing_heavy(line: str, tmp_path: Path) -> None:
    script = (
        "import sys\nfrom atmc_tool.cli import main\n"
        f"try:\n    main({line.split()})\nexcept SystemExit:\n"
        f"    print([name for name in {HEAVY} if name in sys.modules])"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, env=environment, cwd=tmp_path
    )
    assert done.stdout.splitlines()[-1] == "[]"


def test_no_arguments_show_the_help(cli: Cli, tmp_path: Path) -> None:
    shown = cli("", tmp_path)
    assert shown.code == 2
    assert shown.err.startswith("Usage: atmc-tool")
    assert "  compress " in shown.err


def test_version(tmp_path: Path) -> None:
    shown = run_atmc("--version", tmp_path)
    assert shown.code == 0
    assert shown.out.startswith("atmc-tool, version ")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("comprss", "error: no command 'comprss', did you mean compress. Hint: atmc-tool --help"),
        ("verify --min-robst 0.6", "--min-robst"),
        ("export", "error: export to what?: expected --onnx or --int8. Hint: atmc-tool unpack gives the dense weights"),
        ("compress", "Missing argument 'MODEL'. Hint: atmc-tool compress --help"),
        ("verify --provider tpu", "'tpu' is not one of"),
    ],
)
def test_a_wrong_command_line_is_one_line_and_exit_code_2(line: str, message: str, cli: Cli, tmp_path: Path) -> None:
    failed = cli(line, tmp_path)
    assert failed.code == 2
    assert message in failed.error
    assert failed.out == ""


def test_an_internal_error_is_one_line_that_says_how_to_see_more(tmp_path: Path) -> None:
    (tmp_path / "yaml.py").write_text("1 / 0")  # found before the real one
    failed = run_atmc("export --onnx", tmp_path)
    assert failed.code == 1
    assert failed.error.startswith("error: internal: ZeroDivisionError")
    assert "ATMC_DEBUG=1" in failed.error
    assert "Traceback" in run_atmc("export --onnx -v", tmp_path).err


def test_a_reader_that_leaves_is_no_error(tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    line = f"{sys.executable} -m atmc_tool --help | true"
    done = subprocess.run(line, shell=True, capture_output=True, text=True, check=False, env=environment, cwd=tmp_path)
    assert done.stderr == ""
