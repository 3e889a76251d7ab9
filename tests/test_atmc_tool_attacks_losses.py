"""The losses of attacks: their values against the papers' formulas, their gradients in torch, NumPy and onnxruntime."""

import numpy as np
import onnx
import pytest
import torch
from numpy_classifiers import Mlp, output_gradient
from onnx import helper, numpy_helper
from test_atmc_tool_attacks_pgd import as_torch

from atmc_tool.attacks.losses import loss_values
from evaluators.classifier import OrtClassifier

LOSSES = ("cross_entropy", "margin", "dlr")


def samples(classes: int, n: int = 40) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(classes)
    labels = rng.integers(0, classes, n)
    logits = rng.normal(size=(n, classes)).astype(np.float32)
    return logits, labels, (labels + rng.integers(1, classes, n)) % classes


def by_hand(z: np.ndarray, y: int, loss: str, t: int | None) -> float:
    """Croce & Hein 2020 (arXiv:2003.01690), equations 6 and 7, and what stands there before; one sample, in float64."""
    p = np.exp(z) / np.exp(z).sum()
    if loss == "cross_entropy":
        return float(-np.log(p[y]) if t is None else np.log(p[t]))
    rise = float(max(z[j] for j in range(len(z)) if j != y) - z[y] if t is None else z[t] - z[y])
    s = sorted(z, reverse=True)
    if loss == "dlr" and t is None and len(z) >= 3:
        return rise / (s[0] - s[2])
    if loss == "dlr" and t is not None and len(z) >= 4:
        return rise / (s[0] - (s[2] + s[3]) / 2)
    return rise


@pytest.mark.parametrize("targeted", [False, True])
@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("classes", [2, 3, 4, 10])
def test_values_and_gradients(classes: int, loss: str, targeted: bool) -> None:
    logits, labels, targets = samples(classes)
    towards = targets if targeted else None
    expected = [
        by_hand(z.astype(np.float64), y, loss, t if targeted else None)
        for z, y, t in zip(logits, labels, targets, strict=True)
    ]
    values = loss_values(logits, labels, loss, towards)
    np.testing.assert_allclose(values, expected, rtol=1e-4, atol=1e-5)
    leaf = torch.from_numpy(logits).requires_grad_()
    tensors = [None if array is None else torch.from_numpy(array) for array in (labels, towards)]
    tensor_values = loss_values(leaf, tensors[0], loss, tensors[1])
    np.testing.assert_allclose(tensor_values.detach(), values, rtol=1e-5, atol=1e-6)
    (gradient,) = torch.autograd.grad(tensor_values.sum(), leaf)
    np.testing.assert_allclose(output_gradient(logits, labels, loss, towards), gradient, rtol=1e-4, atol=1e-5)


def as_onnx(linear: Mlp) -> OrtClassifier:
    """Flatten and Gemm: a linear classifier of 1 × 3 × 4 images."""
    nodes = [
        helper.make_node("Flatten", ["x"], ["flat"], name="flatten"),
        helper.make_node("Gemm", ["flat", "w", "b"], ["z"], name="gemm"),
    ]
    arrays = {"w": np.float32(linear.scale) * linear.readout, "b": np.float32(linear.scale) * linear.bias}
    graph = helper.make_graph(
        nodes,
        "linear",
        [helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, ["N", 1, 3, 4])],
        [helper.make_tensor_value_info("z", onnx.TensorProto.FLOAT, ["N", linear.bias.size])],
        [numpy_helper.from_array(array, name) for name, array in arrays.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    return OrtClassifier(model, "cpu", threads=1)


@pytest.mark.parametrize("targeted", [False, True])
@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("classes", [2, 3, 4, 10])
def test_torch_onnxruntime_and_numpy_agree(classes: int, loss: str, targeted: bool) -> None:
    rng = np.random.default_rng(0)
    images = rng.random((40, 1, 3, 4), dtype=np.float32)
    _, labels, targets = samples(classes)
    towards = targets if targeted else None
    network = Mlp(
        rng.normal(size=(5, classes)).astype(np.float32),
        rng.normal(size=classes).astype(np.float32),
        rng.normal(size=(12, 5)).astype(np.float32),
        rng.normal(size=5).astype(np.float32),
    )
    logits, gradient = network.logits_and_gradient(images, labels, loss, towards)
    tensors = [None if array is None else torch.from_numpy(array) for array in (images, labels, towards)]
    in_torch = as_torch(network).logits_and_gradient(tensors[0], tensors[1], loss, tensors[2])
    for ours, theirs in zip((logits, gradient), in_torch, strict=True):
        np.testing.assert_allclose(theirs, ours, rtol=1e-3, atol=1e-4 * np.abs(ours).max())
    linear = Mlp(rng.normal(size=(12, classes)).astype(np.float32), rng.normal(size=classes).astype(np.float32))
    expected = linear.logits_and_gradient(images, labels, loss, towards)
    for ours, theirs in zip(expected, as_onnx(linear).logits_and_gradient(images, labels, loss, towards), strict=True):
        np.testing.assert_allclose(theirs, ours, rtol=1e-3, atol=1e-4 * np.abs(ours).max())
