"""Files from elsewhere: open image sizes, several outputs, a softmax at the end, logits (N, classes, 1, 1)."""

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import ModelProto
from onnx_models import CLASSES, batch, classifier

from atmc_tool.errors import UsageError
from evaluators.classifier import OrtClassifier, facts
from evaluators.onnx_adoption import adopted, logits_choice, softmax_input

SHAPE = (3, 8, 6)


def parsed(text: str, opset: int = 17) -> ModelProto:
    model = onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["": {opset}]> g {text}')
    onnx.checker.check_model(model, full_check=True)
    return model


def pixels() -> NDArray[np.float32]:
    return np.random.default_rng(0).random((2, *SHAPE), np.float32)


def test_a_model_that_needs_nothing_stays_as_it_is() -> None:
    model = classifier("y = Relu(x)")
    assert adopted(model, (4, 6, 6)) == model


def test_open_sizes_are_those_of_the_images() -> None:
    model = parsed("(float[N,3,H,W] x) => (float[N,3] y) { y = ReduceMean<axes=[2, 3], keepdims=0>(x) }")
    network = adopted(model, SHAPE)
    assert facts(network).image_shape == SHAPE
    np.testing.assert_allclose(OrtClassifier(network, "cpu").logits(pixels()), pixels().mean((2, 3)), rtol=1e-5)


def test_sizes_that_are_fixed_stay() -> None:
    model = parsed("(float[N,3,9,W] x) => (float[N,3] y) { y = ReduceMean<axes=[2, 3], keepdims=0>(x) }")
    assert facts(adopted(model, SHAPE)).image_shape == (3, 9, 6)


SOFTMAX = """(float[N,3,8,6] x) => (float[N,3] prob) {
    scores = ReduceMean<axes=[2, 3], keepdims=0>(x) p = Softmax<axis=1>(scores) prob = Identity(p) }"""


def test_what_the_softmax_reads() -> None:
    model = parsed(SOFTMAX)
    assert (logits_choice(model), softmax_input(model)) == (["prob", "scores"], "scores")
    network = adopted(model, SHAPE, "scores")
    assert facts(network).output_name == "scores"
    np.testing.assert_allclose(OrtClassifier(network, "cpu").logits(pixels()), pixels().mean((2, 3)), rtol=1e-5)
    assert softmax_input(network) == ""


def test_the_decisions_are_the_files() -> None:
    model = classifier("y = Relu(x)")
    model.graph.node.append(onnx.helper.make_node("Softmax", ["logits"], ["prob"], axis=1))
    model.graph.output[0].name = "prob"
    images = batch(n=50)[0]
    file, inner = OrtClassifier(model, "cpu"), OrtClassifier(adopted(model, (4, 6, 6), "logits"), "cpu")
    np.testing.assert_array_equal(file.logits(images).argmax(1), inner.logits(images).argmax(1))
    assert file.logits(images).shape == (50, CLASSES)


def test_a_value_inside_is_no_output() -> None:
    with pytest.raises(UsageError, match="expected 'prob' or 'scores', got x"):
        adopted(parsed(SOFTMAX), SHAPE, "x")


def test_one_of_several_outputs() -> None:
    model = parsed(
        """(float[N,3,8,6] x) => (float[N,3] main, float[N,3] side) {
        main = ReduceMean<axes=[2, 3], keepdims=0>(x) side = ReduceMax<axes=[2, 3], keepdims=0>(x) }"""
    )
    assert softmax_input(model) == ""
    network = OrtClassifier(adopted(model, SHAPE, "side"), "cpu")
    np.testing.assert_array_equal(network.logits(pixels()), pixels().max((2, 3)))


def test_scores_of_one_pixel_are_flattened() -> None:
    model = parsed(
        """(float[N,3,8,6] x) => (float[N,3,1,1] prob) {
        scores = GlobalAveragePool(x) prob = Softmax<axis=1>(scores) }"""
    )
    for logits, total in (("", np.ones(2)), ("scores", pixels().mean((2, 3)).sum(1))):
        network = OrtClassifier(adopted(model, SHAPE, logits), "cpu")
        np.testing.assert_allclose(network.logits(pixels()).sum(1), total, rtol=1e-5)
