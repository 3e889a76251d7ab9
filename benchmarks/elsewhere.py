"""Networks that others made and exported, through `verify` and its gradient; writes benchmarks/results/elsewhere.json.

    python benchmarks/elsewhere.py --checkpoint resnet20-cifar10.th --data cifar10-jpeg.zip

Two parts, the first left out without its files:

- a ResNet-20 that another project trained on CIFAR-10, with its normalisation in front, exported by both of torch's
  exporters, and by the older one with opset 11: its gradient against torch's, and `atmc-tool verify`;
- the networks that the onnx package tests runtimes with, which Caffe2 exported with opset 9, with random weights in
  place of constant ones: slopes along the gradient against differences.
"""

import argparse
import io
import json
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from onnx import ModelProto, helper, numpy_helper
from torch import nn

from atmc_tool.machine import machine
from atmc_tool.models.normalized import NormalizedNetwork
from atmc_tool.models.reading import choose_architecture, fitted_network, read_model
from evaluators.classifier import OrtClassifier
from evaluators.onnx_adoption import adopted, softmax_input

RESULT = Path(__file__).parent / "results" / "elsewhere.json"
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
EXPORTERS: dict[str, dict[str, Any]] = {
    "torch.onnx, dynamo": {"dynamo": True, "dynamic_shapes": ({0: "N"},), "external_data": False, "verbose": False},
    "torch.onnx, TorchScript, opset 17": {"dynamo": False, "opset_version": 17},
    "torch.onnx, TorchScript, opset 11": {"dynamo": False, "opset_version": 11},
}
VERIFY = [
    "--eps",
    "1/255",
    "--steps",
    "10",
    "--restarts",
    "1",
    "-n",
    "512",
    "--min-clean",
    "0.7",
    "--min-robust",
    "0.1",
]


def export(network: nn.Module, images: torch.Tensor, options: dict[str, Any]) -> bytes:
    """The ONNX file that torch makes of the network, of any batch size."""
    buffer = io.BytesIO()
    names: dict[str, Any] = {"input_names": ["image"], "output_names": ["logits"]}
    if not options["dynamo"]:
        names["dynamic_axes"] = {"image": {0: "N"}, "logits": {0: "N"}}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(network, (images,), buffer, **names, **options)
    return buffer.getvalue()


def gradient_error(network: nn.Module, content: bytes, images: torch.Tensor, labels: torch.Tensor) -> float:
    """Largest difference from torch's gradient of the cross-entropy, of its largest element."""
    leaf = images.clone().requires_grad_()
    F.cross_entropy(network(leaf), labels, reduction="sum").backward()
    assert leaf.grad is not None
    classifier = OrtClassifier(content, "cpu", threads=1)
    _, got = classifier.logits_and_gradient(images.numpy(), labels.numpy(), "cross_entropy")
    return float(np.abs(got - leaf.grad.numpy()).max() / leaf.grad.abs().max())


def pretrained(checkpoint: Path, data: Path) -> Iterator[dict[str, Any]]:
    """One row for each exporter."""
    file = read_model(checkpoint)
    network = NormalizedNetwork(fitted_network(choose_architecture(file, None), file.state), MEAN, STD).eval()
    images, labels = torch.rand(16, 3, 32, 32, generator=torch.Generator().manual_seed(0)), torch.arange(16) % 10
    for name, options in EXPORTERS.items():
        content = export(network, images[:2], options)
        row: dict[str, Any] = {"exporter": name, "bytes": len(content)}
        row["opset"] = onnx.load_from_string(content).opset_import[0].version
        row["gradient error"] = gradient_error(network, content, images, labels)
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "resnet20.onnx"
            path.write_bytes(content)
            command = [sys.executable, "-m", "atmc_tool", "verify", str(path), "--data", str(data), *VERIFY, "-q"]
            start = time.perf_counter()
            row["exit code"] = subprocess.run(command, stdout=subprocess.DEVNULL, check=False).returncode
            row["seconds"] = round(time.perf_counter() - start)
            report = json.loads((Path(folder) / "verify.json").read_text())
        row |= {"clean": report["clean"]["accuracy"], "robust": report["robust"]["accuracy"]}
        row["attacks"] = {attack["name"]: attack["accuracy"] for attack in report["attacks"]}
        checks = report["verdict"]["checks"]
        row["failed"] = [check["name"] for check in checks if check["status"] == "failed"]
        yield row


