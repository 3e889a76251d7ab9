"""Whether the attack was strong enough: it beats weaker ones, more eps helps it, and more of it changes little.

Sources: Carlini et al. 2019 (arXiv:1902.06705), sections 4 and 5; Croce & Hein 2020 (arXiv:2003.01690).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np

from atmc_tool.attacks.classifier import Array, Classifier, correct
from atmc_tool.attacks.fgsm import fgsm
from atmc_tool.attacks.noise import noisy
from atmc_tool.attacks.standing import SampleAttack, WorstCase, attack_standing
from atmc_tool.attacks.starts import start_noise
from atmc_tool.attacks.worst_case import worst_case
from atmc_tool.threat_model import Norm, ThreatModel
from evaluators.accuracy import Floats, Labels, batched_logits, share
from evaluators.attack_plan import AttackSettings
from evaluators.gate import Check
from evaluators.robustness import AttackResult, Robustness, StageProgress
from evaluators.statistics import Proportion

SAMPLES = 256  # the first so many images
FRACTIONS = (0.25, 0.5, 1.0, 2.0)  # of eps
TOLERANCE = (2, 0.01)  # samples, and share of them: what an attack may do worse than a weaker one by chance
DISAGREEMENT = 0.03  # of the accuracies under two losses
CONVERGED = 0.01  # share of the samples that twice the budget may fool in addition
GREY_LEVELS = 0.03  # what rounding to 1/255 may undo of the attack
GREY = 1e-4  # of a grey level: floats that are that near to one are one


@dataclass(frozen=True)
class CurvePoint:
    """Accuracy under the same attack at one radius; 0: of the images themselves."""

    eps: float
    text: str
    attack: str
    accuracy: Proportion

    def to_json(self) -> dict[str, Any]:
        """Everything as plain values."""
        return {"eps": self.eps, "text": self.text, "attack": self.attack, **self.accuracy.to_json()}


def tolerated(n: int) -> float:
    """Samples of `n` by which an attack may look worse than a weaker one."""
    return max(TOLERANCE[0], TOLERANCE[1] * n)


def check_order(
    classifier: Classifier,
    images: Floats,
    labels: Labels,
    threat_model: ThreatModel,
    measured: Robustness,
    settings: AttackSettings,
) -> Check:
    """Accuracy under random noise ≥ under one step (FGSM) ≥ under PGD ≥ under all attacks together."""
    images, labels = images[:SAMPLES], labels[:SAMPLES]
    n = len(labels)
    norm, eps = threat_model.norm, threat_model.eps

    def random(x: Array, _: Array, indices: Sequence[int]) -> Array:
        return noisy(x, eps, noise=start_noise(settings.seed, 0, indices, tuple(x.shape[1:]), norm), norm=norm)

    def step(x: Array, y: Array, _: Sequence[int]) -> Array:
        return fgsm(classifier, x, y, eps, norm=norm)

    def left(attack: SampleAttack) -> int:
        found = attack_standing(classifier, images, labels, eps, [attack], norm=norm, batch_size=settings.batch_size)
        return int(found.robust.sum())

    all_attacks = measured.robust if measured.robust is not None else np.zeros(0, np.bool_)
    standing = {
        "noise": left(random),
        "one step": left(step),
        measured.white_box[0].name: int(measured.white_box[0].robust[:n].sum()),
        "all attacks": int(all_attacks[:n].sum()),
    }
    text = " ≥ ".join(f"{name} {count / n:.4f}" for name, count in standing.items())
    counts = list(standing.values())
    wrong = any(stronger > weaker + tolerated(n) for weaker, stronger in pairwise(counts))
    reason = f"a weaker attack fools more: {text.replace('≥', 'then')}: masking suspected" if wrong else text
    return Check("attack-order", not wrong, f"{reason} (n {n})", {"n": n, "standing": standing})


def eps_curve(
    classifier: Classifier,
    images: Floats,
    labels: Labels,
    right: np.typing.NDArray[np.bool_],
    threat_model: ThreatModel,
    measured: Robustness,
    settings: AttackSettings,
    progress: StageProgress | None = None,
) -> tuple[CurvePoint, ...]:
    """Accuracy at 0, a quarter, half, once and twice eps, each by PGD on the margin from one random start.

    right: bool (n,), clean images classified correctly
    """
    images, labels = images[:SAMPLES], labels[:SAMPLES]
    name = f"pgd-{settings.steps} margin"
    points = [CurvePoint(0.0, "0", "none", share(right[:SAMPLES], labels))]
    for index, fraction in enumerate(FRACTIONS):
        eps = min(1.0, fraction * threat_model.eps) if threat_model.norm == "linf" else fraction * threat_model.eps
        known = _same_attack(measured.white_box, name) if fraction == 1 else None
        if known is not None:
            robust = known.robust[:SAMPLES]
        else:
            robust = _attacked(
                classifier, images, labels, eps, threat_model.norm, settings, steps=settings.steps, losses=("margin",)
            ).robust
        text = threat_model.text if fraction == 1 else f"{eps:.4g}"
        points.append(CurvePoint(eps, text, name, share(np.asarray(robust), labels)))
        if progress is not None:
            progress("other eps", index + 1, len(FRACTIONS))
    return tuple(points)


def check_curve(points: Sequence[CurvePoint]) -> Check:
    """Accuracy never rises with eps."""
    if not points:
        return Check("eps-curve", None, "the classifier gives no gradient")
    text = ", ".join(f"{point.accuracy.value:.4f} at {point.text}" for point in points)
    rising = [
        b.text for a, b in pairwise(points) if b.accuracy.successes > a.accuracy.successes + tolerated(a.accuracy.n)
    ]
    n = points[0].accuracy.n
    evidence = {"points": [point.to_json() for point in points]}
    if rising:
        reason = f"accuracy rises at eps {', '.join(rising)}: {text} (n {n}): the attack does not work"
        return Check("eps-curve", False, reason, evidence)
    return Check("eps-curve", True, f"accuracy {text} (n {n})", evidence)


def check_losses(measured: Robustness) -> Check:
    """PGD on the cross-entropy and on the margin find nearly the same accuracy."""
    found = {attack.parameters["loss"]: attack for attack in measured.white_box if attack.parameters["attack"] == "pgd"}
    if len(found) < 2:
        return Check("losses-agree", None, "PGD ran with one loss")
    values = {loss: attack.accuracy.value for loss, attack in found.items()}
    apart = max(values.values()) - min(values.values())
    text = ", ".join(f"{loss.replace('_', '-')} {value:.4f}" for loss, value in values.items())
    reason = f"accuracy under PGD: {text}"
    if apart > DISAGREEMENT:
        reason += ": one loss hides its gradients; only the worst case over all attacks can be believed"
    return Check("losses-agree", True, reason, values, warning=apart > DISAGREEMENT)


def check_converged(
    classifier: Classifier,
    images: Floats,
    labels: Labels,
    threat_model: ThreatModel,
    measured: Robustness,
    settings: AttackSettings,
    progress: StageProgress | None = None,
) -> Check:
    """Twice the steps from as many new starts fool less than one more sample in a hundred."""
    n = min(SAMPLES, len(labels))
    standing = np.flatnonzero(measured.robust[:n] if measured.robust is not None else [])
    if not len(standing):
        return Check("converged", True, f"no sample of {n} is left to fool", {"n": n, "standing": 0})
    more = _attacked(
        classifier,
        images[standing],
        labels[standing],
        threat_model.eps,
        threat_model.norm,
        settings,
        steps=2 * settings.steps,
        restarts=settings.restarts,
        seed=settings.seed + 1,
        progress=None if progress is None else lambda done, total: progress("twice the budget", done, total),
    )
    fooled = int((~np.asarray(more.robust)).sum())
    reason = (
        f"{2 * settings.steps} steps from {settings.restarts} new starts fool {fooled} of the {len(standing)} samples "
        f"still standing (n {n})"
    )
    late = fooled >= max(TOLERANCE[0], CONVERGED * n)
    evidence = {"n": n, "standing": len(standing), "fooled": fooled, "steps": 2 * settings.steps}
    return Check("converged", True, reason + (": raise --steps and --restarts" if late else ""), evidence, warning=late)


def check_grey_levels(
    classifier: Classifier, images: Floats, labels: Labels, threat_model: ThreatModel, measured: Robustness, batch: int
) -> Check:
    """The adversarial images still fool when they are stored as 8-bit images, as an attacker would send them."""
    if measured.judged is None:
        return Check("grey-levels", None, "no attack ran that is judged")
    robust, adversarial = measured.judged
    images, labels = images[: len(robust)], labels[: len(robust)]
    levels = np.rint(images * 255)
    if np.abs(images * 255 - levels).max() > GREY:
        return Check("grey-levels", None, "the images are no multiples of 1/255")
    stored = np.rint(adversarial * 255)
    if threat_model.norm == "linf":
        whole = np.floor(threat_model.eps * 255 + GREY)
        stored = np.clip(stored, levels - whole, levels + whole)
    rounded = np.clip(stored / np.float32(255), 0, 1).astype(np.float32)
    after = share(correct(batched_logits(classifier, rounded, batch), labels), labels)
    before = share(robust, labels)
    undone = after.value - before.value > GREY_LEVELS
    reason = f"robust accuracy {before.value:.4f}, with adversarial images rounded to 1/255 {after.value:.4f}"
    return Check("grey-levels", True, reason, {"before": before.to_json(), "rounded": after.to_json()}, warning=undone)


def _same_attack(attacks: Sequence[AttackResult], name: str) -> AttackResult | None:
    """The attack of that name from a single start."""
    return next((a for a in attacks if a.name == name and a.parameters.get("restarts") == 1), None)


def _attacked(
    classifier: Classifier,
    images: Floats,
    labels: Labels,
    eps: float,
    norm: Norm,
    settings: AttackSettings,
    **options: Any,
) -> WorstCase:
    seed = options.pop("seed", settings.seed)
    return worst_case(classifier, images, labels, eps, norm=norm, seed=seed, batch_size=settings.batch_size, **options)
