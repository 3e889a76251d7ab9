"""The control of the attack: its exact worst case against other solvers, and attacks that are spoiled."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from numpy_classifiers import BlackBox, Mlp, digits, fit
from onnx import ModelProto, numpy_helper
from scipy.optimize import linprog, minimize

from atmc_tool.attacks.classifier import Classifier
from atmc_tool.threat_model import parse_threat_model
from evaluators.attack_plan import AttackSettings
from evaluators.classifier import OrtClassifier
from evaluators.gate import Check
from evaluators.undefended import Linear, check_undefended, fit_linear, telling_linear

BRIEF = AttackSettings(steps=5, restarts=1)
EPS = [("0.01", "linf"), ("0.1", "linf"), ("0.3", "linf"), ("0.1", "l2"), ("0.5", "l2"), ("2", "l2")]


def given(n: int = 150, first: int = 1200) -> tuple[np.ndarray, np.ndarray]:
    images, labels = digits()
    return images[first : first + n].astype(np.float32) / 255, labels[first : first + n]


def session(model: ModelProto) -> Classifier:
    return OrtClassifier(model, "cpu", threads=1)


def check(
    make: Callable[[ModelProto], Classifier] = session,
    eps: str = "0.05",
    norm: Any = "linf",
    settings: AttackSettings = BRIEF,
    network: tuple[str, Classifier] | None = None,
    n: int = 150,
) -> Check:
    return check_undefended(make, *given(n), parse_threat_model(eps, norm), settings, network)


def in_numpy(model: ModelProto, kind: type[Mlp] = Mlp) -> Mlp:
    """The control in NumPy, to be spoiled."""
    stored = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    return kind(stored["weight"], stored["bias"])


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_the_highest_margins_are_those_that_general_solvers_find(norm: Any) -> None:
    rng = np.random.default_rng(3)
    images = np.where(rng.random((12, 1, 2, 4)) < 0.4, rng.integers(0, 2, (12, 1, 2, 4)), rng.random((12, 1, 2, 4)))
    images, labels = images.astype(np.float32), rng.integers(0, 3, 12)
    linear = Linear(rng.normal(size=(8, 3)).astype(np.float32), rng.normal(size=3).astype(np.float32))
    for eps in (0.1, 0.7, 5.0):
        targets = (labels[:, None] + [1, 2]) % 3
        found = linear.highest_margins(images, labels, eps, norm, targets)
        for i, image in enumerate(images.reshape(12, 8).astype(np.float64)):
            for k in range(2):
                slope = linear.weight[:, targets[i, k]].astype(np.float64) - linear.weight[:, labels[i]]
                shift = float(linear.bias[targets[i, k]]) - float(linear.bias[labels[i]])
                if norm == "linf":
                    box = [(max(0, x - eps), min(1, x + eps)) for x in image]
                    best = -linprog(-slope, bounds=box).fun
                else:
                    ball = {"type": "ineq", "fun": lambda x, a=image, e=eps: e**2 - np.sum((x - a) ** 2)}
                    start = np.clip(image + 1e-3, 0, 1)
                    options = {"ftol": 1e-12, "maxiter": 500}
                    solved = minimize(
                        lambda x, g=slope: -g @ x, start, bounds=[(0, 1)] * 8, constraints=ball, options=options
                    )
                    best = -solved.fun
                assert found[i, k] == pytest.approx(best + shift, abs=2e-5)


def test_of_large_images_few_are_taken_in_l2() -> None:
    """55 of 3 × 224 × 224 took 66 s to choose the control alone."""
    images = np.random.default_rng(2).random((20, 3, 224, 224), np.float32)
    least = AttackSettings(steps=1, restarts=1, auto_steps=1)
    result = check_undefended(session, images, np.arange(20) % 2, parse_threat_model("0.5", "l2"), least)
    assert result.evidence["n"] == 13


@pytest.mark.parametrize(("eps", "norm"), EPS)
def test_honest_attacks_find_what_is_there(eps: str, norm: str) -> None:
    for settings in (BRIEF, AttackSettings()):
        result = check(eps=eps, norm=norm, settings=settings)
        assert result.passed is (True if result.evidence["findable"] > 4 else None), result.reason
        assert result.evidence["missed"] <= 2
        assert result.evidence["n"] == 128
        assert result.evidence["impossible"] == 0
        assert abs(result.evidence["attacked"] - result.evidence["exact"]) <= 0.04  # three targets of nine


def test_the_control_is_one_that_tells_something() -> None:
    images, labels = given()
    eps = 0.1

    def robust(linear: Linear, radius: float) -> float:
        return float(
            (linear.highest_margins(images, labels, radius, "linf", linear.likely(images, labels)) < 0).all(1).mean()
        )

    told = telling_linear(images, labels, eps, "linf")
    assert robust(told, eps / 2) - robust(told, eps) > 0.3
    stiff = fit_linear(images, labels, 10.0)
    assert robust(told, eps / 2) - robust(told, eps) > robust(stiff, eps / 2) - robust(stiff, eps)


class Blind(Mlp):
    """Its gradient is zero."""

    def logits_and_gradient(self, images: Any, labels: Any, *rest: Any) -> Any:
        logits, gradient = super().logits_and_gradient(images, labels, *rest)
        return logits, 0 * gradient


class Backwards(Mlp):
    """Its gradient points the wrong way."""

    def logits_and_gradient(self, images: Any, labels: Any, *rest: Any) -> Any:
        logits, gradient = super().logits_and_gradient(images, labels, *rest)
        return logits, -gradient


class HalfBlind(Mlp):
    """Its gradient sees the upper half of the image."""

    def logits_and_gradient(self, images: Any, labels: Any, *rest: Any) -> Any:
        logits, gradient = super().logits_and_gradient(images, labels, *rest)
        gradient[:, :, gradient.shape[2] // 2 :] = 0
        return logits, gradient


@pytest.mark.parametrize("kind", [Blind, Backwards, HalfBlind])
@pytest.mark.parametrize(("eps", "norm"), [("0.1", "linf"), ("0.5", "l2")])
def test_a_spoiled_gradient_misses_what_is_there(kind: type[Mlp], eps: str, norm: str) -> None:
    assert check(in_numpy, eps, norm).passed
    result = check(lambda model: in_numpy(model, kind), eps, norm)
    assert not result.passed
    assert "that can be fooled are not" in result.reason


@pytest.mark.parametrize(("eps", "norm"), [("0.001", "linf"), ("0.02", "linf"), ("0.03", "linf"), ("0.1", "l2")])
def test_an_attack_that_cannot_move_never_passes(eps: str, norm: str) -> None:
    for n in (1, 150):
        result = check(lambda model: in_numpy(model, Blind), eps, norm, n=n)
        assert not result.passed, result.reason
    assert check(eps="0.001").passed is None
    assert "too small" in check(eps="0.001").reason


def test_the_reason_states_what_is_judged() -> None:
    result = check(eps="0.1")
    there = result.evidence["findable"]
    assert f"of {there} images that eps 0.1 must fool" in result.reason
    assert f"the attack finds {there - result.evidence['missed']} (n 128)" in result.reason


def test_what_falls_too_easily_is_another_network() -> None:
    def leaning(model: ModelProto) -> Mlp:
        linear = in_numpy(model)
        return replace(linear, bias=linear.bias + np.float32(0.4) * np.eye(10, dtype=np.float32)[3])

    result = check(leaning)
    assert not result.passed
    assert "that can't be within eps" in result.reason


def test_a_control_without_gradients_fails() -> None:
    result = check(lambda model: in_numpy(model, BlackBox))
    assert not result.passed
    assert "could not be attacked" in result.reason


@pytest.mark.parametrize(
    ("network", "eps", "words"),
    [
        (fit, "0.3", ""),
        (fit, "0.01", "has a defence, or the attack is too weak"),
        (lambda: replace(fit(), readout=fit().readout[:, ::-1]), "0.3", "no better than chance without an attack"),
        (lambda: fit(BlackBox), "0.3", "natural.onnx could not be attacked"),
    ],
)
def test_a_network_that_was_named_falls_to_chance(network: Callable[[], Mlp], eps: str, words: str) -> None:
    result = check(eps=eps, network=("natural.onnx", network()))
    assert result.passed is (not words)
    assert words in result.reason
    assert result.evidence["network"]["file"] == "natural.onnx"


def test_few_images_and_many_classes() -> None:
    assert check(n=1).passed is None
    images, labels = given()
    threat_model = parse_threat_model("0.1")
    many = check_undefended(session, images, labels + 10 * (np.arange(150) % 7), threat_model, BRIEF)
    assert many == check(eps="0.1")
    one = check_undefended(session, images, 0 * labels, threat_model, BRIEF)
    assert one.passed is None
    assert one.evidence["exact"] == 1
