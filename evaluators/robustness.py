"""Attacks on a classifier, white-box and black-box, and the worst case per sample over all of them."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from atmc_tool.attacks.classifier import Array, Classifier, Loss
from atmc_tool.attacks.standing import WorstCase, attack_standing
from atmc_tool.errors import AtmcError
from atmc_tool.threat_model import Norm
from evaluators.accuracy import Floats, Labels, share
from evaluators.attack_plan import AttackSettings, PlannedAttack, plan
from evaluators.spread import Alone, Spread, spread_attack
from evaluators.statistics import Proportion

StageProgress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class AttackResult:
    """One attack on the first m images.

    robust:      bool (m,), correct and not fooled; of an attack on the samples still standing, by those before neither
    labels:      int64 (m,)
    adversarial: float32 (m, C, H, W), the images that decided it
    violations:  scored images outside the threat model; `largest` is the largest ‖x' − x‖ of the others
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

    white_box:   attacks by the classifier's own gradient, cross-entropy first; empty where there is no gradient
    black_box:   the Square attack, if it ran
    robust:      bool (n,), robust under every attack; None without a white-box attack
    adversarial: float32 (n, C, H, W): for each sample an image that fools it, if one was found
    no_gradient: why there is no white-box attack, or, where some ran, which one broke off and why
    transfer:    where there is none: the same attacks by the gradient of a surrogate
    """

    white_box: tuple[AttackResult, ...]
    black_box: AttackResult | None
    robust: NDArray[np.bool_] | None
    adversarial: Floats | None
    no_gradient: str = ""
    transfer: tuple[AttackResult, ...] = ()

    @property
    def attacks(self) -> tuple[AttackResult, ...]:
        """All of them."""
        return (*self.white_box, *self.transfer, *((self.black_box,) if self.black_box else ()))

    @property
    def accuracy(self) -> Proportion | None:
        """The robust accuracy to release; None without a white-box attack."""
        return None if self.robust is None else share(self.robust, self.white_box[0].labels)

    @property
    def judged(self) -> tuple[NDArray[np.bool_], Floats] | None:
        """`robust` and `adversarial`; without a gradient those under transfer and the black-box attack, on the m images
        that the latter attacked.

        None where it did not run: a surrogate of no use fools nothing, and so proves nothing of the others.
        """
        if self.robust is not None and self.adversarial is not None:
            return self.robust, self.adversarial
        if self.black_box is None:
            return None
        robust, adversarial = self.black_box.robust.copy(), self.black_box.adversarial.copy()
        for result in self.transfer:
            fooled = np.flatnonzero(robust & ~result.robust[: len(robust)])
            robust[fooled], adversarial[fooled] = False, result.adversarial[fooled]
        return robust, adversarial

    @property
    def without_gradient(self) -> Proportion | None:
        """The worst case per sample over transfer and the black-box attack; None where that is not judged."""
        if self.white_box or self.black_box is None or self.judged is None:
            return None
        return share(self.judged[0], self.black_box.labels)


@dataclass(frozen=True)
class _Transfer:
    """The logits of `target` with the gradient of `surrogate`."""

    target: Classifier
    surrogate: Classifier

    def logits(self, images: Array) -> Array:
        return self.target.logits(images)

    def logits_and_gradient(
        self, images: Array, labels: Array, loss: Loss, targets: Array | None = None
    ) -> tuple[Array, Array]:
        return self.target.logits(images), self.surrogate.logits_and_gradient(images, labels, loss, targets)[1]


def attack(
    classifier: Classifier,
    images: Floats,
    labels: Labels,
    eps: float,
    settings: AttackSettings,
    progress: StageProgress | None = None,
    spread: Spread | None = None,
    norm: Norm = "linf",
    surrogate: Classifier | None = None,
) -> Robustness:
    """Attack images (n, C, H, W) by all attacks of `plan`, and take the worst case per sample.

    With `spread` each process attacks its share of the images, and every one gets the same result.
    surrogate: a classifier of the same images and classes, by whose gradient is attacked where this one has none
    """
    classes = classifier.logits(images[:1]).shape[1]
    white_box: list[AttackResult] = []
    black_box: AttackResult | None = None
    robust, adversarial = np.ones(len(labels), np.bool_), images.copy()
    no_gradient = ""
    for planned in plan(classifier, eps, norm, classes, settings):
        if planned.white_box and no_gradient:
            continue
        standing = robust if planned.standing else np.ones(len(labels), np.bool_)
        chosen = np.flatnonzero(standing[: planned.samples])
        try:
            found = _run(classifier, planned, images, labels, chosen, eps, norm, settings, progress, spread or Alone())
        except AtmcError as error:
            if not planned.white_box:
                raise
            no_gradient = f"{planned.name} broke off: {error}"
            continue
        m = len(labels[: planned.samples])
        left, tried = standing[:m].copy(), (adversarial if planned.standing else images)[:m].copy()
        left[chosen], tried[chosen] = found.robust, found.adversarial
        parameters = {**planned.parameters, "attacked": len(chosen)} if planned.standing else planned.parameters
        result = AttackResult(planned.name, parameters, left, labels[:m], tried, found.violations, found.largest)
        first = not white_box and black_box is None
        if planned.white_box:
            white_box.append(result)
        else:
            black_box = result
        newly = chosen if first else np.flatnonzero(robust[:m] & ~left)
        robust[:m] &= left
        adversarial[newly] = tried[newly]
    if not white_box and surrogate is not None:
        twin = _Transfer(classifier, surrogate)
        alone = replace(settings, square_queries=0)
        moved = attack(twin, images, labels, eps, alone, progress, spread, norm)
        transfer = tuple(replace(result, name=f"transfer, {result.name}") for result in moved.white_box)
        which = "of the surrogate's attacks" if transfer else "nor has the surrogate one:"
        missing = f"; {which} {moved.no_gradient}" if moved.no_gradient else ""
        return Robustness((), black_box, None, None, no_gradient + missing, transfer)
    if not white_box:
        return Robustness((), black_box, None, None, no_gradient)
    return Robustness(tuple(white_box), black_box, robust, adversarial, no_gradient)


def _run(
    classifier: Classifier,
    planned: PlannedAttack,
    images: Floats,
    labels: Labels,
    chosen: NDArray[np.intp],
    eps: float,
    norm: Norm,
    settings: AttackSettings,
    progress: StageProgress | None,
    spread: Spread,
) -> WorstCase:
    """What `planned` leaves of the images of numbers `chosen`."""

    def attack_share(share: slice) -> WorstCase:
        own = chosen[share]
        return attack_standing(
            classifier,
            images[own],
            labels[own],
            eps,
            planned.attempts,
            norm=norm,
            indices=own.tolist(),
            batch_size=settings.batch_size,
            progress=None if progress is None else lambda done, total: progress(planned.name, done, total),
        )

    return spread_attack(spread, images[chosen], attack_share)
