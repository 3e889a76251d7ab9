"""Small ONNX classifiers written as text, and slow references for their losses and gradients."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx
import onnxruntime
from numpy.typing import ArrayLike, NDArray
from onnx import ModelProto, TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator
from onnx.reference.op_run import OpRun
from scipy.special import erf

SHAPE = (4, 6, 6)
CLASSES = 5


def classifier(
    body: str, constants: Mapping[str, ArrayLike] | None = None, shape: tuple[int, ...] = SHAPE, opset: int = 21
) -> ModelProto:
    """A classifier of `image` (N, *shape): x = image − centre, `body` computes y from x, logits = flat y · `head`."""
    dims = ",".join(map(str, shape))
    head = f'<ir_version: 10, opset_import: ["": {opset}]> g (float[N,{dims}] image) => (float[N,F] f)'
    model = onnx.parser.parse_model(f"{head} {{ x = Sub(image, centre)\n{body}\nf = Flatten(y) }}")
    rng = np.random.default_rng(0)
    arrays = {"centre": rng.uniform(0.3, 0.7, shape).astype(np.float32), **(constants or {})}
    model.graph.initializer.extend(numpy_helper.from_array(np.asarray(value), name) for name, value in arrays.items())
    size = run(model, {"image": np.zeros((3, *shape), np.float32)}).shape[1]
    weight = rng.standard_normal((size, CLASSES)) / np.sqrt(size)
    model.graph.initializer.append(numpy_helper.from_array(weight.astype(np.float32), "head"))
    model.graph.node.append(helper.make_node("MatMul", ["f", "head"], ["logits"], name="head"))
    model.graph.output[0].CopyFrom(helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["N", CLASSES]))
    onnx.checker.check_model(model, full_check=True)
    return model


def run(model: ModelProto, fed: Mapping[str, NDArray[Any]]) -> NDArray[Any]:
    """The first output, by onnxruntime on one thread, of the inputs in `fed` that the model has."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 4
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    output: NDArray[Any] = session.run(None, {info.name: fed[info.name] for info in session.get_inputs()})[0]
    return output


def batch(shape: tuple[int, ...] = SHAPE, n: int = 3, seed: int = 1) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Random images in [0, 1] and labels."""
    rng = np.random.default_rng(seed)
    return rng.random((n, *shape), np.float32), rng.integers(0, CLASSES, n)


class Gelu(OpRun):
    """onnx's own computes the error function in float32."""

    op_domain = ""

    def _run(self, x: NDArray[Any], approximate: str | None = None) -> tuple[NDArray[Any]]:
        u = np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)
        return (x / 2 * (1 + (np.tanh(u) if approximate == "tanh" else erf(x / np.sqrt(2)))),)


class Erf(OpRun):
    """onnx's own computes it in float32."""

    op_domain = ""

    def _run(self, x: NDArray[Any]) -> tuple[NDArray[Any]]:
        return (erf(x),)


def reference_logits(model: ModelProto, images: NDArray[np.float64]) -> NDArray[np.float64]:
    """Logits in double precision, by onnx's own slow implementation of the operators."""
    evaluator = ReferenceEvaluator(as_double(model), new_ops=[Erf, Gelu])
    logits: NDArray[np.float64] = evaluator.run(None, {model.graph.input[0].name: images})[0]
    return logits


def loss_of(logits: NDArray[Any], labels: NDArray[np.int64], loss: str) -> NDArray[Any]:
    """The loss of each sample, (N,)."""
    rows = np.arange(len(labels))
    own = logits[rows, labels]
    if loss == "cross_entropy":
        top = logits.max(1)
        return np.log(np.exp(logits - top[:, None]).sum(1)) + top - own
    others = logits.copy()
    others[rows, labels] = -np.inf
    return others.max(1) - own


def as_double(model: ModelProto) -> ModelProto:
    """The model with every float32 made float64."""
    double = ModelProto()
    double.CopyFrom(model)
    for info in (*double.graph.input, *double.graph.output):
        info.type.tensor_type.elem_type = TensorProto.DOUBLE
    for tensor in double.graph.initializer:
        if tensor.data_type == TensorProto.FLOAT:
            tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.float64), tensor.name))
    for node in double.graph.node:
        if node.op_type == "GroupNormalization":
            node.attribute.append(helper.make_attribute("stash_type", TensorProto.DOUBLE))
        for attribute in node.attribute:
            if attribute.name == "to" and attribute.i == TensorProto.FLOAT:
                attribute.i = TensorProto.DOUBLE
    return double


def relative_error(got: NDArray[Any], expected: NDArray[Any]) -> float:
    """‖got − expected‖ / ‖expected‖."""
    return float(np.linalg.norm(got - expected) / np.linalg.norm(expected))
