"""`atmc-tool selftest` on a network trained on digits: the gate fails every planted fault, and a missed one is said."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import Cli, run_atmc

from atmc_tool.data import load_data
from evaluators.planted_faults import FAULTS, Fault

pytestmark = pytest.mark.xdist_group("digits_run")

BRIEF = "-n 96 --steps 4 --restarts 1 --json"
NETWORK = """
from torch import nn

def network():
    return nn.Sequential(nn.Conv2d(3, 12, 3), nn.ReLU(), nn.Flatten(), nn.Linear(432, 10))
"""


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


def test_what_copies_can_not_meet_is_not_required_of_them(run: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    """A policy that requires the check `providers`, or a signature, failed the honest file."""
    for name in [name for name in FAULTS if name != "input rounded"]:
        monkeypatch.delitem(FAULTS, name)  # type: ignore[arg-type]
    (run / "atmc-run" / "model.atmc").unlink()
    found = faults(cli, run, "--set policy.required=[providers,signature]")
    assert found["input rounded"]["caught"]


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


@pytest.fixture(scope="module")
def colour_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with atmc-run/ of a small network on digits, 0 to 4 in red and the others in blue."""
    folder = tmp_path_factory.mktemp("colour")
    digits, arrays = load_data("digits"), {}
    for part, images in (("train", digits.train), ("test", digits.test)):
        coloured = np.zeros((len(images), 3, *digits.image_shape[1:]), np.uint8)
        channels = np.where(images.labels < 5, 0, 2)
        coloured[np.arange(len(images)), channels] = images.images[:, 0]
        arrays |= {f"x_{part}": coloured, f"y_{part}": images.labels}
    np.savez(folder / "colour.npz", **arrays)
    (folder / "network.py").write_text(NETWORK)
    settings = {"evaluation": {"n": 96, "steps": 4, "restarts": 1}, "data": {"name": "colour.npz"}}
    (folder / "atmc.yaml").write_text(json.dumps({**settings, "attack": {"steps": 2}}))
    for line in (
        "train --arch network.py:network --eps 0.1 --max-steps 80 -o model.pt",
        "compress model.pt --arch network.py:network --keep 0.2 --max-steps 60",
        "export --onnx",
    ):
        done = run_atmc(line, folder)
        assert done.code == 0, f"{line}\n{done.err}"
    return folder


@pytest.mark.parametrize("lone", [False, True])
def test_swapped_channels_are_caught(
    colour_run: Path, tmp_path: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch, lone: bool
) -> None:
    """By model.atmc; and of a lone file, whose colours nothing states, by what it answers to images in RGB."""
    shutil.copytree(colour_run, tmp_path, dirs_exist_ok=True)
    if lone:
        (tmp_path / "atmc-run" / "model.atmc").unlink()
    for name in [name for name in FAULTS if name != "swapped channels"]:
        monkeypatch.delitem(FAULTS, name)  # type: ignore[arg-type]
    swapped = faults(cli, tmp_path)["swapped channels"]
    assert swapped["caught"]
    assert {"normalisation", "clean-loss"} <= {*swapped["right"]}
    assert ("same-logits" in swapped["right"]) != lone
    if not lone:
        assert not {"weight-parity", "source", "metadata"} & {*swapped["failed"]}  # the weights are the honest ones
