import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import Cli

pytestmark = pytest.mark.xdist_group("digits_run")

WEIGHTS = {
    "conv1.weight": [32, 1, 3, 3],
    "conv2.weight": [64, 32, 3, 3],
    "fc1.weight": [128, 256],
    "fc2.weight": [10, 128],
}


@pytest.fixture
def facts(digits_run: Path, tmp_path: Path, cli: Cli) -> dict[str, Any]:
    """Suffix → what `inspect --json` says of the file, for one network in all its forms."""
    shutil.copytree(digits_run, tmp_path, dirs_exist_ok=True)
    assert cli("unpack", tmp_path).code == 0
    paths = ["model.pt", *(f"atmc-run/model{suffix}" for suffix in (".atmc", ".onnx", ".safetensors"))]
    return {Path(path).suffix: json.loads(cli(f"inspect {path} --json", tmp_path).out) for path in paths}


def test_every_form_of_a_network_says_the_same_of_its_weights(facts: dict[str, Any], tmp_path: Path) -> None:
    layers = {suffix: {layer["name"]: layer for layer in fact["layers"]} for suffix, fact in facts.items()}
    for name, shape in WEIGHTS.items():
        assert all(each[name]["shape"] == shape for suffix, each in layers.items() if suffix != ".onnx")
        compressed = [layers[suffix][name] for suffix in (".atmc", ".safetensors")]
        assert len({layer["kept"] for layer in compressed}) == 1
        assert len({layer["values"] for layer in compressed}) == 1
        assert compressed[0]["kept"] < layers[".pt"][name]["kept"]
        assert layers[".atmc"][name]["bits"] == 4
        smaller = layers[".onnx"][name]["shape"]  # without channels that do nothing
        assert all(size <= whole for size, whole in zip(smaller, shape, strict=True))
        assert layers[".pt"][name]["bytes"] == 4 * np.prod(shape)
    for suffix, fact in facts.items():
        path = tmp_path / ("model.pt" if suffix == ".pt" else f"atmc-run/model{suffix}")
        assert fact["bytes"] == path.stat().st_size
        assert fact["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
    assert sum(layer["bytes"] for layer in facts[".onnx"]["layers"]) < facts[".onnx"]["bytes"]
    assert facts[".onnx"]["metadata"]["atmc_tool.source_sha256"] == facts[".atmc"]["sha256"]
    assert facts[".pt"]["card"]["arch"] == facts[".atmc"]["manifest"]["card"]["arch"] == "digits-cnn"


def test_a_run_folder_lists_its_files(digits_run: Path, cli: Cli) -> None:
    shown = cli("inspect atmc-run", digits_run)
    assert (shown.code, shown.err) == (0, "")
    assert all(name in shown.out for name in ("config.yaml", "model.atmc", "model.onnx", "conv2.weight", "64×32×3×3"))
    failed = cli("inspect model.train/checkpoints", digits_run)
    assert failed.code == 4
    assert "is no run folder" in failed.error


def test_an_unknown_kind(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "x.bin").write_bytes(b"x")
    failed = cli("inspect x.bin", tmp_path)
    assert failed.code == 4
    assert "x.bin is of no known kind: expected .atmc, .onnx" in failed.error
