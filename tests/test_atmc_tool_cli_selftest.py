"""`atmc-tool selftest` on a network trained on digits: the gate fails every planted fault, and a missed one is said."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from conftest import Cli

from evaluators.planted_faults import FAULTS, Fault

pytestmark = pytest.mark.xdist_group("digits_run")

BRIEF = "-n 96 --steps 4 --restarts 1 --json"


@pytest.fixture
def run(digits_run: Path, tmp_path: Path) -> Path:
    """A copy of `digits_run` to change."""
    shutil.copytree(digits_run, tmp_path, dirs_exist_ok=True)
    return tmp_path


def faults(cli: Cli, folder: Path, options: str = "", code: int = 0) -> dict[str, dict[str, Any]]:
    """Name → outcome of every fault."""
    done = cli(f"selftest {BRIEF} {options}", folder)
    assert done.code == code, done.err
    report = json.loads(done.out)
    assert report["passed"] == (code == 0)
    return {fault["name"]: fault for fault in report["faults"]}


def test_every_fault_is_caught_for_the_right_reason(run: Path, cli: Cli) -> None:
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    found = faults(cli, run)
    assert {name for name, fault in found.items() if fault["caught"] is None} == {"swapped channels"}
    assert all(fault["caught"] for name, fault in found.items() if name != "swapped channels")
    assert "determinism" in found["input noise"]["right"]
    assert "source" in found["stale file"]["right"]
    assert found["damaged source"]["reason"].startswith("refused: model.atmc can't be used")
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before


def test_faults_of_behaviour_are_caught_in_a_lone_file(run: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where no model.atmc says what the file should be."""
    (run / "atmc-run" / "model.atmc").unlink()
    for name in ("logits × 1000", "input noise", "softmax", "one weight"):  # as above, or by model.atmc alone
        monkeypatch.delitem(FAULTS, name)  # type: ignore[arg-type]
    found = faults(cli, run, "--set policy.max_robust_loss=0.05")
    caught = {name for name, fault in found.items() if fault["caught"]}
    assert caught == {"input rounded", "logits floored", "normalised twice", "mirrored images", "other weights"}
    assert "clean-loss" in found["mirrored images"]["right"]
    assert {name for name, fault in found.items() if fault["caught"] is None} == {
        *("swapped channels", "stale file", "tampered codebook", "raised record", "damaged source")
    }


def test_what_the_gate_does_not_catch_is_said(run: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(FAULTS):
        monkeypatch.delitem(FAULTS, name)  # type: ignore[arg-type]
    monkeypatch.setitem(FAULTS, "none", Fault("nothing", lambda model: model, frozenset({"gradients"})))  # type: ignore[index]
    found = faults(cli, run, code=1)
    assert found["none"]["caught"] is False
    assert found["none"]["reason"] == "passed"


def test_an_honest_file_that_fails_ends_the_test(run: Path, cli: Cli) -> None:
    found = faults(cli, run, "--set policy.min_robust=0.999", code=5)
    assert found == {}


def test_a_file_into_which_nothing_can_be_planted_is_no_success(
    run: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It ended with 0 and `passed`."""
    (run / "atmc-run" / "model.atmc").unlink()
    for name in [name for name in FAULTS if name != "swapped channels"]:
        monkeypatch.delitem(FAULTS, name)  # type: ignore[arg-type]
    assert all(fault["caught"] is None for fault in faults(cli, run, code=1).values())
