"""Attacks one after the other, each on the samples that are still classified correctly."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from array_api_compat import array_namespace, device

from atmc_tool.attacks.classifier import Array, Classifier, correct
from atmc_tool.attacks.norms import length
from atmc_tool.threat_model import Norm

Progress = Callable[[int, int], None]
# images (m, C, H, W), labels (m,) and the samples' numbers in the whole set → adversarial images (m, C, H, W)
SampleAttack = Callable[[Array, Array, Sequence[int]], Array]

ROUNDING = 1e-6  # x ± eps is rounded to float32


@dataclass(frozen=True)
class WorstCase:
    """What is left of a classifier under attack; arrays of the images' own library.

    correct:     bool (n,), clean images classified correctly
    robust:      bool (n,), correct and never fooled
    adversarial: (n, C, H, W), the image that fooled; the last one tried where none did; the clean image where that
                 is misclassified already
    violations:  number of scored images outside the ball or the box, or with NaN
    largest:     largest ‖x' − x‖ of the scored images
    """

    correct: Array
    robust: Array
    adversarial: Array
    violations: int
    largest: float


def excess(images: Array, adversarial: Array, eps: float, norm: Norm = "linf") -> tuple[int, float]:
    """Number of adversarial images outside the ball or the box or with NaN, and the largest ‖x' − x‖ of the others."""
    xp = array_namespace(images)
    distance = length(adversarial - images, norm)
    in_ball = distance <= eps + ROUNDING * max(1.0, eps)
    inside = in_ball & xp.all((adversarial >= 0) & (adversarial <= 1), axis=(1, 2, 3))
    largest = xp.max(xp.where(inside, distance, xp.zeros_like(distance)))
    return int(xp.sum(xp.astype(~inside, xp.int64))), float(largest)


def attack_standing(
    classifier: Classifier,
    images: Array,
    labels: Array,
    eps: float,
    attacks: Sequence[SampleAttack],
    *,
    norm: Norm = "linf",
    indices: Sequence[int] | None = None,
    batch_size: int = 256,
    progress: Progress | None = None,
) -> WorstCase:
    """Each of the attacks in turn; samples already fooled are dropped from later work.

    images:   float32 (n, C, H, W) in [0, 1], n ≥ 1; labels int64 (n,)
    indices:  numbers of the images in the set that they are a part of; None: 0 to n − 1
    progress: called with (attempts done, attempts in all), an attempt being one sample under one attack

    Costs two forward passes more than the attacks: of the clean images, and of what each attack gave.
    """
    xp = array_namespace(images)
    n = images.shape[0]
    numbers = range(n) if indices is None else indices
    total = n * (1 + len(attacks))
    batches = [slice(first, min(first + batch_size, n)) for first in range(0, n, batch_size)]
    right = xp.concat([correct(classifier.logits(images[batch]), labels[batch]) for batch in batches])
    robust, adversarial = xp.asarray(right, copy=True), xp.asarray(images, copy=True)
    violations, largest = 0, 0.0
    for attempt, attack in enumerate(attacks):
        standing = xp.nonzero(robust)[0].tolist()
        for first in range(0, len(standing), batch_size):
            if progress is not None:
                progress((1 + attempt) * n + standing[first], total)
            rows = standing[first : first + batch_size]
            left = xp.asarray(rows, device=device(images))
            x, y = images[left], labels[left]
            attacked = attack(x, y, [numbers[row] for row in rows])
            outside, distance = excess(x, attacked, eps, norm)
            violations, largest = violations + outside, max(largest, distance)
            adversarial[left] = attacked
            robust[left] = correct(classifier.logits(attacked), y)
    if progress is not None:
        progress(total, total)
    return WorstCase(right, robust, adversarial, violations, largest)