def random_weights(model: ModelProto) -> ModelProto:
    """The model with normal numbers in place of the constants that stand for its weights."""
    rng, stored = np.random.default_rng(0), {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}
    nodes = [node for node in model.graph.node if node.op_type != "ConstantOfShape"]
    for node in model.graph.node:
        if node.op_type == "ConstantOfShape":
            shape = stored[node.input[0]]
            values = rng.standard_normal(shape) / np.sqrt(max(1, np.prod(shape[1:])) / 2)
            values = values if len(shape) > 1 else np.abs(values) / 10 + 0.5  # variances among them
            model.graph.initializer.append(numpy_helper.from_array(values.astype(np.float32), node.output[0]))
            info = helper.make_tensor_value_info(node.output[0], onnx.TensorProto.FLOAT, shape.tolist())
            model.graph.input.append(info)  # as IR version 3 wants it
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    return model


def slope_error(classifier: OrtClassifier, images: NDArray[np.float32], step: float) -> float:
    """Of the margin along its own gradient: difference quotient against the gradient's length, relative."""
    labels = np.arange(len(images))
    rows = np.arange(len(images))

    def margins(x: NDArray[np.float32]) -> NDArray[np.float64]:
        logits = classifier.logits(x).astype(np.float64)
        own = logits[rows, labels].copy()
        logits[rows, labels] = -np.inf
        return np.asarray(logits.max(1) - own)

    _, gradient = classifier.logits_and_gradient(images, labels, "margin")
    length = np.sqrt((gradient.astype(np.float64) ** 2).sum((1, 2, 3), keepdims=True))
    ahead, behind = (images + s * (gradient / length).astype(np.float32) for s in (step, -step))
    slopes = (margins(ahead) - margins(behind)) / (2 * step)
    return float(np.abs(slopes / length.ravel() - 1).max())


def caffe2() -> Iterator[dict[str, Any]]:
    """One row for each network of the onnx package."""
    folder = Path(onnx.__file__).parent / "backend" / "test" / "data" / "light"
    for path in sorted(folder.glob("*.onnx")):
        model = random_weights(onnx.load(path))
        row: dict[str, Any] = {"network": path.stem.removeprefix("light_"), "opset": model.opset_import[0].version}
        network = adopted(model, (3, 224, 224), softmax_input(model))
        classifier = OrtClassifier(network, "cpu", threads=1)
        images = np.random.default_rng(0).random((2, 3, 224, 224), np.float32)
        row["slope error"] = min(slope_error(classifier, images, step) for step in (1e-2, 1e-3, 1e-4))
        yield row


def main() -> None:
    """Measure and write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", type=Path)
    parser.add_argument("--data", type=Path)
    arguments = parser.parse_args()
    result: dict[str, Any] = json.loads(RESULT.read_text()) if RESULT.exists() else {}
    result["command"] = "python benchmarks/elsewhere.py --checkpoint resnet20-cifar10.th --data cifar10-jpeg.zip"
    result["machine"] = machine(torch.device("cpu"))
    result["versions"] = {"torch": torch.__version__, "onnxruntime": onnxruntime.__version__, "onnx": onnx.__version__}
    parts = {"caffe2": caffe2()}
    if arguments.checkpoint and arguments.data:
        parts = {"pretrained": pretrained(arguments.checkpoint, arguments.data), **parts}
    for part, rows in parts.items():
        result[part] = []
        for row in rows:
            print(json.dumps(row), flush=True)
            result[part].append(row)
            RESULT.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
