"""Attacks of one step on a linear classifier, whose gradient is known, in torch and in NumPy alike."""

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from atmc_tool.attacks.fgsm import fgsm_rs, n_fgsm

N, SHAPE, CLASSES = 5, (2, 3, 3), 3


class Linear:
    """Two classes' difference is what counts: logits z = A x, labels' loss gradient known in closed form."""

    def __init__(self, weights: Any) -> None:
        self.weights = weights
        self.seen: list[Any] = []

    def logits(self, images: Any) -> Any:
        return images.reshape(N, -1) @ self.weights

    def logits_and_gradient(self, images: Any, labels: Any, loss: str, *_: object) -> tuple[Any, Any]:
        self.seen.append(images)
        logits = self.logits(images)
        own = labels[:, None] == (np if isinstance(images, np.ndarray) else torch).arange(CLASSES)
        if loss == "margin":
            best = (logits - 1e9 * own).argmax(1)
            return logits, (self.weights.T[best] - self.weights.T[labels]).reshape(images.shape)
        powers = np.exp(logits - logits.max()) if isinstance(images, np.ndarray) else (logits - logits.max()).exp()
        return logits, ((powers / powers.sum(1)[:, None] - 1 * own) @ self.weights.T).reshape(images.shape)


def case(seed: int) -> tuple[Linear, Any, Any, Any]:
    generator = np.random.default_rng(seed)
    images = generator.random((N, *SHAPE), np.float32)
    noise = generator.random((N, *SHAPE), np.float32) * 2 - 1
    weights = generator.standard_normal((images[0].size, CLASSES)).astype(np.float32)
    return Linear(weights), images, generator.integers(0, CLASSES, N), noise


@pytest.mark.parametrize("loss", ["cross_entropy", "margin"])
@given(seed=st.integers(0, 2**32), eps=st.floats(0.0625, 0.5, width=32))
def test_what_the_papers_write(loss: Any, seed: int, eps: float) -> None:
    classifier, x, y, u = case(seed)
    start = np.clip(x + eps * u, 0, 1)
    step = start + 1.25 * eps * np.sign(classifier.logits_and_gradient(start, y, loss)[1])
    expected = np.clip(np.clip(step, x - eps, x + eps), 0, 1)
    found = fgsm_rs(classifier, x, y, eps, noise=u, loss=loss)
    np.testing.assert_allclose(found, expected, atol=1e-6)
    assert np.abs(found - x).max() <= eps + 1e-6

    noisy = np.clip(x + 2 * eps * u, 0, 1)
    expected = np.clip(noisy + eps * np.sign(classifier.logits_and_gradient(noisy, y, loss)[1]), 0, 1)
    classifier.seen.clear()
    found = n_fgsm(classifier, x, y, eps, noise=u, loss=loss)
    np.testing.assert_allclose(found, expected, atol=1e-6)
    assert len(classifier.seen) == 1
    assert found.min() >= 0
    assert found.max() <= 1
    assert np.abs(found - x).max() <= 3 * eps + 1e-6


def test_n_fgsm_leaves_the_ball() -> None:
    classifier, x, y, u = case(0)
    assert np.abs(n_fgsm(classifier, x, y, 0.1, noise=u) - x).max() > 0.2


@pytest.mark.parametrize("attack", [fgsm_rs, n_fgsm])
def test_torch_and_numpy_agree(attack: Any) -> None:
    classifier, x, y, u = case(1)
    torches = [torch.from_numpy(array) for array in (x, y, u)]
    other = attack(Linear(torch.from_numpy(classifier.weights)), *torches[:2], 0.1, noise=torches[2])
    np.testing.assert_allclose(other.numpy(), attack(classifier, x, y, 0.1, noise=u), atol=1e-6)
