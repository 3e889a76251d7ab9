"""Whether a measured robustness can be believed: the attack's images, its strength, and masked gradients.

Sources: Carlini et al. 2019 (arXiv:1902.06705), Athalye et al. 2018 (arXiv:1802.00420).
"""

import numpy as np

from atmc_tool.attacks.classifier import Classifier, Loss, correct, margin
from atmc_tool.attacks.standing import ROUNDING
from atmc_tool.attacks.worst_case import worst_case
from atmc_tool.threat_model import ThreatModel
from evaluators.accuracy import NUMERICAL_TOLERANCE, Floats, Labels, batched_logits, chance
from evaluators.attack_plan import AttackSettings
from evaluators.attack_strength import check_converged, check_grey_levels, check_losses, check_order
from evaluators.gate import Check
from evaluators.robustness import Robustness, StageProgress
from evaluators.statistics import Proportion

ATTACK_CHECKS = (
    "white-box",
    "perturbations",
    "recomputed",
    "grey-levels",
    "white-box-strongest",
    "losses-agree",
    "attack-order",
    "gradients",
    "large-eps",
    "converged",
)
LOSSES: tuple[Loss, ...] = ("cross_entropy", "margin")
GRADIENT_SAMPLES = 512
ZERO_GRADIENTS = 0.01  # share of samples that may have a zero or NaN gradient
LARGE_EPS = 1.0
LARGE_EPS_SAMPLES = 128
STRONGER = (2, 0.002)  # samples, and share of them, by which a black-box attack may beat the white-box one


def attack_checks(
    classifier: Classifier,
    fresh: Classifier,
    images: Floats,
    labels: Labels,
    threat_model: ThreatModel,
    measured: Robustness,
    settings: AttackSettings,
    allow_black_box: bool,
    progress: StageProgress | None,
) -> list[Check]:
    """One check per name in `ATTACK_CHECKS`, in that order; `fresh` is a second session of the same file."""
    eps, batch = threat_model.eps, settings.batch_size
    checks = [
        check_white_box(measured, allow_black_box),
        check_threat_model(measured, eps),
        check_recomputed(fresh, labels, measured, batch),
        check_grey_levels(fresh, images, labels, threat_model, measured, batch),
        check_white_box_strongest(measured),
        check_losses(measured),
    ]
    if measured.no_gradient:
        return checks + [Check(name, None, measured.no_gradient) for name in ATTACK_CHECKS[len(checks) :]]
    return [
        *checks,
        check_order(classifier, images, labels, threat_model, measured, settings),
        check_gradients(classifier, images, labels, batch),
        check_large_eps(classifier, images, labels, settings),
        check_converged(classifier, images, labels, threat_model, measured, settings, progress),
    ]


def check_white_box(measured: Robustness, allow_black_box: bool = False) -> Check:
    """Every attack by the classifier's own gradient ran; or none could, and the policy is content with Square."""
    if not measured.white_box:
        others = {attack.name: attack.accuracy.value for attack in measured.attacks}
        reason = f"no white-box attack: {measured.no_gradient}"
        if others:
            reason += ". Accuracy under " + ", ".join(f"{name} {value:.4f}" for name, value in others.items())
        if allow_black_box and others:
            return Check(
                "white-box", True, f"{reason}. The policy allows black-box attacks alone", others, warning=True
            )
        return Check("white-box", False, reason, others)
    accuracies = {attack.name: attack.accuracy.value for attack in measured.white_box}
    text = ", ".join(f"{name} {value:.4f}" for name, value in accuracies.items())
    if measured.no_gradient:
        return Check("white-box", False, f"{measured.no_gradient}; accuracy under {text} alone", accuracies)
    return Check("white-box", True, f"accuracy under {text}", accuracies)


def check_threat_model(measured: Robustness, eps: float) -> Check:
    """Every scored adversarial image is in the ball and the box and has no NaN."""
    if not measured.attacks:
        return Check("perturbations", None, "no attack ran")
    evidence = {a.name: {"violations": a.violations, "largest": a.largest} for a in measured.attacks}
    outside = sum(attack.violations for attack in measured.attacks)
    if outside:
        return Check("perturbations", False, f"{outside} adversarial images break the threat model", evidence)
    largest = max(attack.largest for attack in measured.attacks)
    reason = f"all adversarial images within eps {eps:g} + {ROUNDING:g} and [0, 1], the largest {largest:.6f}"
    return Check("perturbations", True, reason, evidence)


