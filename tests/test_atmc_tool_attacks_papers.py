"""Noise, BIM, MI-FGSM, C&W-inf and WRM: closed forms on linear classifiers; in ball and box, NumPy as torch."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy_classifiers import Mlp, fit
from test_atmc_tool_attacks_pgd import as_torch, problem, worst_vertex

from atmc_tool.attacks.bim import bim
from atmc_tool.attacks.classifier import margin
from atmc_tool.attacks.cw import cw
from atmc_tool.attacks.fgsm import fgsm
from atmc_tool.attacks.momentum import momentum
from atmc_tool.attacks.noise import noisy
from atmc_tool.attacks.norms import length
from atmc_tool.attacks.pgd import pgd
from atmc_tool.attacks.standing import excess
from atmc_tool.attacks.starts import start_noise
from atmc_tool.attacks.wrm import wrm

NORMS = ("linf", "l2")


def start(x: Any, norm: str) -> Any:
    noise = start_noise(0, 0, range(len(x)), tuple(x.shape[1:]), norm)
    return torch.from_numpy(noise) if isinstance(x, torch.Tensor) else noise


ATTACKS: dict[str, Callable[..., Any]] = {
    "noise": lambda _, x, __, eps, norm: noisy(x, eps, noise=start(x, norm), norm=norm),
    "bim": lambda c, x, y, eps, norm: bim(c, x, y, eps, steps=10, norm=norm),
    "momentum": lambda c, x, y, eps, norm: momentum(c, x, y, eps, steps=10, norm=norm),
    "cw": lambda c, x, y, eps, norm: cw(c, x, y, eps, steps=10, step_size=eps / 4, noise=start(x, norm), norm=norm),
}


@pytest.mark.parametrize("attack", ATTACKS.values(), ids=ATTACKS)
@pytest.mark.parametrize("norm", NORMS)
@given(seed=st.integers(0, 1000), eps=st.floats(0.01, 1.5))
def test_in_ball_and_box(attack: Callable[..., Any], norm: str, seed: int, eps: float) -> None:
    linear, images, labels = problem(seed, classes=4, n=8)
    before = images.copy()
    found = attack(linear, images, labels, eps, norm)
    assert found.dtype == np.float32
    assert excess(images, found, eps, norm)[0] == 0
    np.testing.assert_array_equal(images, before)


@pytest.mark.parametrize("attack", [*ATTACKS, "wrm"])
@pytest.mark.parametrize("norm", NORMS)
def test_numpy_and_torch_find_the_same_images(attack: str, norm: str) -> None:
    mlp = fit(hidden=30)
    rng = np.random.default_rng(1)
    images, labels = rng.random((64, 1, 8, 8), dtype=np.float32), rng.integers(0, 10, 64)
    run = ATTACKS.get(attack, lambda c, x, y, *_: wrm(c, x, y, steps=5, weight=0.1))
    here = run(mlp, images, labels, 0.1, norm)
    there = run(as_torch(mlp), torch.from_numpy(images), torch.from_numpy(labels), 0.1, norm)
    assert isinstance(there, torch.Tensor)
    # Where a gradient is zero up to rounding its sign, and so the image, may differ.
    assert np.mean(np.abs(there.numpy() - here) > 1e-5) < 2e-3


@pytest.mark.parametrize("attack", ["bim", "momentum", "cw"])
@given(seed=st.integers(0, 1000), eps=st.sampled_from([0.01, 0.1, 0.6]))
def test_the_exact_worst_case_of_a_linear_classifier(attack: str, seed: int, eps: float) -> None:
    linear, images, labels = problem(seed, classes=2)
    exact = np.where(
        (labels == 0)[:, None, None, None], *(worst_vertex(linear, images, labels, j, eps) for j in (1, 0))
    )
    np.testing.assert_allclose(ATTACKS[attack](linear, images, labels, eps, "linf"), exact, atol=1e-6)


@pytest.mark.parametrize("norm", NORMS)
def test_noise_fills_the_cube_and_lies_on_the_sphere(norm: str) -> None:
    images = np.full((200, 1, 4, 4), 0.5, np.float32)
    change = noisy(images, 0.1, noise=start(images, norm), norm=norm) - images
    if norm == "l2":
        np.testing.assert_allclose(length(change, "l2"), 0.1, rtol=1e-4)
    else:
        assert np.histogram(change, 10, (-0.1, 0.1))[0].min() > 250  # of 320
    assert np.abs(change.mean(0)).max() < 0.02


class Scripted:
    """Its gradients are given, whatever the images."""

    def __init__(self, *gradients: list[float]) -> None:
        self.gradients = [np.array(gradient, np.float32).reshape(1, 1, 1, -1) for gradient in gradients]

    def logits_and_gradient(self, *_: object) -> tuple[None, np.ndarray]:
        return None, self.gradients.pop(0)


def test_momentum_adds_up_gradients_of_length_one() -> None:
    """g = (1, 0), then (1, 0) + (−0.75, 0.25) = (0.25, 0.25), whatever the gradients' lengths: BIM goes back."""
    image, label = np.full((1, 1, 1, 2), 0.5, np.float32), np.array([0])
    gradients = [1e-3, 0.0], [-75.0, 25.0]
    found = momentum(Scripted(*gradients), image, label, 0.2, steps=2)
    np.testing.assert_allclose(found.ravel(), [0.7, 0.6], atol=1e-6)
    found = bim(Scripted(*gradients), image, label, 0.2, steps=2)
    np.testing.assert_allclose(found.ravel(), [0.5, 0.6], atol=1e-6)
    still = momentum(Scripted([0.0, 0.0]), image, label, 0.2, steps=1)
    np.testing.assert_array_equal(still, image)


