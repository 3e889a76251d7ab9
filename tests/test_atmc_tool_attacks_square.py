import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy_classifiers import Mlp, digits, fit, random_linear
from test_atmc_tool_attacks_pgd import as_torch, problem, worst_vertex

from atmc_tool.attacks.classifier import correct
from atmc_tool.attacks.square import square, square_share
from atmc_tool.attacks.square_l2 import bump


class Counted(Mlp):
    """Counts how many images it is asked about."""

    queries = 0

    def logits(self, images: np.ndarray) -> np.ndarray:
        self.queries += len(images)
        return super().logits(images)


def counted(mlp: Mlp) -> Counted:
    return Counted(mlp.readout, mlp.bias, mlp.hidden, mlp.offset, mlp.scale)


@settings(max_examples=30)
@given(st.integers(0, 1000), st.floats(0.01, 0.8), st.integers(1, 40))
def test_stays_in_the_ball_and_fooled_means_misclassified(seed: int, eps: float, queries: int) -> None:
    linear, images, labels = problem(seed, classes=4)
    found, fooled = square(linear, images, labels, eps, queries=queries, seed=seed)
    assert np.abs(found - images).max() <= eps + 1e-6
    assert found.min() >= 0
    assert found.max() <= 1
    np.testing.assert_array_equal(fooled, ~correct(linear.logits(found), labels))


@settings(max_examples=30)
@given(st.integers(0, 1000), st.sampled_from([0.02, 0.05, 0.1]))
def test_fools_no_sample_that_is_provably_robust(seed: int, eps: float) -> None:
    rng = np.random.default_rng(seed)
    linear = random_linear(rng, 4, 24)
    images = rng.random((64, 2, 3, 4), dtype=np.float32)
    labels = linear.logits(images).argmax(1)
    provable = np.ones(64, bool)
    for other in range(4):
        logits = linear.logits(worst_vertex(linear, images, labels, other, eps))
        provable &= logits[np.arange(64), labels] >= logits[:, other]
    _, fooled = square(linear, images, labels, eps, queries=300, seed=seed)
    assert not (fooled & provable).any()


def test_finds_nearly_everything_that_can_be_fooled_on_a_small_image() -> None:
    rng = np.random.default_rng(0)
    linear = random_linear(rng, 2, 24)
    images = rng.random((500, 2, 3, 4), dtype=np.float32)
    labels = linear.logits(images).argmax(1)
    worst = np.where(
        (labels == 0)[:, None, None, None], *(worst_vertex(linear, images, labels, j, 0.1) for j in (1, 0))
    )
    possible = ~correct(linear.logits(worst), labels)
    _, fooled = square(linear, images, labels, 0.1, queries=400)
    assert 100 < possible.sum() < 490
    assert fooled.sum() >= 0.97 * possible.sum()


def test_more_queries_fool_more_and_no_query_is_wasted_on_the_fooled() -> None:
    images, labels = digits()
    images, labels = images[1200:1400].astype(np.float32) / 255, labels[1200:1400]
    classifier = counted(fit())
    fooled = {}
    for queries in (1, 20, 300):
        classifier.queries = 0
        _, fooled[queries] = square(classifier, images, labels, 0.06, queries=queries)
        left = int((~fooled[queries]).sum())
        assert left * queries <= classifier.queries - len(images) <= len(images) * queries
    assert fooled[1].sum() < fooled[20].sum() < fooled[300].sum()
    assert classifier.queries < 0.95 * len(images) * 300


def test_misclassified_images_are_left_alone() -> None:
    linear, images, labels = problem(3, classes=4)
    wrong = ~correct(linear.logits(images), labels)
    found, fooled = square(linear, images, labels, 0.1, queries=5, seed=0)
    assert 0 < wrong.sum() < len(wrong)
    assert fooled[wrong].all()
    np.testing.assert_array_equal(found[wrong], images[wrong])
    assert (found[~wrong] != images[~wrong]).any((1, 2, 3)).all()


