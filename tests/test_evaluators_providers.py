"""Two real sessions of a network: other optimisations are the same answers, other precisions are not."""

import numpy as np
import onnxruntime as ort
import pytest
from onnx import ModelProto, numpy_helper
from onnx_models import classifier as graph
from test_evaluators_onnx_gradient import weights

from evaluators.classifier import OrtClassifier
from evaluators.providers import check_providers, other_providers


class Unoptimised:
    """The same graph in a session that optimises nothing."""

    def __init__(self, model: ModelProto) -> None:
        options = ort.SessionOptions()
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
        options.intra_op_num_threads = 1
        self.session = ort.InferenceSession(model.SerializeToString(), options, ["CPUExecutionProvider"])

    def logits(self, images: np.ndarray) -> np.ndarray:
        return self.session.run(None, {self.session.get_inputs()[0].name: images})[0]


BODY = "c = Conv<pads=[1,1,1,1]>(x, w)\nb = BatchNormalization(c, s, s, s, v)\ny = Relu(b)"
CONSTANTS = {"w": weights(16, 4, 3, 3), "s": weights(16), "v": weights(16) ** 2 + 0.1}


def rounded(model: ModelProto, bits: int) -> ModelProto:
    """The weights with so many bits of mantissa, as a provider computes that rounds its factors."""
    spoiled = ModelProto()
    spoiled.CopyFrom(model)
    for tensor in spoiled.graph.initializer:
        if tensor.name == "w":
            fraction, exponent = np.frexp(numpy_helper.to_array(tensor))
            values = np.ldexp(np.rint(fraction * 2**bits) / 2**bits, exponent).astype(np.float32)
            tensor.CopyFrom(numpy_helper.from_array(values, "w"))
    return spoiled


@pytest.fixture(scope="module")
def scored() -> tuple[ModelProto, OrtClassifier, np.ndarray, np.ndarray]:
    model = graph(BODY, CONSTANTS)
    images = np.random.default_rng(5).random((100, 4, 6, 6), np.float32)
    first = OrtClassifier(model, "cpu", threads=1)
    return model, first, images, first.logits(images).argmax(1)


def test_sessions_that_optimise_otherwise_agree(scored: tuple) -> None:
    model, first, images, _ = scored
    result = check_providers(first, {"plain": Unoptimised(model), "cpu": first}, images, 1 - images, 32)
    assert result.passed, result.reason
    assert set(result.evidence) == {"plain", "cpu"}
    assert result.evidence["plain"]["adversarial images"]["flips"] == 0
    assert result.evidence["cpu"]["images"]["difference"] == 0
    assert check_providers(first, {}, images, None, 32).passed is None


@pytest.mark.parametrize(("bits", "passed"), [(16, True), (4, False)])
def test_a_session_of_less_precision_is_seen(scored: tuple, bits: int, passed: bool) -> None:
    model, first, images, _ = scored
    result = check_providers(first, {"coarse": OrtClassifier(rounded(model, bits), "cpu")}, images, None, 32)
    assert result.passed is passed
    assert "coarse" in result.reason


def test_flips_and_what_is_no_number_are_seen(scored: tuple) -> None:
    _, first, images, labels = scored

    class Other:
        def __init__(self, add: float) -> None:
            self.add = np.eye(first.facts.n_classes, dtype=np.float32)[0] * np.float32(add)

        def logits(self, x: np.ndarray) -> np.ndarray:
            return first.logits(x) + self.add

    flipping = check_providers(first, {"other": Other(100.0)}, images, None, 32)
    assert not flipping.passed
    away = int((labels != 0).sum())
    assert away - 2 <= flipping.evidence["other"]["images"]["flips"] <= away  # some may lie on the boundary
    assert not check_providers(first, {"other": Other(np.nan)}, images, None, 32).passed


def test_a_tie_of_two_wrong_classes_is_on_the_boundary(scored: tuple) -> None:
    """Whichever class is right, there is no decision that rounding could not change."""
    _, first, images, _ = scored

    class Tied:
        def __init__(self, above: int) -> None:
            self.logit = np.zeros(first.facts.n_classes, np.float32)
            self.logit[[0, 1]] = 2
            self.logit[above] += 1e-6

        def logits(self, x: np.ndarray) -> np.ndarray:
            return np.repeat(self.logit[None], len(x), 0)

    result = check_providers(Tied(0), {"other": Tied(1)}, images, None, 32)
    assert result.passed, result.reason


def test_a_provider_is_not_compared_with_itself(scored: tuple) -> None:
    model, first, *_ = scored
    assert other_providers(first, [OrtClassifier(model, "cpu"), first]) == {}
