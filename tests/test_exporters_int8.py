"""The int8 file: it computes the network nearly, with the compressed weights in steps, and says what it is of."""

import json
from collections import Counter
from dataclasses import replace

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from compressed_networks import CARD, compressed_network, digits_network, random_images
from numpy.typing import NDArray
from onnx import ModelProto, numpy_helper
from torch import nn
from user_networks import Functional, Mixer, Separable, ViT

from atmc_tool.compressed import CompressedModel, CompressedWeight, sparsify
from atmc_tool.errors import AtmcError
from atmc_tool.models import ARCHITECTURES, find_architecture
from evaluators.classifier import OrtClassifier, decoded_weights, optimized_operators, parse_onnx
from evaluators.int8_parity import int8_parity
from exporters.float_graph import float_graph, parameters
from exporters.int8 import int8_onnx
from exporters.onnx_file import build_onnx

DIGEST = "0" * 64


def model_of(network: nn.Module, shape: tuple[int, int, int] = (1, 8, 8)) -> CompressedModel:
    generator = torch.Generator().manual_seed(0)
    for name, tensor in network.state_dict().items():
        if name.endswith("running_var"):
            tensor.uniform_(0.5, 2, generator=generator)
        if name.endswith("running_mean"):
            tensor.normal_(0, 0.5, generator=generator)
    return compressed_network(network, CARD.model_copy(update={"image_shape": shape}), keep=0.3)


def small_resnet() -> nn.Module:
    architecture = find_architecture("wrn-16-1")
    assert architecture is not None
    return architecture.build()


@pytest.fixture(scope="module")
def digits() -> CompressedModel:
    return digits_network()


@pytest.fixture(scope="module")
def digits_int8(digits: CompressedModel) -> ModelProto:
    content = int8_onnx(digits, DIGEST, random_images((1, 8, 8), 64, seed=1), {"images": 64})
    return parse_onnx(content)


def run(content: bytes, images: NDArray[np.float32]) -> NDArray[np.float32]:
    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    logits: NDArray[np.float32] = session.run(["logits"], {"input": images})[0]
    return logits


