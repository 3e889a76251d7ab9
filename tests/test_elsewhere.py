"""Networks that others exported go through `verify`: Caffe2's old files, torch's exporters, and the guide's recipe."""

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import ModelProto, TensorProto, helper, numpy_helper
from onnx_models import loss_of

from evaluators.classifier import OrtClassifier, parse_graph
from evaluators.onnx_adoption import adopted, softmax_input

LIGHT = Path(onnx.__file__).parent / "backend" / "test" / "data" / "light"
GUIDE = Path(__file__).parent.parent / "docs" / "verify.md"


def with_random_weights(model: ModelProto) -> ModelProto:
    """The files of the onnx package have constants in place of weights; their shapes are initialisers."""
    rng, stored = np.random.default_rng(0), {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}
    for node in [node for node in model.graph.node if node.op_type == "ConstantOfShape"]:
        shape = stored[node.input[0]]
        values = rng.standard_normal(shape) / np.sqrt(max(1, np.prod(shape[1:])) / 2)
        values = values if len(shape) > 1 else np.abs(values) / 10 + 0.5  # variances are among them
        model.graph.initializer.append(numpy_helper.from_array(values.astype(np.float32), node.output[0]))
        # IR version 3 lists initialisers as inputs.
        model.graph.input.append(helper.make_tensor_value_info(node.output[0], TensorProto.FLOAT, shape.tolist()))
        model.graph.node.remove(node)
    return model


@pytest.mark.parametrize("name", ["shufflenet", "squeezenet"])
def test_the_gradient_of_caffe2s_networks_is_their_slope(name: str) -> None:
    """Opset 9, a fixed batch of one image, a softmax at the end; squeezenet's output is (1, 1000, 1, 1)."""
    model = with_random_weights(onnx.load(LIGHT / f"light_{name}.onnx"))
    network = OrtClassifier(adopted(model, (3, 224, 224), softmax_input(model)), "cpu", threads=1)
    images, labels = np.random.default_rng(0).random((2, 3, 224, 224), np.float32), np.array([0, 1])
    _, gradient = network.logits_and_gradient(images, labels, "margin")
    length = np.sqrt((gradient.astype(np.float64) ** 2).sum((1, 2, 3)))
    step = (1e-3 * gradient / length[:, None, None, None]).astype(np.float32)
    ahead, behind = (loss_of(network.logits(images + s).astype(np.float64), labels, "margin") for s in (step, -step))
    np.testing.assert_allclose((ahead - behind) / 2e-3, length, rtol=0.01)


def test_a_file_of_another_exporter_passes_the_gate(tmp_path: Path, digits_file: Path) -> None:
    """A linear network: fitted elsewhere, opset 11, one image at a time, a softmax, the image's size left open."""
    report, code = verified(digits_file, tmp_path, "--logits", "scores")
    assert (code, report["logits"]) == (0, "scores")
    assert report["clean"]["accuracy"] > 0.85
    status = {check["name"]: check["status"] for check in report["verdict"]["checks"]}
    assert status["white-box"] == status["gradients"] == status["large-eps"] == "passed"


def test_probabilities_fail_and_the_way_on_is_said(tmp_path: Path, digits_file: Path) -> None:
    report, code = verified(digits_file, tmp_path)
    assert code == 5
    assert "logits" in [check["name"] for check in report["verdict"]["checks"] if check["status"] == "failed"]


def verified(file: Path, output: Path, *options: str) -> tuple[dict[str, Any], int]:
    attack = ["--eps", "0.05", "--steps", "3", "--restarts", "1", "-n", "60", "--min-robust", "0.1"]
    command = [sys.executable, "-m", "atmc_tool", "verify", str(file), "--data", "digits", *attack, "-o", str(output)]
    done = subprocess.run([*command, *options], capture_output=True, text=True, check=False)
    assert ("--logits scores" in done.stderr) != bool(options), done.stderr
    return json.loads((output / "digits.verify.json").read_text()), done.returncode


@pytest.fixture(scope="module")
def digits_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A logistic regression of scikit-learn on digits, as an ONNX file written here by hand."""
    from sklearn.datasets import load_digits
    from sklearn.linear_model import LogisticRegression

    digits = load_digits()
    fitted = LogisticRegression(max_iter=1000).fit(digits.data[:1200] / 16, digits.target[:1200])
    model = onnx.parser.parse_model(
        """<ir_version: 6, opset_import: ["": 11]> g (float[1,1,H,W] image) => (float[1,10] prob)
        { flat = Flatten(image) scores = Gemm<transB=1>(flat, w, b) prob = Softmax(scores) }"""
    )
    arrays = {"w": fitted.coef_, "b": fitted.intercept_}
    model.graph.initializer.extend(numpy_helper.from_array(a.astype(np.float32), name) for name, a in arrays.items())
    path = tmp_path_factory.mktemp("elsewhere") / "digits.onnx"
    path.write_bytes(model.SerializeToString())
    return path


def recipe() -> str:
    """The guide's code that puts a normalisation in front."""
    section = GUIDE.read_text().split("## Files from elsewhere")[1]
    (code,) = re.findall(r"```python\n(.*?)```", section, re.DOTALL)
    return str(code)


def test_the_guides_recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = "g (float[N,3,H,W] x) => (float[N,3] y) { r = Relu(x) y = ReduceMean<axes=[2, 3], keepdims=0>(r) }"
    onnx.save(onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["": 17]> {text}'), tmp_path / "network.onnx")
    monkeypatch.chdir(tmp_path)
    exec(recipe(), {})
    raw = adopted(parse_graph((tmp_path / "raw.onnx").read_bytes()), (3, 224, 224))
    images: NDArray[np.float32] = np.random.default_rng(0).random((2, 3, 224, 224), np.float32)
    mean, std = (np.reshape(v, (3, 1, 1)) for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    expected = np.maximum((images - mean) / std, 0).mean((2, 3))
    np.testing.assert_allclose(OrtClassifier(raw, "cpu", threads=1).logits(images), expected, rtol=1e-4)
