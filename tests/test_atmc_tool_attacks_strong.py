"""PGD, APGD and FAB against classifiers whose exact robust set is known, and on digits in both norms."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy_classifiers import Mlp, digits, fit, random_linear
from test_atmc_tool_attacks_pgd import as_torch

from atmc_tool.attacks.apgd import apgd, checkpoints
from atmc_tool.attacks.classifier import correct
from atmc_tool.attacks.fab import fab, to_plane
from atmc_tool.attacks.fgsm import fgsm
from atmc_tool.attacks.norms import direction, length, projection
from atmc_tool.attacks.standing import excess
from atmc_tool.attacks.starts import draws, start_noise
from atmc_tool.attacks.targets import likely_target, n_targets
from atmc_tool.attacks.worst_case import worst_case

NORMS = ("linf", "l2")
EPS = {"linf": 0.1, "l2": 0.45}


def apgd_ce(classifier: Any, x: Any, y: Any, eps: float, norm: str, steps: int = 30) -> Any:
    return apgd(classifier, x, y, eps, steps=steps, noise=noise_of(x, norm), norm=norm)


def apgd_dlr(classifier: Any, x: Any, y: Any, eps: float, norm: str, steps: int = 30) -> Any:
    return apgd(classifier, x, y, eps, steps=steps, noise=noise_of(x, norm), norm=norm, loss="dlr")


def apgd_t(classifier: Any, x: Any, y: Any, eps: float, norm: str, steps: int = 30) -> Any:
    targets = likely_target(classifier.logits(x), y, 0)
    return apgd(classifier, x, y, eps, steps=steps, noise=noise_of(x, norm), norm=norm, loss="dlr", targets=targets)


def fab_t(classifier: Any, x: Any, y: Any, eps: float, norm: str, steps: int = 30) -> Any:
    return fab(classifier, x, y, eps, steps=steps, targets=likely_target(classifier.logits(x), y, 0), norm=norm)


ATTACKS = {"apgd-ce": apgd_ce, "apgd-dlr": apgd_dlr, "apgd-t": apgd_t, "fab-t": fab_t}
parametrized = pytest.mark.parametrize("attack", ATTACKS.values(), ids=ATTACKS)


def noise_of(x: Any, norm: str) -> Any:
    noise = start_noise(0, 0, range(len(x)), tuple(x.shape[1:]), norm)
    return torch.from_numpy(noise) if isinstance(x, torch.Tensor) else noise


def nearest_boundary(linear: Mlp, x: np.ndarray, y: np.ndarray, other: int, norm: str) -> np.ndarray:
    """Smallest ‖δ‖ with x + δ in [0, 1] and z_other ≥ z_y, by bisection in float64; inf where there is none."""
    w = (linear.readout[:, [other]] - linear.readout[:, y]).T.astype(np.float64)
    flat = x.reshape(len(x), -1).astype(np.float64)
    missing = -(np.einsum("nd,nd->n", w, flat) + linear.bias[other].astype(np.float64) - linear.bias[y])
    along = np.sign(w) if norm == "linf" else w

    def at(s: np.ndarray) -> np.ndarray:
        return np.clip(flat + s[:, None] * along, 0, 1) - flat

    low, high = np.zeros(len(x)), np.full(len(x), 1e4)
    for _ in range(100):
        middle = (low + high) / 2
        reached = np.einsum("nd,nd->n", w, at(middle)) >= missing
        low, high = np.where(reached, low, middle), np.where(reached, middle, high)
    change = at(high)
    size = np.abs(change).max(1) if norm == "linf" else np.linalg.norm(change, axis=1)
    return np.where(np.einsum("nd,nd->n", w, change) >= missing - 1e-9, size, np.inf)


@parametrized
@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("classes", [2, 3])
def test_strong_attacks_find_the_exact_robust_set_of_a_linear_classifier(
    attack: Callable[..., Any], norm: str, classes: int
) -> None:
    rng = np.random.default_rng(classes)
    linear, images = random_linear(rng, classes, 24), rng.random((300, 2, 3, 4), dtype=np.float32)
    labels = linear.logits(images).argmax(1)
    exact = np.min(
        [np.where(labels == j, np.inf, nearest_boundary(linear, images, labels, j, norm)) for j in range(classes)], 0
    )
    eps = float(np.quantile(exact[np.isfinite(exact)], 0.5))
    robust = np.ones(300, bool)
    for rank in range(classes - 1 if attack in (apgd_t, fab_t) else 1):
        if attack in (apgd_t, fab_t):
            targets = likely_target(linear.logits(images), labels, rank)
            if attack is fab_t:
                found = fab(linear, images, labels, eps, steps=30, targets=targets, norm=norm)
            else:
                noise = noise_of(images, norm)
                found = apgd(linear, images, labels, eps, steps=50, noise=noise, norm=norm, loss="dlr", targets=targets)
        else:
            found = attack(linear, images, labels, eps, norm, 50)
        robust &= correct(linear.logits(found), labels)
    clear = np.abs(exact - eps) > 0.02 * eps
    assert clear.sum() > 250
    assert not (~robust & (exact > eps * (1 + 1e-4))).any()
    missed = (robust & (exact < eps))[clear].sum()
    # With three classes the cross-entropy may climb to the wrong one of the others.
    assert missed <= (0 if classes == 2 or attack in (apgd_t, fab_t) else 6)


@pytest.mark.parametrize("norm", NORMS)
def test_fab_finds_the_smallest_norm(norm: str) -> None:
    rng = np.random.default_rng(1)
    linear, images = random_linear(rng, 2, 24), rng.random((200, 2, 3, 4), dtype=np.float32)
    labels = linear.logits(images).argmax(1)
    exact = np.where(labels == 0, *(nearest_boundary(linear, images, labels, j, norm) for j in (1, 0)))
    found = fab(linear, images, labels, 0.0, steps=60, targets=1 - labels, norm=norm)
    fooled = ~correct(linear.logits(found), labels)
    assert fooled[np.isfinite(exact)].mean() > 0.99
    sizes = length(found - images, norm)[fooled]
    assert (sizes >= exact[fooled] * (1 - 1e-4)).all()
    assert np.quantile(sizes / exact[fooled], 0.95) < 1.02


@settings(max_examples=40)
@given(st.integers(0, 10_000), st.sampled_from(NORMS), st.sampled_from([-1.0, -0.1, 0.0, 0.3, 2.0, 100.0]))
def test_the_step_to_a_plane_is_the_smallest(seed: int, norm: str, rise: float) -> None:
    rng = np.random.default_rng(seed)
    x = rng.random((5, 1, 3, 3), dtype=np.float32)
    x[0] = np.round(x[0])
    w = rng.normal(size=x.shape).astype(np.float32) * np.float32(10.0 ** rng.integers(-3, 3))
    goal = np.full(5, rise, np.float32) * np.abs(w).max((1, 2, 3))
    step = to_plane(x, w, goal, norm)
    assert (x + step >= -1e-6).all()
    assert (x + step <= 1 + 1e-6).all()
    value = (w * step).sum((1, 2, 3))
    most = (
        np.maximum(w * (1 - x), -w * x).sum((1, 2, 3)) if rise > 0 else np.maximum(-w * (1 - x), w * x).sum((1, 2, 3))
    )
    np.testing.assert_allclose(np.abs(value), np.minimum(np.abs(goal), most), rtol=1e-4, atol=1e-6 * np.abs(w).max())
    for _ in range(20):  # no other step of its value is smaller
        other = np.clip(x + step + rng.normal(scale=0.05, size=x.shape), 0, 1) - x
        better = (np.sign(rise) * (w * other).sum((1, 2, 3)) >= np.abs(value) + 1e-5) & (rise != 0)
        assert not (better & (length(other, norm) < length(step, norm) - 1e-5)).any()


@pytest.fixture(scope="module")
def held_out() -> tuple[np.ndarray, np.ndarray]:
    images, labels = digits()
    images, labels = images[1200:1400].astype(np.float32) / 255, labels[1200:1400]
    right = correct(fit().logits(images), labels)
    return images[right], labels[right]


@parametrized
@pytest.mark.parametrize("norm", NORMS)
def test_in_ball_and_box_same_in_torch_and_spent_on_nobody_who_is_fooled(
    attack: Callable[..., Any], norm: str, held_out: tuple[np.ndarray, np.ndarray]
) -> None:
    class Counted(Mlp):
        sizes: tuple[int, ...] = ()

        def logits_and_gradient(self, images, labels, loss, targets=None):
            self.sizes += (len(images),)
            return super().logits_and_gradient(images, labels, loss, targets)

    images, labels = held_out
    mlp = fit()
    classifier = Counted(mlp.readout, mlp.bias, mlp.hidden, mlp.offset, mlp.scale)
    before = images.copy()
    found = attack(classifier, images, labels, EPS[norm], norm)
    np.testing.assert_array_equal(images, before)
    assert excess(images, found, EPS[norm], norm)[0] == 0
    robust = correct(mlp.logits(found), labels)
    assert 10 < robust.sum() < len(labels) - 50
    assert list(classifier.sizes) == sorted(classifier.sizes, reverse=True)
    assert robust.sum() - 1 <= classifier.sizes[-1] < classifier.sizes[0]  # one may lie on the boundary
    np.testing.assert_array_equal(attack(mlp, images, labels, EPS[norm], norm), found)
    tensors = [torch.from_numpy(array) for array in (images, labels)]
    with torch.no_grad():
        there = attack(as_torch(mlp), *tensors, EPS[norm], norm)
    assert isinstance(there, torch.Tensor)
    robust_there = correct(mlp.logits(there.numpy()), labels)
    assert np.count_nonzero(robust_there != robust) <= 2


@pytest.mark.parametrize("norm", NORMS)
def test_stronger_attacks_leave_less(norm: str, held_out: tuple[np.ndarray, np.ndarray]) -> None:
    images, labels = held_out
    classifier, eps = fit(), EPS[norm]
    one_step = correct(classifier.logits(fgsm(classifier, images, labels, eps, norm=norm)), labels).sum()
    pgd = worst_case(classifier, images, labels, eps, steps=10, norm=norm).robust.sum()
    auto = min(
        correct(classifier.logits(attack(classifier, images, labels, eps, norm, 100)), labels).sum()
        for attack in (apgd_ce, apgd_t)
    )
    assert one_step >= pgd >= auto
    assert one_step > auto


@given(st.integers(0, 1000), st.floats(0.01, 20))
def test_projection_and_direction_in_l2(seed: int, eps: float) -> None:
    rng = np.random.default_rng(seed)
    images = rng.random((6, 2, 3, 4), dtype=np.float32)
    moved = (images + rng.normal(scale=eps, size=images.shape)).astype(np.float32)
    projected = projection(images, eps, "l2")(moved)
    assert excess(images, projected, eps, "l2")[0] == 0
    np.testing.assert_allclose(projection(images, eps, "l2")(projected), projected, atol=1e-6)
    tiny = (rng.normal(size=images.shape) * 1e-30).astype(np.float32)
    tiny[0] = 0
    np.testing.assert_allclose(length(direction(tiny, "l2"), "l2"), [0, 1, 1, 1, 1, 1], rtol=1e-5)
    same = projection(torch.from_numpy(images), eps, "l2")(torch.from_numpy(moved))
    np.testing.assert_allclose(same, projected, atol=1e-5)


@pytest.mark.parametrize("dark", [0.0, 0.8])
def test_the_projection_in_l2_is_the_nearest_point_of_ball_and_box(dark: float) -> None:
    """z is that of m exactly where ⟨m − z, u − z⟩ ≤ 0 for every u of both sets."""
    rng = np.random.default_rng(7)
    images = np.where(rng.random((16, 1, 12, 12)) < dark, 0, rng.random((16, 1, 12, 12))).astype(np.float32)
    moved = images + rng.standard_normal(images.shape).astype(np.float32) ** 3 * 0.2
    for eps in (0.2, 1.0, 3.0):
        near = projection(images, eps, "l2")(moved)
        apart = length(near - images, "l2")
        assert (np.isclose(apart, eps, rtol=1e-3) | np.isclose(near, np.clip(moved, 0, 1)).all((1, 2, 3))).all()
        away = (moved - near).astype(np.float64)
        for _ in range(30):
            inside = projection(images, eps, "l2")(near + rng.standard_normal(images.shape).astype(np.float32) * 0.1)
            assert excess(images, inside, eps, "l2")[0] == 0
            slack = (away * (inside - near)).sum((1, 2, 3)) / np.maximum(length(away, "l2"), 1e-9)
            assert slack.max() <= 1e-3 * eps


def test_starts_fill_the_l2_ball_and_belong_to_the_sample() -> None:
    noise = start_noise(0, 0, range(300), (1, 1, 3), "l2")
    sizes = np.linalg.norm(noise.reshape(300, -1), axis=1)
    assert sizes.max() <= 1 + 1e-6
    assert np.mean(sizes**3) == pytest.approx(0.5, abs=0.06)
    np.testing.assert_array_equal(start_noise(0, 0, [17], (1, 1, 3), "l2")[0], noise[17])


def test_draws_are_uniform_and_belong_to_seed_sample_and_turn() -> None:
    many = draws(0, range(100), 3, 50)
    assert many.min() >= 0
    assert many.max() < 1
    assert np.histogram(many, 10, (0, 1))[0].min() > 420
    assert abs(np.corrcoef(many[:-1].ravel(), many[1:].ravel())[0, 1]) < 0.05
    np.testing.assert_array_equal(draws(0, [7], 3, 50)[0], many[7])
    assert all((draws(*key, 50)[0] != many[7]).all() for key in [(1, [7], 3), (0, [7], 4), (0, [8], 3)])


def test_checkpoints_of_the_paper() -> None:
    """p = 0.22, 0.41, 0.57, 0.70, 0.80, 0.87, 0.93, 0.99."""
    assert checkpoints(100) == [22, 41, 57, 70, 80, 87, 93, 99]
    assert checkpoints(10) == [3, 5, 6, 7, 8, 9, 10, 10]


def test_targets_are_the_likely_classes_but_the_label() -> None:
    logits = np.array([[3, 1, 2, 0], [0, 1, 2, 3]], np.float32)
    labels = np.array([0, 2])
    assert [likely_target(logits, labels, rank).tolist() for rank in range(3)] == [[2, 3], [1, 1], [3, 0]]
    assert [n_targets(classes) for classes in (2, 5, 10, 100)] == [1, 4, 9, 9]


@pytest.mark.parametrize("attack", [apgd_ce, apgd_t])
@pytest.mark.parametrize("norm", NORMS)
def test_every_image_that_fools_is_kept(attack: Callable[..., Any], norm: str) -> None:
    """At a checkpoint of the step size the search went back to its best point and forgot the one that fooled."""

    class Watched(Mlp):
        """`last`: the last point of each sample where there was a gradient; `rows`: of those not fooled yet."""

        def logits_and_gradient(self, images, labels, loss, targets=None):
            result = super().logits_and_gradient(images, labels, loss, targets)
            self.last[self.rows] = images
            self.rows = self.rows[correct(result[0], labels)]
            return result

    for seed in range(40):
        rng = np.random.default_rng(seed)
        shapes = ((12, 10), 10, (12, 12), 12)
        net = Watched(*(rng.normal(size=shape).astype(np.float32) for shape in shapes))
        images = rng.random((100, 1, 3, 4), dtype=np.float32)
        labels = net.logits(images).argmax(1)
        net.last, net.rows = images.copy(), np.arange(100)
        eps = 0.1 if norm == "linf" else 0.3
        found = attack(net, images, labels, eps, norm, 20)
        fooled = np.setdiff1d(np.arange(100), net.rows)
        np.testing.assert_array_equal(found[fooled], net.last[fooled])
