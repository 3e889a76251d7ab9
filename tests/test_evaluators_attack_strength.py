from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from numpy_classifiers import Masked, digits, fit

from atmc_tool.threat_model import ThreatModel, parse_threat_model
from evaluators.accuracy import Floats, Labels, share
from evaluators.attack_plan import AttackSettings
from evaluators.attack_strength import (
    CurvePoint,
    check_converged,
    check_curve,
    check_grey_levels,
    check_losses,
    check_order,
    eps_curve,
)
from evaluators.robustness import Robustness, attack
from evaluators.statistics import Proportion

SETTINGS = AttackSettings(steps=10, restarts=2, square_queries=0)
EIGHT = parse_threat_model("8/255")


def held_out(n: int = 200) -> tuple[Floats, Labels]:
    images, labels = digits()
    return images[1200 : 1200 + n].astype(np.float32) / 255, labels[1200 : 1200 + n]


@pytest.fixture(scope="module")
def measured() -> Robustness:
    return attack(fit(), *held_out(), EIGHT.eps, SETTINGS)


def weaker(measured: Robustness, spared: int) -> Robustness:
    """As if every attack had missed `spared` of the samples that it fooled."""
    missed = np.flatnonzero(~measured.white_box[0].robust)[:spared]
    attacks = []
    for result in measured.white_box:
        robust = result.robust.copy()
        robust[missed] = True
        attacks.append(replace(result, robust=robust))
    robust = measured.robust.copy()
    robust[missed] = True
    return replace(measured, white_box=tuple(attacks), robust=robust)


def test_stronger_attacks_fool_more(measured: Robustness) -> None:
    check = check_order(fit(), *held_out(), EIGHT, measured, SETTINGS)
    assert check.passed
    standing = list(check.evidence["standing"].values())
    assert standing == sorted(standing, reverse=True)
    assert standing[0] > standing[-1]


def test_an_attack_that_is_weaker_than_one_step_is_found(measured: Robustness) -> None:
    check = check_order(fit(), *held_out(), EIGHT, weaker(measured, 60), SETTINGS)
    assert check.passed is False
    assert "masking suspected" in check.reason


def test_noise_beats_a_hidden_gradient(measured: Robustness) -> None:
    """The network sees its images through noise-sensitive eyes, and shows no gradient: one step does nothing."""
    blind = Masked(fit(), on_input=lambda x: x + np.float32(2) * (np.round(x * 255) / 255 - x))
    threat_model = parse_threat_model("0.4")
    nothing = replace(measured, robust=np.ones(200, np.bool_))
    assert check_order(blind, *held_out(), threat_model, nothing, SETTINGS).passed is False


def test_accuracy_falls_along_the_curve(measured: Robustness) -> None:
    images, labels = held_out()
    right = fit().logits(images).argmax(1) == labels
    points = eps_curve(fit(), images, labels, right, EIGHT, measured, SETTINGS)
    assert [point.text for point in points] == ["0", "0.007843", "0.01569", "8/255", "0.06275"]
    assert [point.eps for point in points] == pytest.approx([0, EIGHT.eps / 4, EIGHT.eps / 2, EIGHT.eps, 2 * EIGHT.eps])
    accuracies = [point.accuracy.value for point in points]
    assert accuracies == sorted(accuracies, reverse=True)
    assert accuracies[0] == right.mean()
    assert points[3].accuracy == measured.white_box[1].accuracy
    assert check_curve(points).passed
    apart = eps_curve(fit(), images, labels, right, EIGHT, replace(measured, white_box=()), SETTINGS)
    assert apart[3].accuracy == points[3].accuracy


@pytest.mark.parametrize(("rise", "passed"), [(0, True), (2, True), (3, False), (40, False)])
def test_a_rising_curve_fails(rise: int, passed: bool) -> None:
    counts = (190, 150, 150 + rise, 90, 0)
    points = [CurvePoint(i / 10, f"{i / 10}", "pgd", Proportion(count, 200)) for i, count in enumerate(counts)]
    check = check_curve(points)
    assert check.passed is passed
    assert ("rises at eps 0.2" in check.reason) is (not passed)
    assert check_curve(()).passed is None


def test_losses_that_disagree_are_a_warning(measured: Robustness) -> None:
    assert check_losses(measured).status == "passed"
    scaled = attack(fit(scale=10_000), *held_out(), EIGHT.eps, SETTINGS)
    check = check_losses(scaled)
    assert check.status == "warning"
    assert check.evidence["cross_entropy"] > check.evidence["margin"] + 0.03
    assert check_losses(replace(measured, white_box=measured.white_box[:1])).passed is None


def test_an_attack_that_was_too_short_is_a_warning(measured: Robustness) -> None:
    settings = AttackSettings(steps=2, restarts=1, step_size=EIGHT.eps / 20, square_queries=0)
    short = attack(fit(), *held_out(), EIGHT.eps, settings)
    short = replace(short, robust=short.white_box[0].robust)  # PGD alone: APGD-T makes up for its short steps
    check = check_converged(fit(), *held_out(), EIGHT, short, replace(settings, step_size=None))
    assert check.status == "warning"
    assert "raise --steps" in check.reason
    enough = check_converged(fit(), *held_out(), EIGHT, measured, SETTINGS)
    assert enough.status == "passed"
    fallen = replace(measured, robust=np.zeros(200, np.bool_))
    assert check_converged(fit(), *held_out(), EIGHT, fallen, SETTINGS).status == "passed"


def grey(measured: Robustness, threat_model: ThreatModel = EIGHT, **changes: Any) -> Any:
    images, labels = held_out()
    facts = {"images": images, **changes}
    return check_grey_levels(fit(), facts["images"], labels, threat_model, measured, 100)


def test_adversarial_images_are_stored_as_eight_bits(measured: Robustness) -> None:
    check = grey(measured)
    assert check.status == "passed"
    assert abs(check.evidence["rounded"]["accuracy"] - check.evidence["before"]["accuracy"]) <= 0.03
    _, labels = held_out()
    stored = np.clip(np.rint(measured.adversarial * 255), 0, 255).astype(np.uint8)  # 8/255: the ball ends on levels
    again = share(fit().logits(stored.astype(np.float32) / 255).argmax(1) == labels, labels)
    assert check.evidence["rounded"]["correct"] == again.successes


def test_an_attack_between_the_levels_is_a_warning() -> None:
    """Half a grey level: nothing is left of it."""
    tiny = parse_threat_model(str(0.5 / 255))
    images, labels = held_out()
    near = attack(fit(), images, labels, tiny.eps, SETTINGS)
    flipped = replace(near, robust=np.zeros(200, np.bool_))
    check = grey(flipped, tiny)
    assert check.status == "warning"
    assert check.evidence["rounded"]["accuracy"] == (fit().logits(images).argmax(1) == labels).mean()


def test_images_between_the_levels_are_not_judged(measured: Robustness) -> None:
    assert grey(measured, images=held_out()[0] * np.float32(0.999)).passed is None
    assert grey(replace(measured, adversarial=None)).passed is None
