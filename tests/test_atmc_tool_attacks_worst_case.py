from itertools import pairwise

import numpy as np
import pytest
import torch
from numpy_classifiers import Mlp, digits, fit
from test_atmc_tool_attacks_pgd import as_torch, problem, worst_vertex

from atmc_tool.attacks.classifier import correct
from atmc_tool.attacks.pgd import pgd
from atmc_tool.attacks.standing import excess
from atmc_tool.attacks.starts import start_noise
from atmc_tool.attacks.worst_case import worst_case


class Recording(Mlp):
    """Remembers the sizes of the batches whose gradient was asked for."""

    sizes: tuple[int, ...] = ()

    def logits_and_gradient(self, images, labels, loss, targets=None):
        self.sizes += (len(images),)
        return super().logits_and_gradient(images, labels, loss, targets)


@pytest.fixture(scope="module")
def held_out() -> tuple[Mlp, np.ndarray, np.ndarray]:
    images, labels = digits()
    return fit(), images[1200:1500].astype(np.float32) / 255, labels[1200:1500]


def test_is_the_exact_worst_case_of_a_linear_classifier_with_two_classes() -> None:
    linear, images, labels = problem(5, classes=2, n=400)
    exact = np.where(
        (labels == 0)[:, None, None, None], *(worst_vertex(linear, images, labels, j, 0.05) for j in (1, 0))
    )
    result = worst_case(linear, images, labels, 0.05, steps=10, batch_size=64)
    expected = correct(linear.logits(exact), labels)
    np.testing.assert_array_equal(result.robust, expected)
    np.testing.assert_array_equal(result.correct, correct(linear.logits(images), labels))
    assert 20 < result.robust.sum() < result.correct.sum() - 20


def test_adversarial_images_decide_the_flags(held_out: tuple[Mlp, np.ndarray, np.ndarray]) -> None:
    classifier, images, labels = held_out
    result = worst_case(classifier, images, labels, 0.05, steps=10, restarts=3, losses=("cross_entropy", "margin"))
    np.testing.assert_array_equal(correct(classifier.logits(result.adversarial), labels), result.robust)
    np.testing.assert_array_equal(result.adversarial[~result.correct], images[~result.correct])
    assert not (result.robust & ~result.correct).any()
    assert result.violations == 0
    assert 0.049 < result.largest <= 0.05 + 1e-6


def test_monotone_in_restarts_losses_and_independent_of_batches(
    held_out: tuple[Mlp, np.ndarray, np.ndarray],
) -> None:
    classifier, images, labels = held_out
    robust = [worst_case(classifier, images, labels, 0.06, steps=3, restarts=r).robust for r in (1, 2, 4)]
    robust.append(
        worst_case(classifier, images, labels, 0.06, steps=3, restarts=4, losses=("cross_entropy", "margin")).robust
    )
    for fewer, more in pairwise(robust):
        assert not (more & ~fewer).any()
    assert robust[-1].sum() < robust[0].sum()
    small = worst_case(classifier, images, labels, 0.06, steps=3, restarts=4, batch_size=17).robust
    np.testing.assert_array_equal(small, robust[2])
    half = worst_case(classifier, images[:150], labels[:150], 0.06, steps=3, restarts=4).robust
    np.testing.assert_array_equal(half, robust[2][:150])
    rest = worst_case(classifier, images[150:], labels[150:], 0.06, steps=3, restarts=4, first_index=150).robust
    np.testing.assert_array_equal(rest, robust[2][150:])


def test_equals_a_plain_loop_over_restarts(held_out: tuple[Mlp, np.ndarray, np.ndarray]) -> None:
    classifier, images, labels = held_out
    robust = correct(classifier.logits(images), labels)
    for restart in range(3):
        noise = start_noise(7, restart, range(len(images)), images.shape[1:])
        found = pgd(classifier, images, labels, 0.05, steps=4, step_size=2.5 * 0.05 / 4, noise=noise)
        robust &= correct(classifier.logits(found), labels)
    result = worst_case(classifier, images, labels, 0.05, steps=4, restarts=3, seed=7)
    np.testing.assert_array_equal(result.robust, robust)


def test_fooled_samples_are_dropped_and_progress_is_complete(held_out: tuple[Mlp, np.ndarray, np.ndarray]) -> None:
    mlp, images, labels = held_out
    classifier = Recording(mlp.readout, mlp.bias, mlp.hidden, mlp.offset, mlp.scale)
    seen: list[tuple[int, int]] = []
    worst_case(
        classifier,
        images,
        labels,
        0.08,
        steps=1,
        restarts=3,
        batch_size=300,
        progress=lambda *done: seen.append(done),
    )
    assert len(classifier.sizes) == 3
    assert 300 > classifier.sizes[0] > classifier.sizes[1] >= classifier.sizes[2] > 0
    assert seen == sorted(seen)
    assert seen[-1] == (1200, 1200)


def test_torch_gives_the_same_verdicts(held_out: tuple[Mlp, np.ndarray, np.ndarray]) -> None:
    classifier, images, labels = held_out
    arguments = {"steps": 10, "restarts": 2, "seed": 3, "batch_size": 128}
    here = worst_case(classifier, images, labels, 0.05, **arguments)
    tensors = [torch.from_numpy(array) for array in (images, labels)]
    with torch.no_grad():
        there = worst_case(as_torch(classifier), *tensors, 0.05, **arguments)
    assert isinstance(there.robust, torch.Tensor)
    assert 50 < here.robust.sum() < 280
    assert np.count_nonzero(there.robust.numpy() != here.robust) <= 1
    assert np.mean(np.abs(there.adversarial.numpy() - here.adversarial) > 1e-6) < 0.01


def test_without_random_start_it_starts_at_the_images() -> None:
    linear, images, labels = problem(0, classes=4)
    result = worst_case(linear, images, labels, 0.1, steps=1, step_size=1e-3, random_start=False)
    assert np.abs(result.adversarial - images).max() < 2e-3


def test_start_noise_belongs_to_seed_restart_and_sample() -> None:
    noise = start_noise(0, 0, [3, 5], (2, 8, 8))
    np.testing.assert_array_equal(noise[1], start_noise(0, 0, [5], (2, 8, 8))[0])
    others = [noise[0], start_noise(0, 1, [5], (2, 8, 8))[0], start_noise(1, 0, [5], (2, 8, 8))[0]]
    assert all(np.abs(noise[1] - other).mean() > 0.4 for other in others)
    many = start_noise(0, 0, range(200), (2, 8, 8))
    assert -1 <= many.min() < -0.999
    assert 0.999 < many.max() < 1
    assert abs(many.mean()) < 0.02


def test_excess_counts_what_leaves_the_threat_model() -> None:
    images = np.full((6, 1, 2, 2), 0.5, np.float32)
    images[5] = 0.0
    moved = images.copy()
    moved[1, 0, 0, 0] += 0.1
    moved[2, 0, 1, 1] -= 0.11
    moved[3, 0, 0, 1] = np.nan
    moved[5, 0, 0, 0] = -0.01
    count, largest = excess(images, moved, 0.1)
    assert count == 3
    assert largest == pytest.approx(0.1)
    assert excess(torch.from_numpy(images), torch.from_numpy(moved), 0.1) == (count, largest)
