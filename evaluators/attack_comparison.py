"""The attacks that papers on robust compression report, beside which others' numbers can be put; they judge nothing."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from atmc_tool.attacks.bim import bim
from atmc_tool.attacks.classifier import Array, Classifier
from atmc_tool.attacks.cw import CONFIDENCE, cw
from atmc_tool.attacks.fgsm import fgsm
from atmc_tool.attacks.momentum import momentum
from atmc_tool.attacks.noise import noisy
from atmc_tool.attacks.norms import length
from atmc_tool.attacks.pgd import default_step_size, pgd
from atmc_tool.attacks.standing import SampleAttack, WorstCase, attack_standing
from atmc_tool.attacks.starts import start_noise
from atmc_tool.attacks.wrm import WEIGHT, wrm
from atmc_tool.threat_model import Norm, ThreatModel
from evaluators.accuracy import Floats, Labels, share
from evaluators.attack_plan import AttackSettings
from evaluators.robustness import StageProgress
from evaluators.spread import Alone, Spread, spread_attack
from evaluators.statistics import Proportion

ITERATIONS, CW_STEPS, WRM_STEPS = 10, 20, 15
PGD_STEPS = (7, 50)
LABEL = "for comparison only"


@dataclass(frozen=True)
class ComparisonRow:
    """Accuracy under one attack on all images.

    mean, largest: of ‖x' − x‖, in the norm of the threat model, over the images that are right without an attack
    """

    name: str
    parameters: dict[str, Any]
    accuracy: Proportion
    mean: float
    largest: float

    def to_json(self) -> dict[str, Any]:
        """Everything as plain values."""
        distance = {"mean": self.mean, "largest": self.largest}
        stated = {"name": self.name, "label": LABEL, "parameters": self.parameters, "distance": distance}
        return {**stated, **self.accuracy.to_json()}


def compare_attacks(
    classifier: Classifier,
    images: Floats,
    labels: Labels,
    threat_model: ThreatModel,
    settings: AttackSettings,
    progress: StageProgress | None = None,
    spread: Spread | None = None,
) -> tuple[ComparisonRow, ...]:
    """Noise, FGSM, BIM, MI-FGSM, PGD-7 and PGD-50, C&W-inf, WRM, each on all images (n, C, H, W), labels (n,).

    About 120 input gradients for each image. The classifier must have gradients. With `spread` each process attacks
    its share of the images, and every one gets the same result.
    """
    eps, norm = threat_model.eps, threat_model.norm
    rows = []
    for name, parameters, attack in _attacks(classifier, eps, norm, settings.seed):

        def attack_share(part: slice, name: str = name, attack: SampleAttack = attack) -> WorstCase:
            return attack_standing(
                classifier,
                images[part],
                labels[part],
                eps,
                [attack],
                norm=norm,
                indices=range(part.start, part.stop),
                batch_size=settings.batch_size,
                progress=None if progress is None else lambda done, total: progress(name, done, total),
            )

        found = spread_attack(spread or Alone(), images, attack_share)
        distance = length(found.adversarial - images, norm)[found.correct].astype(np.float64)
        mean, largest = (float(distance.mean()), float(distance.max())) if len(distance) else (0.0, 0.0)
        rows.append(ComparisonRow(name, parameters, share(np.asarray(found.robust), labels), mean, largest))
    return tuple(rows)


def _attacks(
    classifier: Classifier, eps: float, norm: Norm, seed: int
) -> list[tuple[str, dict[str, Any], SampleAttack]]:
    """(name, parameters, attack)."""

    def start(x: Array, indices: Sequence[int]) -> Array:
        return start_noise(seed, 0, indices, tuple(x.shape[1:]), norm)

    def with_noise(x: Array, _: Array, indices: Sequence[int]) -> Array:
        return noisy(x, eps, noise=start(x, indices), norm=norm)

    def one_step(x: Array, y: Array, _: Sequence[int]) -> Array:
        return fgsm(classifier, x, y, eps, norm=norm)

    def basic(x: Array, y: Array, _: Sequence[int]) -> Array:
        return bim(classifier, x, y, eps, steps=ITERATIONS, norm=norm)

    def with_momentum(x: Array, y: Array, _: Sequence[int]) -> Array:
        return momentum(classifier, x, y, eps, steps=ITERATIONS, norm=norm)

    def projected(steps: int) -> SampleAttack:
        size = default_step_size(eps, steps)
        return lambda x, y, indices: pgd(
            classifier, x, y, eps, steps=steps, step_size=size, noise=start(x, indices), norm=norm
        )

    def on_margin(x: Array, y: Array, indices: Sequence[int]) -> Array:
        size = default_step_size(eps, CW_STEPS)
        return cw(classifier, x, y, eps, steps=CW_STEPS, step_size=size, noise=start(x, indices), norm=norm)

    def penalised(x: Array, y: Array, _: Sequence[int]) -> Array:
        return wrm(classifier, x, y, steps=WRM_STEPS)

    ball: dict[str, Any] = {"norm": norm, "eps": eps}
    steps = {"steps": ITERATIONS, "step_size": eps / ITERATIONS}
    random_pgd = [
        (f"pgd-{n}", {**ball, "steps": n, "step_size": default_step_size(eps, n), "seed": seed}, projected(n))
        for n in PGD_STEPS
    ]
    of_cw = {"steps": CW_STEPS, "step_size": default_step_size(eps, CW_STEPS), "confidence": CONFIDENCE, "seed": seed}
    return [
        ("noise", {**ball, "seed": seed}, with_noise),
        ("fgsm", {**ball}, one_step),
        (f"bim-{ITERATIONS}", {**ball, **steps}, basic),
        (f"mi-fgsm-{ITERATIONS}", {**ball, **steps}, with_momentum),
        *random_pgd,
        (f"cw-{CW_STEPS}", {**ball, **of_cw}, on_margin),
        (f"wrm-{WRM_STEPS}", {"norm": None, "eps": None, "steps": WRM_STEPS, "weight": WEIGHT}, penalised),
    ]
