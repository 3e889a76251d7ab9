"""Networks that others made and exported, through `verify` and its gradient; writes benchmarks/results/elsewhere.json.

    python benchmarks/elsewhere.py --checkpoint resnet20-cifar10.th --data cifar10-jpeg.zip

Two parts, the first left out without its files:

- a ResNet-20 that another project trained on CIFAR-10, with its normalisation in front, exported by both of torch's
  exporters, and by the older one with opset 11: its gradient against torch's, and `atmc-tool verify`;
- the networks that the onnx package tests runtimes with, which Caffe2 exported with opset 9, with random weights in
  place of constant ones and batch norms fitted to the image: the gradient against torch's, and against differences,
  both in float64.
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
from onnx_in_torch import TorchNetwork
from torch import Tensor, nn

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
    "-n",
    "64",
    "--eps",
    "1/255",
    "--steps",
    "5",
    "--restarts",
    "1",
    "--set",
    "evaluation.square_queries=50",
    "--min-robust",
    "0.01",
]


def export(network: nn.Module, images: Tensor, options: dict[str, Any]) -> bytes:
    """The ONNX file that torch makes of the network, of any batch size."""
    buffer = io.BytesIO()
    names: dict[str, Any] = {"input_names": ["image"], "output_names": ["logits"]}
    if not options["dynamo"]:
        names["dynamic_axes"] = {"image": {0: "N"}, "logits": {0: "N"}}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(network, (images,), buffer, **names, **options)
    return buffer.getvalue()


def gradient_error(network: nn.Module, content: bytes, images: Tensor, labels: Tensor) -> float:
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
            path = Path(folder) / "model.onnx"
            path.write_bytes(content)
            command = [sys.executable, "-m", "atmc_tool", "verify", str(path), "--data", str(data), *VERIFY, "-q"]
            start = time.perf_counter()
            row["exit code"] = subprocess.run(command, stdout=subprocess.DEVNULL, check=False).returncode
            row["seconds"] = round(time.perf_counter() - start)
            report = json.loads((Path(folder) / "verify.json").read_text())
        row["command"] = " ".join(["atmc-tool verify model.onnx --data cifar10-jpeg.zip", *VERIFY])
        row |= {"n": report["clean"]["n"], "clean": report["clean"]["accuracy"], "robust": report["robust"]["accuracy"]}
        row["attacks"] = {attack["name"]: attack["accuracy"] for attack in report["attacks"]}
        checks = report["verdict"]["checks"]
        row["failed"] = [check["name"] for check in checks if check["status"] == "failed"]
        yield row


def random_weights(model: ModelProto) -> ModelProto:
    """The model with normal numbers in place of the constants that stand for its weights."""
    rng, stored = np.random.default_rng(0), {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}
    nodes = [node for node in model.graph.node if node.op_type != "ConstantOfShape"]
    biases = {node.input[2] for node in nodes if node.op_type in ("Conv", "Gemm") and len(node.input) > 2}
    for node in model.graph.node:
        if node.op_type == "ConstantOfShape":
            shape = stored[node.input[0]]
            values = rng.standard_normal(shape) / np.sqrt(max(1, np.prod(shape[1:])) / 2)
            if len(shape) == 1:  # variances among the others; large biases would leave maxima nearly equal
                values = values / 10 if node.output[0] in biases else np.abs(values) / 10 + 0.5
            model.graph.initializer.append(numpy_helper.from_array(values.astype(np.float32), node.output[0]))
            info = helper.make_tensor_value_info(node.output[0], onnx.TensorProto.FLOAT, shape.tolist())
            model.graph.input.append(info)  # as IR version 3 wants it
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    return model


def caffe2() -> Iterator[dict[str, Any]]:
    """One row for each network of the onnx package, on one image."""
    folder = Path(onnx.__file__).parent / "backend" / "test" / "data" / "light"
    image = torch.rand(1, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    for path in sorted(folder.glob("*.onnx")):
        model = random_weights(onnx.load(path))
        row: dict[str, Any] = {"network": path.stem.removeprefix("light_"), "opset": model.opset_import[0].version}
        reference = TorchNetwork(adopted(model, (3, 224, 224), softmax_input(model)))
        fitted = reference.fit_batch_norms(image.double())
        row |= caffe2_errors(fitted, reference, image)
        yield row


def caffe2_errors(model: ModelProto, reference: TorchNetwork, image: Tensor) -> dict[str, float]:
    """Of the margin's gradient g in float32: ‖g − its reference in float64‖ over the reference's length, with each
    Relu and MaxPool of the reference choosing for itself and as in float32; and how far the difference quotient of the
    reference along g is from ‖g‖, relative, at the best of three steps."""
    classifier = OrtClassifier(model, "cpu", threads=1)
    _, gradient = classifier.logits_and_gradient(image.numpy(), np.array([0]), "margin")
    got, leaf = torch.from_numpy(gradient).double(), image.double().requires_grad_()
    rival = int(reference(leaf)[0, 1:].argmax()) + 1

    def error(computed: dict[str, NDArray[Any]]) -> float:
        logits = reference(leaf, computed)[0]
        (expected,) = torch.autograd.grad(logits[rival] - logits[0], leaf)
        return float((got - expected).norm() / expected.norm())

    slopes = []
    with torch.no_grad():
        for step in (1e-3, 1e-4, 1e-5):
            ahead, behind = (reference(image.double() + s * got / got.norm())[0] for s in (step, -step))
            slopes.append(float((ahead - behind)[rival] - (ahead - behind)[0]) / (2 * step))
    return {
        "gradient's length": float(got.norm()),
        "gradient error": error({}),
        "gradient error, choices as in float32": error(every_value(model, image)),
        "slope error": min(abs(slope / float(got.norm()) - 1) for slope in slopes),
    }


def every_value(model: ModelProto, image: Tensor) -> dict[str, NDArray[Any]]:
    """Name → each value that a Relu or a MaxPool reads, as onnxruntime computes it."""
    every = ModelProto()
    every.CopyFrom(model)
    names = list(dict.fromkeys(node.input[0] for node in every.graph.node if node.op_type in ("Relu", "MaxPool")))
    del every.graph.output[:]
    every.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names)
    session = onnxruntime.InferenceSession(every.SerializeToString(), providers=["CPUExecutionProvider"])
    image_name = session.get_inputs()[0].name
    return dict(zip(names, session.run(names, {image_name: image.numpy()}), strict=True))


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
