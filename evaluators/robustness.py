"""Attacks on a classifier, white-box and black-box, and the worst case per sample over all of them."""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from atmc_tool.attacks.classifier import Classifier, Loss
from atmc_tool.attacks.pgd import default_step_size
from atmc_tool.attacks.square import square
from atmc_tool.attacks.worst_case import excess
from atmc_tool.errors import AtmcError, UsageError
from evaluators.accuracy import Floats, Labels, share
from evaluators.spread import Alone, Spread, spread_worst_case
from evaluators.statistics import Proportion

StageProgress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class AttackSettings:
    """How hard to attack.

    steps, restarts: of PGD on the cross-entropy; PGD on the margin loss has one restart of as many steps
    step_size:       in units of the image; None: 2.5·eps/steps
    square_queries:  of the Square attack, per sample; 0 leaves it out
    square_samples:  it attacks the first so many images
    seed:            of starts and squares
    batch_size:      images per run of the classifier

    Raises:
        UsageError: a value out of range.
    """

    steps: int = 20
    restarts: int = 3
    step_size: float | None = None
    square_queries: int = 300
    square_samples: int = 256
    seed: int = 0
    batch_size: int = 128

    def __post_init__(self) -> None:
        lowest = {"steps": 1, "restarts": 1, "square_queries": 0, "square_samples": 1, "seed": 0, "batch_size": 1}
        for name, value in asdict(self).items():
            if name in lowest and value < lowest[name]:
                raise UsageError(f"{name} is out of range", expected=f"at least {lowest[name]}", got=value)
        if self.step_size is not None and not self.step_size > 0:
            raise UsageError("step_size is out of range", expected="a positive number", got=self.step_size)


@dataclass(frozen=True)
class AttackResult:
    """One attack on the first m images.

    robust:      bool (m,), correct and not fooled
    labels:      int64 (m,)
    adversarial: float32 (m, C, H, W), the images that decided it
    violations:  scored images outside the threat model; `largest` is the largest ‖x' − x‖∞ of the others
    """

    name: str
    parameters: Mapping[str, Any]
    robust: NDArray[np.bool_]
    labels: Labels
    adversarial: Floats
    violations: int
    largest: float

    @property
    def accuracy(self) -> Proportion:
        """Accuracy under this attack alone."""
        return share(self.robust, self.labels)

    def to_json(self) -> dict[str, Any]:
        """Everything but the arrays."""
        return {"name": self.name, "parameters": dict(self.parameters), **self.accuracy.to_json()}


@dataclass(frozen=True)
class Robustness:
    """All attacks that could be run, and the worst case per sample over them.

    white_box:   PGD by the classifier's own gradient, cross-entropy first; empty where there is no gradient
    black_box:   the Square attack, if it ran
    robust:      bool (n,), robust under every attack; None without a white-box attack
    adversarial: float32 (n, C, H, W): for each sample an image that fools it, if one was found
    no_gradient: why there is no white-box attack
    """

    white_box: tuple[AttackResult, ...]
    black_box: AttackResult | None
    robust: NDArray[np.bool_] | None
    adversarial: Floats | None
    no_gradient: str = ""

    @property
    def attacks(self) -> tuple[AttackResult, ...]:
        """All of them."""
        return (*self.white_box, *((self.black_box,) if self.black_box else ()))

    @property
    def accuracy(self) -> Proportion | None:
        """The robust accuracy to release; None without a white-box attack."""
        return None if self.robust is None else share(self.robust, self.white_box[0].labels)


def attack(
    classifier: Classifier,
    images: Floats,
    labels: Labels,
    eps: float,
    settings: AttackSettings,
    progress: StageProgress | None = None,
    spread: Spread | None = None,
) -> Robustness:
    """Attack images (n, C, H, W) by PGD on two losses and by Square; each attack starts from all of its images.

    With `spread` each process runs PGD on its share of the images, and every one gets the same result.
    """
    spread = spread or Alone()
    white_box: tuple[AttackResult, ...] = ()
    no_gradient = ""
    try:
        white_box = (
            _pgd(classifier, images, labels, eps, settings, "cross_entropy", settings.restarts, progress, spread),
            _pgd(classifier, images, labels, eps, settings, "margin", 1, progress, spread),
        )
    except AtmcError as error:
        no_gradient = str(error)
    black_box = _square(classifier, images, labels, eps, settings, progress) if settings.square_queries else None
    if not white_box:
        return Robustness((), black_box, None, None, no_gradient)
    robust, adversarial = white_box[0].robust.copy(), white_box[0].adversarial.copy()
    for result in (*white_box[1:], *((black_box,) if black_box else ())):
        m = len(result.robust)
        newly = np.flatnonzero(robust[:m] & ~result.robust)
        robust[newly], adversarial[newly] = False, result.adversarial[newly]
    return Robustness(white_box, black_box, robust, adversarial)


def _pgd(
    classifier: Classifier,
    images: Floats,
    labels: Labels,
    eps: float,
    settings: AttackSettings,
    loss: Loss,
    restarts: int,
    progress: StageProgress | None,
    spread: Spread,
) -> AttackResult:
    name = f"pgd-{settings.steps} {loss.replace('_', '-')}"
    step_size = default_step_size(eps, settings.steps) if settings.step_size is None else settings.step_size
    result = spread_worst_case(
        spread,
        classifier,
        images,
        labels,
        eps,
        steps=settings.steps,
        restarts=restarts,
        step_size=step_size,
        losses=(loss,),
        seed=settings.seed,
        batch_size=settings.batch_size,
        progress=None if progress is None else lambda done, total: progress(name, done, total),
    )
    parameters = {
        "attack": "pgd",
        "loss": loss,
        "eps": eps,
        "steps": settings.steps,
        "step_size": step_size,
        "restarts": restarts,
        "start": "uniform in the ball",
        "seed": settings.seed,
    }
    return AttackResult(name, parameters, result.robust, labels, result.adversarial, result.violations, result.largest)


def _square(
    classifier: Classifier,
    images: Floats,
    labels: Labels,
    eps: float,
    settings: AttackSettings,
    progress: StageProgress | None,
) -> AttackResult:
    n = min(settings.square_samples, len(images))
    images, labels = images[:n], labels[:n]
    generator = np.random.default_rng(settings.seed)
    adversarial, robust = np.empty_like(images), np.empty(n, np.bool_)
    for first in range(0, n, settings.batch_size):
        batch = slice(first, min(first + settings.batch_size, n))
        adversarial[batch], fooled = square(
            classifier, images[batch], labels[batch], eps, queries=settings.square_queries, generator=generator
        )
        robust[batch] = ~fooled
        if progress is not None:
            progress("square", batch.stop, n)
    parameters = {
        "attack": "square",
        "eps": eps,
        "queries": settings.square_queries,
        "seed": settings.seed,
        "batch_size": settings.batch_size,
    }
    return AttackResult("square", parameters, robust, labels, adversarial, *excess(images, adversarial, eps))
