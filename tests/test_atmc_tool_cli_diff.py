"""`atmc-tool diff`: every planted difference is named, with the exit code of `diff`."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from compressed_networks import digits_network
from conftest import Cli, Outcome

from atmc_tool.compressed import CompressedModel, CompressedWeight, sparsify
from exporters.atmc_file import encode_model


@pytest.fixture(scope="module")
def model() -> CompressedModel:
    return digits_network(metrics={"compressed": {"clean_accuracy": 0.9}})


def compared(a: CompressedModel, b: CompressedModel, folder: Path, cli: Cli) -> tuple[Outcome, dict[str, Any]]:
    """What `diff` prints, and what `diff --json` does."""
    for name, each in (("a", a), ("b", b)):
        (folder / f"{name}.atmc").write_bytes(encode_model(each))
    shown, plain = cli("diff a.atmc b.atmc", folder), cli("diff a.atmc b.atmc --json", folder)
    assert shown.code == plain.code
    assert (shown.err, plain.err) == ("", "")
    return shown, json.loads(plain.out)


def with_layer(model: CompressedModel, name: str, weight: CompressedWeight | None) -> CompressedModel:
    others = {key: value for key, value in model.weights.items() if key != name}
    return replace(model, weights=others if weight is None else {**others, name: weight})


def test_equal_files(model: CompressedModel, tmp_path: Path, cli: Cli) -> None:
    shown, facts = compared(model, model, tmp_path, cli)
    assert shown.code == 0
    assert shown.out.splitlines()[-1] == "equal, byte for byte"
    assert facts["equal"]
    assert {layer["change"] for layer in facts["layers"]} == {"none"}
    assert facts["facts"] == {}
    assert facts["files"][0]["sha256"] == facts["files"][1]["sha256"]


def test_values_that_differ_are_counted(model: CompressedModel, tmp_path: Path, cli: Cli) -> None:
    dense = model.weights["fc2.weight"].dense()
    changed = dense.copy()
    changed[0, :3] += np.array([0.5, -0.25, 0.125], np.float32)
    other = with_layer(model, "fc2.weight", CompressedWeight((10, 128), {"V": sparsify(changed, quantized=True)}))
    shown, facts = compared(model, other, tmp_path, cli)
    assert shown.code == 1
    assert shown.out.splitlines()[-1] == "different networks"
    (layer,) = [layer for layer in facts["layers"] if layer["change"] != "none"]
    assert (layer["name"], layer["change"], layer["differing"]) == ("fc2.weight", "values", 3)
    assert layer["largest_difference"] == pytest.approx(0.5, rel=1e-6)
    assert layer["second"]["kept"] == np.count_nonzero(changed)
    assert "1 of 8 tensors differ" in shown.out


def test_layers_that_are_added_removed_and_of_another_shape(model: CompressedModel, tmp_path: Path, cli: Cli) -> None:
    small = CompressedWeight((10, 64), {"V": sparsify(np.eye(10, 64, dtype=np.float32), quantized=True)})
    first = with_layer(model, "conv1.weight", None)
    second = with_layer(with_layer(model, "fc1.weight", None), "fc2.weight", small)
    shown, facts = compared(first, second, tmp_path, cli)
    changes = {layer["name"]: layer["change"] for layer in facts["layers"] if layer["change"] != "none"}
    assert changes == {"conv1.weight": "added", "fc1.weight": "removed", "fc2.weight": "shape"}
    assert "10×128 → 10×64" in shown.out
    assert shown.code == 1


def test_other_tensors_the_graph_and_facts(model: CompressedModel, tmp_path: Path, cli: Cli) -> None:
    metrics = {"compressed": {"clean_accuracy": 0.8, "n": 3}}
    bias = {**model.rest, "fc2.bias": model.rest["fc2.bias"] + np.float32(1)}
    other = replace(
        model, rest=bias, skeleton=model.skeleton + b"\x00", manifest={**model.manifest, "metrics": metrics}
    )
    shown, facts = compared(model, other, tmp_path, cli)
    assert [layer["name"] for layer in facts["layers"] if layer["change"] == "values"] == ["fc2.bias"]
    assert facts["graph"]
    assert facts["facts"] == {
        "metrics.compressed.clean_accuracy": [0.9, 0.8],
        "metrics.compressed.n": [None, 3],
    }
    assert "the graphs differ" in shown.out


def test_the_same_network_in_different_files(model: CompressedModel, tmp_path: Path, cli: Cli) -> None:
    plain = sparsify(model.weights["fc2.weight"].dense(), quantized=False)
    other = with_layer(model, "fc2.weight", CompressedWeight((10, 128), {"V": plain}))
    shown, facts = compared(model, other, tmp_path, cli)
    assert shown.code == 1
    assert "different files, the same network" in shown.out
    assert facts["same_network"]
    (layer,) = [layer for layer in facts["layers"] if layer["change"] != "none"]
    assert (layer["change"], layer["differing"], layer["second"]["bits"]) == ("stored", 0, 32)


def test_files_that_can_not_be_compared(model: CompressedModel, tmp_path: Path, cli: Cli) -> None:
    content = encode_model(model)
    (tmp_path / "a.atmc").write_bytes(content)
    (tmp_path / "b.atmc").write_bytes(content[:-1])
    for line, message in (("a.atmc c.atmc", "c.atmc is not there"), ("a.atmc b.atmc", "b.atmc can't be used")):
        failed = cli(f"diff {line}", tmp_path)
        assert failed.code == 4
        assert message in failed.error
    assert cli("diff a.atmc", tmp_path).code == 2


def test_run_folders_are_compared_by_their_files(model: CompressedModel, tmp_path: Path, cli: Cli) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "model.atmc").write_bytes(encode_model(model))
    done = cli("diff a b/model.atmc", tmp_path)
    assert (done.code, done.out.splitlines()[-1]) == (0, "equal, byte for byte")
    failed = cli("diff a c", tmp_path)
    assert failed.code == 4
    assert "c/model.atmc is not there" in failed.error or "c is not there" in failed.error
