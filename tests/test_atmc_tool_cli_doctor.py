import json
from pathlib import Path

import pytest
import torch
from conftest import Cli, environment_without, run_atmc


def test_what_is_there(cli: Cli, tmp_path: Path) -> None:
    facts = json.loads(cli("doctor --json", tmp_path).out)
    assert facts["packages"]["torch"] == torch.__version__
    assert facts["onnxruntime_providers"]["cpu"] == "works"
    assert facts["missing_essentials"] == []
    shown = cli("doctor", tmp_path)
    assert (shown.code, shown.err) == (0, "")
    assert "onnxruntime cpu: works" in shown.out


def test_a_missing_essential_is_named_with_exit_code_3(tmp_path: Path) -> None:
    failed = run_atmc("doctor", tmp_path, environment_without(("safetensors",), tmp_path / "site"))
    assert failed.code == 3
    assert failed.error == "error: missing packages: safetensors. Hint: install atmc-tool again with pip"


def test_a_machine_that_only_verifies_needs_no_torch(tmp_path: Path) -> None:
    done = run_atmc("doctor --json", tmp_path, environment_without(("torch", "functorch"), tmp_path / "site"))
    assert done.code == 0, done.err
    assert json.loads(done.out)["packages"]["torch"] is None


def test_the_data_folder(cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for value, found in ((str(tmp_path), True), (str(tmp_path / "no"), False)):
        monkeypatch.setenv("ATMC_DATA_DIR", value)
        assert json.loads(cli("doctor --json", tmp_path).out)["data_dir"] == {"ATMC_DATA_DIR": value, "found": found}