NETWORKS = {
    "resnet20": (lambda: ARCHITECTURES["resnet20"].build(), (3, 16, 16)),
    "norms before convolutions": (small_resnet, (3, 16, 16)),
    "a convolution that runs twice": (Functional, (1, 8, 8)),
    "mixer": (Mixer, (1, 8, 8)),
    "vit": (ViT, (1, 8, 8)),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_the_graph_for_the_quantiser_and_the_int8_file_compute_the_network(name: str) -> None:
    torch.manual_seed(0)
    make, shape = NETWORKS[name]
    model, images = model_of(make(), shape), random_images(shape, 16)
    expected = run(build_onnx(model, DIGEST, dense=True), images)
    folded = float_graph(model, DIGEST)
    largest = np.abs(expected).max()
    np.testing.assert_allclose(run(folded.SerializeToString(), images), expected, atol=1e-5 * largest)
    arrays = {tensor.name for tensor in folded.graph.initializer}
    makers = {output: node.op_type for node in folded.graph.node for output in node.output}
    uses = Counter(value for node in folded.graph.node for value in node.input)
    for node in folded.graph.node:
        if node.op_type == "BatchNormalization":
            assert makers[node.input[0]] != "Conv" or uses[node.input[0]] > 1
        assert not (node.op_type == "Transpose" and node.input[0] in arrays)
    rounded = int8_onnx(model, DIGEST, random_images(shape, 64, seed=1), {})
    assert np.abs(run(rounded, images) - expected).max() < 0.1 * largest
    quantized = parse_onnx(rounded)
    check = int8_parity(parameters(model, DIGEST), quantized)
    assert check.passed, check.reason
    plain, labels = OrtClassifier(build_onnx(model, DIGEST, dense=True), "cpu", 1), expected.argmax(1)
    gradients = [
        each.logits_and_gradient(images, labels, "cross_entropy")[1]
        for each in (plain, OrtClassifier(quantized, "cpu"))
    ]
    assert np.vdot(*gradients) > 0.9 * np.linalg.norm(gradients[0]) * np.linalg.norm(gradients[1])


def test_products_and_sums_run_in_int8(digits_int8: ModelProto) -> None:
    operators = optimized_operators(digits_int8)
    assert operators["QLinearConv"] == operators["QGemm"] == 2
    assert not operators["Conv"] + operators["Gemm"] + operators["DequantizeLinear"]


def test_weights_have_a_scale_for_each_filter_and_logits_are_not_rounded(
    digits: CompressedModel, digits_int8: ModelProto
) -> None:
    arrays = {tensor.name: numpy_helper.to_array(tensor) for tensor in digits_int8.graph.initializer}
    weight = digits.weights["conv2.weight"].dense()
    np.testing.assert_allclose(arrays["conv2.weight_scale"], np.abs(weight).reshape(64, -1).max(1) / 127.5, rtol=0.01)
    assert arrays["conv2.weight_quantized"].dtype == np.int8
    assert not arrays["conv2.weight_zero_point"].any()
    assert arrays["conv2.bias_quantized"].dtype == np.int32
    logits = run(digits_int8.SerializeToString(), random_images((1, 8, 8), 200))
    assert len(np.unique(logits)) > 1000
    metadata = {entry.key: entry.value for entry in digits_int8.metadata_props}
    assert json.loads(metadata["atmc_tool.int8"]) == {"images": 64}
    assert metadata["atmc_tool.source_sha256"] == DIGEST
    decoded = decoded_weights(digits_int8, ["conv2.weight"])["conv2.weight"]
    assert np.abs(decoded - weight).max() <= 0.51 * np.abs(weight).max() / 127
    assert np.array_equal(decoded[weight == 0], weight[weight == 0])


def test_the_bias_of_an_empty_filter_is_kept(digits: CompressedModel) -> None:
    """onnxruntime gives zeros the scale 1 unless told otherwise; a bias is rounded in steps of input scale × that."""
    dense = digits.weights["conv2.weight"].dense()
    dense[5] = 0
    weight = CompressedWeight(dense.shape, {"V": sparsify(dense.reshape(64, -1), quantized=True)})
    model = replace(digits, weights={**digits.weights, "conv2.weight": weight})
    rounded = parse_onnx(int8_onnx(model, DIGEST, random_images((1, 8, 8), 64), {}))
    bias = decoded_weights(rounded, ["conv2.bias"])["conv2.bias"]
    assert bias[5] == pytest.approx(digits.rest["conv2.bias"][5], abs=1e-6)
    check = int8_parity(parameters(model, DIGEST), rounded)
    assert check.passed, check.reason


def planted(model: ModelProto, name: str, change: object) -> ModelProto:
    """A copy of the model with another initialiser `name`."""
    other = ModelProto()
    other.CopyFrom(model)
    (tensor,) = [tensor for tensor in other.graph.initializer if tensor.name == name]
    array = numpy_helper.to_array(tensor)
    tensor.CopyFrom(numpy_helper.from_array(change(array.copy()).astype(array.dtype), name))  # type: ignore[operator]
    return other


def two_steps_off(codes: NDArray[np.int8]) -> NDArray[np.int8]:
    flat = codes.reshape(-1)
    flat[np.argmin(np.abs(flat))] += 2
    return codes


@pytest.mark.parametrize(
    ("name", "change", "reason"),
    [
        ("fc1.weight_quantized", two_steps_off, "fc1.weight (1 of 32768 values are further off than half a step)"),
        ("conv2.weight_scale", lambda scale: 1.1 * scale, "conv2.weight"),
        ("conv1.bias_quantized_scale", lambda scale: 1e6 * scale, "a step that its operator's input and weight do not"),
        ("fc2.bias_quantized", lambda codes: codes + 1, "fc2.bias (10 of 10 values"),
        ("fc2.weight_scale", lambda scale: np.full_like(scale, np.nan), "fc2.weight"),
    ],
)
def test_parity_finds_what_is_changed(
    name: str, change: object, reason: str, digits: CompressedModel, digits_int8: ModelProto
) -> None:
    expected = parameters(digits, DIGEST)
    assert int8_parity(expected, digits_int8).passed
    check = int8_parity(expected, planted(digits_int8, name, change))
    assert check.passed is False
    assert reason in check.reason


def test_parity_wants_every_parameter(digits: CompressedModel, digits_int8: ModelProto) -> None:
    expected = parameters(digits, DIGEST)
    check = int8_parity({**expected, "fc3.weight": expected["fc2.weight"]}, digits_int8)
    assert check.reason == "int8: 1 of 9 tensors differ: fc3.weight (missing)"
    assert int8_parity({}, digits_int8).passed is False
    other = digits_network(seed=1)
    assert int8_parity(parameters(other, DIGEST), digits_int8).passed is False


def test_a_network_that_can_not_be_quantised_is_one_line() -> None:
    """onnx infers no shapes through its group normalisation, and the quantiser needs them."""
    torch.manual_seed(0)
    with pytest.raises(AtmcError, match=r"onnxruntime can't quantise this network: .*Hint: export --onnx$"):
        int8_onnx(model_of(Separable()), DIGEST, random_images((1, 8, 8), 8), {})


def test_it_is_one_valid_file_of_standard_operators(digits_int8: ModelProto) -> None:
    onnx.checker.check_model(digits_int8, full_check=True)
    assert {node.domain for node in digits_int8.graph.node} == {""}
    assert [(entry.domain, entry.version) for entry in digits_int8.opset_import] == [("", 21)]