@pytest.mark.parametrize("norm", NORMS)
def test_of_one_step_both_are_fgsm(norm: str) -> None:
    linear, images, labels = problem(3, classes=4)
    expected = fgsm(linear, images, labels, 0.1, norm=norm)
    for attack in (bim, momentum):
        np.testing.assert_allclose(attack(linear, images, labels, 0.1, steps=1, norm=norm), expected, atol=1e-6)


@pytest.mark.parametrize("norm", NORMS)
def test_cw_is_pgd_on_the_margin_until_the_confidence_is_reached(norm: str) -> None:
    linear, images, labels = problem(5, classes=4)
    steps = {"steps": 20, "step_size": 0.01, "noise": start(images, norm), "norm": norm}
    free = pgd(linear, images, labels, 0.2, loss="margin", **steps)
    np.testing.assert_array_equal(cw(linear, images, labels, 0.2, confidence=1e9, **steps), free)
    stopped = cw(linear, images, labels, 0.2, confidence=0.5, **steps)
    reached = margin(linear.logits(free), labels) > 0.5
    assert reached.sum() > 0
    assert (margin(linear.logits(stopped), labels)[reached] >= 0.5).all()
    assert (length(stopped - free, norm) > 0).any()
    np.testing.assert_array_equal(stopped[~reached], free[~reached])


def test_wrm_of_a_linear_loss_is_the_weighted_gradient_away() -> None:
    """argmax of w⟨g, δ⟩ − ½‖δ‖² is w·g, after one step and for ever."""
    linear, images, labels = problem(0, classes=2)
    images = (0.4 + images / 5).astype(np.float32)
    gradient = linear.logits_and_gradient(images, labels, "margin")[1]
    weight = 0.3 / np.abs(gradient).max()
    for steps in (1, 4):
        found = wrm(linear, images, labels, steps=steps, weight=weight, loss="margin")
        np.testing.assert_allclose(found - images, weight * gradient, atol=1e-5)
    far = wrm(linear, images, labels, steps=4, weight=100.0, loss="margin")
    np.testing.assert_array_equal(far, np.where(gradient > 0, 1, np.where(gradient < 0, 0, far)))


def test_wrm_ends_where_the_penalty_holds_the_gradient() -> None:
    linear, images, labels = problem(1, classes=3)
    weak = Mlp(linear.readout / 20, linear.bias / 20)
    images = (0.4 + images / 5).astype(np.float32)
    found = wrm(weak, images, labels, steps=30)
    gradient = weak.logits_and_gradient(found, labels, "cross_entropy")[1]
    np.testing.assert_allclose(found - images, 1.3 * gradient, atol=1e-4)
