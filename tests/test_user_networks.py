"""Networks as users write them go all the way by the command line: compress, export, verify."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import user_networks
from conftest import ROOT, Cli
from safetensors.torch import load_file
from torch import nn

from atmc_tool.budget import compressible
from atmc_tool.data import load_data
from atmc_tool.torch_classifier import TorchClassifier
from evaluators.classifier import OrtClassifier, optimized_operators, read_onnx

NETWORKS = ["Functional", "Separable", "Rows", "Linear", "Mixer", "ViT", "Encoder", "Tied"]
BRIEF = "evaluation: {n: 24, steps: 2, restarts: 1, square_queries: 5}\n"
SHORT = "--max-steps 2 --set attack.steps=1"
DECODERS = {"CumSum", "ScatterElements", "BitShift", "BitwiseAnd", "BitwiseOr", "ConstantOfShape", "DequantizeLinear"}
# An untrained network may fail what is about accuracy, an attack of two steps what is about its strength; what is about
# the file itself holds for any.
ACCURACY = {"clean-drop", "robust-drop", "robustness-judged", "large-eps", "white-box-strongest", "undefended"}


def write(name: str, folder: Path) -> nn.Module:
    """An untrained network as a plain state dict, model.pt in `folder`, beside its code."""
    torch.manual_seed(1)
    network: nn.Module = getattr(user_networks, name)()
    torch.save(network.state_dict(), folder / "model.pt")
    (folder / "atmc.yaml").write_text(BRIEF)
    shutil.copy(ROOT / "tests" / "user_networks.py", folder)
    return network


@pytest.mark.parametrize("name", NETWORKS)
def test_compress_export_verify(name: str, tmp_path: Path, cli: Cli) -> None:
    network = write(name, tmp_path)
    chosen = f"--arch user_networks.py:{name} --data digits --eps 0.1 --keep 0.5"
    done = cli(f"compress model.pt {chosen} {SHORT} --json", tmp_path)
    assert done.code == 0, done.err
    assert not [line for line in done.err.splitlines() if "warning" in line and "guessing" not in line]
    report = json.loads(done.out)
    assert 0 < report["kept"]["total"] <= 0.5 * report["kept"]["weights"]
    parameters = dict(network.named_parameters())
    assert report["kept"]["weights"] == sum(
        parameter.numel() for key, parameter in parameters.items() if key not in report["not_compressed"]
    )
    for line in ("export --onnx", "unpack"):
        done = cli(line, tmp_path)
        assert done.code == 0, done.err

    done = cli("verify --json", tmp_path)
    assert done.code in (0, 5), done.err
    checks = {check["name"]: check["status"] for check in json.loads(done.out)["verdict"]["checks"]}
    assert {check for check, status in checks.items() if status == "failed"} <= ACCURACY
    for check in ("source", "weight-parity", "logits", "determinism", "white-box", "perturbations", "recomputed"):
        assert checks[check] == "passed", check

    model = read_onnx(tmp_path / "atmc-run" / "model.onnx")
    assert not DECODERS & set(optimized_operators(model))
    state = load_file(tmp_path / "atmc-run" / "model.safetensors")
    network.load_state_dict(state)
    subset = load_data("digits").test.take(np.arange(16))
    rng = np.random.default_rng(0)  # no two pixels alike, for equal maxima share a gradient in more than one way
    images = (0.9 * subset.floats() + 0.1 * rng.random(subset.images.shape)).astype(np.float32)
    classifier = TorchClassifier(network.eval(), dict(network.named_parameters()), (0.0,), (1.0,))
    with torch.no_grad():
        expected = classifier.logits(torch.from_numpy(images)).numpy()
    session = OrtClassifier(model, "cpu", threads=1)
    np.testing.assert_allclose(session.logits(images), expected, atol=1e-5 * max(1, np.abs(expected).max()))
    for loss in ("cross_entropy", "margin"):
        gradient = classifier.logits_and_gradient(torch.from_numpy(images), torch.from_numpy(subset.labels), loss)[
            1
        ].numpy()
        difference = session.logits_and_gradient(images, subset.labels, loss)[1] - gradient
        assert np.linalg.norm(difference) <= 1e-4 * np.linalg.norm(gradient)


def test_what_is_not_compressed_is_listed_with_its_reason(tmp_path: Path, cli: Cli) -> None:
    network = write("ViT", tmp_path)
    done = cli("compress model.pt --arch user_networks.py:ViT --data digits --eps 0.1 --dry-run", tmp_path)
    shown = " ".join(done.out.replace("│", " ").split()).split("Not compressed")
    for parameter, reason in compressible(network)[1].items():
        assert f"{parameter} {reason}" in shown[1]
    for parameter in compressible(network)[0]:
        assert f" {parameter} " in shown[0]


def test_a_tied_weight_is_stored_once_and_has_all_its_names_again(tmp_path: Path, cli: Cli) -> None:
    network = write("Tied", tmp_path)
    line = "compress model.pt --arch user_networks.py:Tied --data digits --eps 0.1"
    assert cli(f"{line} {SHORT}", tmp_path).code == 0
    assert cli("unpack", tmp_path).code == 0
    facts = json.loads(cli("inspect atmc-run/model.atmc --json", tmp_path).out)
    assert "twin.weight" not in {layer["name"] for layer in facts["layers"]}
    assert facts["manifest"]["tied"] == {"twin.weight": "hidden.weight"}
    state = load_file(tmp_path / "atmc-run" / "model.safetensors")
    assert state.keys() == network.state_dict().keys()
    assert torch.equal(state["twin.weight"], state["hidden.weight"])
    assert facts["totals"]["weights"] == sum(p.numel() for p in network.parameters() if p.dim() > 1)