def check_recomputed(fresh: Classifier, labels: Labels, measured: Robustness, batch_size: int) -> Check:
    """A fresh classifier gives the same verdict on every stored adversarial image."""
    if measured.judged is None:
        return Check("recomputed", None, "no attack ran that is judged")
    expected, adversarial = measured.judged
    labels = labels[: len(expected)]
    logits = batched_logits(fresh, adversarial, batch_size)
    robust = correct(logits, labels)
    differing = robust != expected
    # An image on the boundary itself may fall to either side with the order of summation.
    tolerance = NUMERICAL_TOLERANCE * max(1.0, float(np.abs(logits).max()))
    decided = differing & ~(np.abs(margin(logits, labels)) <= tolerance)
    evidence = {
        "accuracy": float(robust.mean()),
        "differing": int(differing.sum()),
        "differing_off_the_boundary": int(decided.sum()),
    }
    if decided.any():
        return Check("recomputed", False, f"{int(decided.sum())} of {len(labels)} samples differ", evidence)
    return Check("recomputed", True, f"accuracy {robust.mean():.4f} on the stored adversarial images", evidence)


def check_white_box_strongest(measured: Robustness) -> Check:
    """The white-box attack is at least as strong as the black-box one on the same samples."""
    square = measured.black_box
    if square is None or not measured.white_box:
        missing = "black-box" if square is None else "white-box"
        return Check("white-box-strongest", None, f"no {missing} attack ran")
    n = len(square.robust)
    white = int(np.logical_and.reduce([attack.robust[:n] for attack in measured.white_box]).sum())
    black = int(square.robust.sum())
    evidence = {"n": n, "white_box": white / n, "square": black / n}
    stronger = white - black > max(STRONGER[0], STRONGER[1] * n)
    reason = f"accuracy under the white-box attacks {white / n:.4f}, under Square {black / n:.4f} (n {n})"
    return Check("white-box-strongest", not stronger, reason + (": masking suspected" if stronger else ""), evidence)


def check_gradients(classifier: Classifier, images: Floats, labels: Labels, batch_size: int) -> Check:
    """At most 1 % of the clean images have a gradient that is zero everywhere, or not finite, for either loss."""
    images, labels = images[:GRADIENT_SAMPLES], labels[:GRADIENT_SAMPLES]
    shares: dict[str, float] = {}
    for loss in LOSSES:
        useless = 0
        for first in range(0, len(images), batch_size):
            batch = slice(first, first + batch_size)
            gradient = np.asarray(classifier.logits_and_gradient(images[batch], labels[batch], loss)[1])
            zero, finite = ~gradient.any((1, 2, 3)), np.isfinite(gradient).all((1, 2, 3))
            useless += int(np.count_nonzero(zero | ~finite))
        shares[loss] = useless / len(images)
    text = ", ".join(f"{share:.1%} for {loss.replace('_', '-')}" for loss, share in shares.items())
    passed = max(shares.values()) <= ZERO_GRADIENTS
    reason = f"zero or NaN input gradients: {text} (n {len(images)})" + ("" if passed else ": masking suspected")
    return Check("gradients", passed, reason, {"n": len(images), "shares": shares})


def check_large_eps(classifier: Classifier, images: Floats, labels: Labels, settings: AttackSettings) -> Check:
    """Under PGD at eps 1, which allows any image to become any other, accuracy is not above chance.

    The attack starts at the images: where gradients are masked it can't move, and a random start would hide that.
    A smaller eps is no such test: at 0.5, PGD from the images leaves an honest MNIST network (eps 0.3) at 26 %.
    """
    images, labels = images[:LARGE_EPS_SAMPLES], labels[:LARGE_EPS_SAMPLES]
    result = worst_case(
        classifier,
        images,
        labels,
        LARGE_EPS,
        steps=settings.steps,
        losses=LOSSES,
        random_start=False,
        batch_size=settings.batch_size,
    )
    measured = Proportion(int(result.robust.sum()), len(labels))
    bound = measured.clopper_pearson.low
    classes = np.asarray(classifier.logits(images[:1])).shape[1]
    guess = chance(labels, classes)
    reason = (
        f"accuracy {measured.value:.4f} at eps {LARGE_EPS:g} (n {measured.n}), lower 95 % bound {bound:.4f}, "
        f"chance {guess:.4f}"
    )
    passed = bound <= guess
    evidence = {"eps": LARGE_EPS, "steps": settings.steps, "chance": guess, **measured.to_json()}
    return Check("large-eps", passed, reason + ("" if passed else ": masking suspected"), evidence)
