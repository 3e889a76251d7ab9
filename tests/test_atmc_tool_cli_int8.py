"""`export --int8` and `verify` of what it makes, on a network trained on digits."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from conftest import Cli

from atmc_tool.data import load_data
from evaluators.accuracy import images_digest
from exporters.atmc_file import encode_model, read_atmc

pytestmark = pytest.mark.xdist_group("digits_run")


@pytest.fixture
def run(digits_run: Path, tmp_path: Path, cli: Cli) -> Path:
    shutil.copytree(digits_run, tmp_path, dirs_exist_ok=True)
    done = cli("export --int8 --json", tmp_path)
    assert done.code == 0, done.err
    assert json.loads(done.out)["files"][0]["path"] == "atmc-run/model.int8.onnx"
    return tmp_path


def test_verify_judges_it_like_any_other_file(run: Path, cli: Cli) -> None:
    done = cli("verify atmc-run/model.int8.onnx --max-drop 0.05 --json", run)
    assert done.code == 0, done.err
    report = json.loads(done.out)
    assert report["clean"]["accuracy"] == pytest.approx(report["recorded"]["clean_accuracy"], abs=0.05)
    assert report["attacks"][0]["accuracy"] == pytest.approx(report["recorded"]["robust_accuracy"], abs=0.05)
    checks = {check["name"]: check for check in report["verdict"]["checks"]}
    assert {check["status"] for check in checks.values()} <= {"passed", "not applied"}
    for name in ("source", "weight-parity", "white-box", "gradients", "robust-drop", "determinism"):
        assert checks[name]["status"] == "passed", name
    assert checks["weight-parity"]["reason"].startswith("int8: 8 tensors within half a step")


def test_it_is_calibrated_on_training_images_and_says_which(run: Path, cli: Cli) -> None:
    facts = json.loads(cli("inspect atmc-run/model.int8.onnx --json", run).out)
    stated = facts["metadata"]["atmc_tool.int8"]
    data = load_data("digits")
    pixels = {image.tobytes() for image in data.train.read().images}
    assert "atmc_tool.removed" in facts["metadata"]  # filters that do nothing are not computed in int8 either
    assert stated["data"] == "digits"
    assert stated["images"] == 256
    every = [images_digest(part.read().images, part.labels) for part in (data.train, data.validation, data.test)]
    assert stated["sha256"] not in every
    assert not pixels & {image.tobytes() for image in data.test.read().images}
    assert {layer["name"]: layer["bits"] for layer in facts["layers"] if layer["name"].endswith(".weight")} == {
        "conv1.weight": 8,
        "conv2.weight": 8,
        "fc1.weight": 8,
        "fc2.weight": 8,
    }


def test_without_the_source_the_weights_are_not_judged(run: Path, cli: Cli) -> None:
    shutil.move(run / "atmc-run" / "model.int8.onnx", run / "model.int8.onnx")
    (run / "atmc-run" / "model.atmc").unlink()
    report = json.loads(cli("verify model.int8.onnx --json", run).out)
    checks = {check["name"]: check["status"] for check in report["verdict"]["checks"]}
    assert checks["source"] == checks["weight-parity"] == "not applied"


def test_another_network_is_found_out(run: Path, cli: Cli) -> None:
    path = run / "atmc-run" / "model.atmc"
    model = read_atmc(path)
    model.rest["fc2.bias"][:] += np.float32(0.5)  # type: ignore[index]
    path.write_bytes(encode_model(model))
    failed = cli("verify atmc-run/model.int8.onnx", run)
    assert failed.code == 5
    assert "weight-parity: int8: 1 of 8 tensors differ: fc2.bias" in failed.err


def test_what_can_not_be(run: Path, cli: Cli) -> None:
    for line, code, message in (
        ("export --onnx --int8 -o x.onnx", 2, "-o names one file"),
        ("export --onnx --overwrite --data digits", 2, "--data and --data-dir are for --int8"),
        ("export --onnx --overwrite --data-dir .", 2, "--data and --data-dir are for --int8"),
        ("export --int8", 2, "atmc-run/model.int8.onnx exists. Hint: --overwrite"),
        ("export --int8 --overwrite --data nothing.npz", 4, "nothing.npz"),
    ):
        failed = cli(line, run)
        assert failed.code == code, failed.err
        assert message in failed.error
    zeros = {f"x_{part}": np.zeros((20, 9, 9), np.uint8) for part in ("train", "test")}
    np.savez(run / "other.npz", **zeros, **{f"y_{part}": np.arange(20) % 10 for part in ("train", "test")})
    failed = cli("export --int8 --overwrite --data other.npz", run)
    assert failed.code == 4
    assert "do not fit the network: expected (1, 8, 8), got (1, 9, 9)" in failed.error
