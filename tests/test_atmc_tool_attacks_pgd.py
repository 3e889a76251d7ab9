import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy_classifiers import Mlp, fit, random_linear

from atmc_tool.attacks.classifier import correct, margin
from atmc_tool.attacks.pgd import default_step_size, pgd
from atmc_tool.torch_classifier import TorchClassifier
from atmc_tool.torch_classifier import margin as torch_margin


def as_torch(mlp: Mlp) -> TorchClassifier:
    first = torch.nn.Linear(mlp.hidden.shape[0], mlp.hidden.shape[1])
    last = torch.nn.Linear(mlp.readout.shape[0], mlp.readout.shape[1])
    network = torch.nn.Sequential(torch.nn.Flatten(), first, torch.nn.ReLU(), last)
    arrays = {
        "1.weight": mlp.hidden.T,
        "1.bias": mlp.offset,
        "3.weight": mlp.scale * mlp.readout.T,
        "3.bias": mlp.scale * mlp.bias,
    }
    return TorchClassifier(network, {name: torch.from_numpy(array.copy()) for name, array in arrays.items()}, [0], [1])


def problem(seed: int, classes: int, n: int = 32) -> tuple[Mlp, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    images = rng.random((n, 2, 3, 4), dtype=np.float32)
    return random_linear(rng, classes, 24), images, rng.integers(0, classes, n)


def worst_vertex(linear: Mlp, images: np.ndarray, labels: np.ndarray, other: int, eps: float) -> np.ndarray:
    """Closed form: the image in the ball and the box that raises z_other − z_y most."""
    direction = (linear.readout[:, [other]] - linear.readout[:, labels]).T.reshape(images.shape)
    return np.clip(np.clip(images + eps * np.sign(direction), images - eps, images + eps), 0, 1)


@given(st.integers(0, 1000), st.sampled_from([0.01, 0.1, 0.6]), st.sampled_from(["cross_entropy", "margin"]))
def test_reaches_the_exact_worst_case_of_a_linear_classifier(seed: int, eps: float, loss: str) -> None:
    linear, images, labels = problem(seed, classes=2)
    noise = np.random.default_rng(seed).uniform(-1, 1, images.shape).astype(np.float32)
    step_size = default_step_size(eps, 7)
    found = pgd(linear, images, labels, eps, steps=7, step_size=step_size, noise=noise, loss=loss)
    exact = np.where(
        (labels == 0)[:, None, None, None], *(worst_vertex(linear, images, labels, j, eps) for j in (1, 0))
    )
    np.testing.assert_allclose(found, exact, atol=1e-6)


def test_drop_in_margin_of_an_interior_image_is_eps_times_the_l1_norm() -> None:
    linear, images, labels = problem(0, classes=2)
    images = 0.25 + images / 2
    found = pgd(linear, images, labels, 0.1, steps=5, step_size=0.05)
    rise = margin(linear.logits(found), labels) - margin(linear.logits(images), labels)
    np.testing.assert_allclose(rise, 0.1 * np.abs(linear.readout[:, 0] - linear.readout[:, 1]).sum(), rtol=1e-4)


@given(st.integers(0, 1000), st.floats(0.001, 1.5), st.integers(0, 4), st.booleans())
def test_result_is_in_the_ball_and_in_the_box(seed: int, eps: float, steps: int, random_start: bool) -> None:
    linear, images, labels = problem(seed, classes=4)
    noise = np.random.default_rng(seed).uniform(-1, 1, images.shape).astype(np.float32) if random_start else None
    found = pgd(linear, images, labels, eps, steps=steps, step_size=eps, noise=noise)
    assert np.abs(found - images).max() <= eps + 1e-6
    assert found.min() >= 0
    assert found.max() <= 1
    assert found.dtype == np.float32


@pytest.mark.parametrize("loss", ["cross_entropy", "margin"])
def test_numpy_and_torch_find_the_same_images(loss: str) -> None:
    mlp = fit(hidden=30)
    rng = np.random.default_rng(1)
    images = rng.random((64, 1, 8, 8), dtype=np.float32)
    labels = rng.integers(0, 10, 64)
    noise = rng.uniform(-1, 1, images.shape).astype(np.float32)
    arguments = {"steps": 10, "step_size": 0.01, "loss": loss}
    here = pgd(mlp, images, labels, 0.05, noise=noise, **arguments)
    tensors = [torch.from_numpy(array) for array in (images, labels)]
    there = pgd(as_torch(mlp), *tensors, 0.05, noise=torch.from_numpy(noise), **arguments)
    assert isinstance(there, torch.Tensor)
    # Where a gradient is zero up to rounding its sign, and so the image, may differ.
    assert np.mean(np.abs(there.numpy() - here) > 1e-6) < 1e-3


def test_random_start_moves_the_result_and_stays_a_start() -> None:
    linear, images, labels = problem(0, classes=4)
    noise = np.random.default_rng(0).uniform(-1, 1, images.shape).astype(np.float32)
    start = pgd(linear, images, labels, 0.1, steps=0, step_size=0.1, noise=noise)
    np.testing.assert_allclose(start, np.clip(images + 0.1 * noise, 0, 1), atol=1e-6)
    one_step = [pgd(linear, images, labels, 0.1, steps=1, step_size=0.01, noise=n) for n in (None, noise, -noise)]
    assert all((a != b).mean() > 0.9 for a, b in [one_step[:2], one_step[1:], one_step[::2]])


def test_inputs_are_left_alone() -> None:
    linear, images, labels = problem(0, classes=4)
    noise = np.ones_like(images)
    before = images.copy()
    result = pgd(linear, images, labels, 0.1, steps=3, step_size=0.1, noise=noise)
    np.testing.assert_array_equal(images, before)
    assert (noise == 1).all()
    assert not np.shares_memory(result, images)


def test_reads_nothing_back_to_the_host() -> None:
    """Tensors on torch's meta device have no values: reading one raises."""

    class Meta:
        calls = 0

        def logits(self, *_: object) -> torch.Tensor:
            raise AssertionError("PGD needs no logits")

        def logits_and_gradient(self, images: torch.Tensor, *_: object) -> tuple[None, torch.Tensor]:
            Meta.calls += 1
            return None, torch.empty_like(images)

    images = torch.empty(4, 3, 8, 8, device="meta")
    labels = torch.zeros(4, dtype=torch.int64, device="meta")
    found = pgd(Meta(), images, labels, 0.1, steps=5, step_size=0.1, noise=torch.empty_like(images))
    assert found.shape == images.shape
    assert Meta.calls == 5


def test_correct_and_margin() -> None:
    logits = np.array([[1, 2, 0], [2, 2, 0], [2, 2, 0], [np.nan, 1, 0], [np.inf, 0, 0]], np.float32)
    labels = np.array([1, 0, 1, 1, 0])
    assert correct(logits, labels).tolist() == [True, True, False, False, False]
    assert margin(logits[:3], labels[:3]).tolist() == [-1, 0, 0]
    random = torch.randn(50, 6, generator=torch.Generator().manual_seed(0))
    targets = torch.arange(50) % 6
    torch.testing.assert_close(margin(random, targets), torch_margin(random, targets))
    assert correct(random, targets).tolist() == (margin(random, targets) < 0).tolist()
