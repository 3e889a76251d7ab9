"""The worst case per sample over restarts and losses of PGD."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from array_api_compat import array_namespace, device
from numpy.typing import NDArray

from atmc_tool.attacks.classifier import Array, Classifier, Loss, correct
from atmc_tool.attacks.pgd import default_step_size, pgd

Progress = Callable[[int, int], None]

ROUNDING = 1e-6  # x ± eps is rounded to float32


@dataclass(frozen=True)
class WorstCase:
    """What is left of a classifier under attack; arrays of the images' own library.

    correct:     bool (n,), clean images classified correctly
    robust:      bool (n,), correct and never fooled
    adversarial: (n, C, H, W), the image that fooled; the last one tried where none did; the clean image where that
                 is misclassified already
    violations:  number of scored images outside the ball or the box, or with NaN
    largest:     largest ‖x' − x‖∞ of the scored images
    """

    correct: Array
    robust: Array
    adversarial: Array
    violations: int
    largest: float


def start_noise(seed: int, restart: int, indices: Sequence[int], shape: tuple[int, ...]) -> NDArray[np.float32]:
    """Uniform noise in [-1, 1), (len(indices), *shape).

    The noise of a sample depends on (seed, restart, its index) alone: not on batches, on which samples are still
    attacked, or on the array library.
    """
    noise = np.empty((len(indices), *shape), np.float32)
    for row, index in enumerate(indices):
        noise[row] = np.random.default_rng((seed, restart, index)).random(shape, dtype=np.float32)
    noise *= 2
    noise -= 1
    return noise


def excess(images: Array, adversarial: Array, eps: float) -> tuple[int, float]:
    """Number of adversarial images outside the ball or the box or with NaN, and the largest ‖x' − x‖∞ of the others."""
    xp = array_namespace(images)
    distance = xp.max(xp.abs(adversarial - images), axis=(1, 2, 3))
    inside = (distance <= eps + ROUNDING) & xp.all((adversarial >= 0) & (adversarial <= 1), axis=(1, 2, 3))
    largest = xp.max(xp.where(inside, distance, xp.zeros_like(distance)))
    return int(xp.sum(xp.astype(~inside, xp.int64))), float(largest)


def worst_case(
    classifier: Classifier,
    images: Array,
    labels: Array,
    eps: float,
    *,
    steps: int,
    restarts: int = 1,
    step_size: float | None = None,
    losses: Sequence[Loss] = ("cross_entropy",),
    random_start: bool = True,
    seed: int = 0,
    first_index: int = 0,
    batch_size: int = 256,
    progress: Progress | None = None,
) -> WorstCase:
    """PGD from `restarts` starts with each of the losses; samples already fooled are dropped from later work.

    images:    float32 (n, C, H, W) in [0, 1], n ≥ 1; labels int64 (n,)
    step_size: None for 2.5·eps/steps
    first_index: number of images[0] in the set that they are a part of; parts then get the noise of the whole set
    progress:  called with (attempts done, attempts in all), an attempt being one sample from one start

    With torch, call it under `torch.no_grad()`: only the gradient with respect to the images is needed.
    """
    xp = array_namespace(images)
    n = images.shape[0]
    total = n * (1 + restarts * len(losses))
    batches = [slice(first, min(first + batch_size, n)) for first in range(0, n, batch_size)]
    right = xp.concat([correct(classifier.logits(images[batch]), labels[batch]) for batch in batches])
    robust, adversarial = xp.asarray(right, copy=True), xp.asarray(images, copy=True)
    violations, largest = 0, 0.0
    for attempt, (loss, restart) in enumerate([(loss, restart) for loss in losses for restart in range(restarts)]):
        for batch in batches:
            if progress is not None:
                progress((1 + attempt) * n + batch.start, total)
            left = xp.nonzero(robust[batch])[0] + batch.start
            if left.shape[0] == 0:
                continue
            x, y = images[left], labels[left]
            noise = None
            if random_start:
                starts = start_noise(seed, restart, [first_index + i for i in left.tolist()], tuple(x.shape[1:]))
                noise = xp.asarray(starts, device=device(x))
            size = default_step_size(eps, steps) if step_size is None else step_size
            attacked = pgd(classifier, x, y, eps, steps=steps, step_size=size, noise=noise, loss=loss)
            outside, distance = excess(x, attacked, eps)
            violations, largest = violations + outside, max(largest, distance)
            adversarial[left] = attacked
            robust[left] = correct(classifier.logits(attacked), y)
    if progress is not None:
        progress(total, total)
    return WorstCase(right, robust, adversarial, violations, largest)