def test_same_seed_same_images_in_numpy_and_torch() -> None:
    mlp = fit(hidden=30)
    rng = np.random.default_rng(1)
    images = rng.random((64, 1, 8, 8), dtype=np.float32)
    labels = mlp.logits(images).argmax(1)
    here, fooled = square(mlp, images, labels, 0.05, queries=60, seed=2)
    tensors = [torch.from_numpy(array) for array in (images, labels)]
    there, torch_fooled = square(as_torch(mlp), *tensors, 0.05, queries=60, seed=2)
    assert isinstance(there, torch.Tensor)
    assert 0 < fooled.sum() < 64
    np.testing.assert_array_equal(torch_fooled.numpy(), fooled)
    np.testing.assert_allclose(there.numpy(), here, atol=1e-6)


def test_schedule_of_the_paper() -> None:
    assert square_share(1, 10_000) == 0.8
    assert square_share(11, 10_000) == 0.4
    assert square_share(9_000, 10_000) == 0.8 / 2**8
    assert square_share(1, 1_000) == 0.8
    assert square_share(2, 1_000) == 0.4
    shares = [square_share(query, 777) for query in range(777)]
    assert shares == sorted(shares, reverse=True)


@settings(max_examples=30)
@given(st.integers(0, 1000), st.floats(0.01, 3), st.integers(1, 30))
def test_l2_stays_in_the_ball_and_takes_all_of_it(seed: int, eps: float, queries: int) -> None:
    rng = np.random.default_rng(seed)
    images = 0.25 + 0.5 * rng.random((16, 2, 9, 7), dtype=np.float32)
    linear = random_linear(rng, 4, 126)
    labels = linear.logits(images).argmax(1)
    found, fooled = square(linear, images, labels, eps, queries=queries, seed=seed, norm="l2")
    sizes = np.linalg.norm((found - images).reshape(16, -1), axis=1)
    assert sizes.max() <= eps * (1 + 1e-5)
    assert found.min() >= 0
    assert found.max() <= 1
    np.testing.assert_array_equal(fooled, ~correct(linear.logits(found), labels))
    if eps < 0.25:
        np.testing.assert_allclose(sizes, eps, rtol=1e-4)


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_what_a_sample_gets_does_not_depend_on_the_batch(norm: str) -> None:
    images, labels = digits()
    images, labels = images[1200:1260].astype(np.float32) / 255, labels[1200:1260]
    eps = 0.05 if norm == "linf" else 0.4
    whole, fooled = square(fit(), images, labels, eps, queries=60, seed=3, norm=norm)
    assert 0 < fooled.sum() < 60
    part = [7, 30, 31, 55]
    found, _ = square(fit(), images[part], labels[part], eps, queries=60, seed=3, indices=part, norm=norm)
    np.testing.assert_allclose(found, whole[part], atol=1e-6)


def test_bumps_of_the_paper() -> None:
    for side in (3, 5, 8, 11):
        window = bump(side)
        assert np.linalg.norm(window) == pytest.approx(1)
        assert (window[: side // 2] > 0).all()
        assert (window[side // 2 :] < 0).all()
        np.testing.assert_allclose(window, window[:, ::-1])


def test_l2_finds_most_that_can_be_fooled_and_nothing_else() -> None:
    rng = np.random.default_rng(0)
    linear = random_linear(rng, 2, 64)
    images = 0.25 + 0.5 * rng.random((200, 1, 8, 8), dtype=np.float32)
    labels = linear.logits(images).argmax(1)
    normal = linear.readout[:, 0] - linear.readout[:, 1]
    distance = np.abs(linear.logits(images) @ [1, -1]) / np.linalg.norm(normal)
    _, fooled = square(linear, images, labels, 0.2, queries=600, norm="l2")
    assert not (fooled & (distance > 0.2 + 1e-5)).any()
    assert fooled.sum() >= 0.75 * (distance < 0.2).sum() > 100
