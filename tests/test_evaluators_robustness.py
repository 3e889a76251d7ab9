from dataclasses import replace

import numpy as np
import pytest
from numpy_classifiers import BlackBox, HalfWay, Masked, Mlp, digits, fit

from atmc_tool.attacks.classifier import correct
from atmc_tool.errors import UsageError
from atmc_tool.threat_model import parse_threat_model
from evaluators.attack_plan import AttackSettings
from evaluators.attack_strength import check_grey_levels
from evaluators.diagnostics import (
    check_gradients,
    check_large_eps,
    check_recomputed,
    check_threat_model,
    check_white_box,
    check_white_box_strongest,
)
from evaluators.robustness import Robustness, attack

SETTINGS = AttackSettings(steps=10, restarts=2, square_queries=100, square_samples=100, batch_size=64)


@pytest.fixture(scope="module")
def held_out() -> tuple[np.ndarray, np.ndarray]:
    images, labels = digits()
    return images[1200:1400].astype(np.float32) / 255, labels[1200:1400]


@pytest.fixture(scope="module")
def measured(held_out: tuple[np.ndarray, np.ndarray]) -> Robustness:
    return attack(fit(), *held_out, 0.05, SETTINGS)


def test_union_is_the_worst_case_of_every_sample(measured: Robustness, held_out: tuple[np.ndarray, np.ndarray]) -> None:
    cross_entropy, margin_loss, targeted = measured.white_box
    square = measured.black_box
    assert len(square.robust) == 100
    expected = cross_entropy.robust & margin_loss.robust
    assert targeted.parameters["attacked"] == expected.sum()
    assert not (targeted.robust & ~expected).any()
    expected &= targeted.robust
    expected[:100] &= square.robust
    np.testing.assert_array_equal(measured.robust, expected)
    assert 20 < measured.robust.sum() < 180
    assert measured.accuracy.successes == expected.sum()
    for result in measured.attacks:
        m = len(result.robust)
        found = correct(fit().logits(result.adversarial), held_out[1][:m])
        np.testing.assert_array_equal(found, result.robust)
    np.testing.assert_array_equal(correct(fit().logits(measured.adversarial), held_out[1]), measured.robust)


def test_every_attack_states_its_parameters(measured: Robustness) -> None:
    stated = [result.to_json()["parameters"] for result in measured.attacks]
    assert [p["attack"] for p in stated] == ["pgd", "pgd", "apgd", "square"]
    assert all((p["norm"], p["eps"], p["seed"]) == ("linf", 0.05, 0) for p in stated)
    assert stated[0]["restarts"] == 2
    assert stated[0]["step_size"] == pytest.approx(2.5 * 0.05 / 10)
    assert stated[2]["targets"] == 3
    assert stated[3]["queries"] == 100


def test_a_harder_attack_leaves_less(held_out: tuple[np.ndarray, np.ndarray], measured: Robustness) -> None:
    larger = attack(fit(), *held_out, 0.1, replace(SETTINGS, square_queries=0))
    assert larger.black_box is None
    assert larger.accuracy.successes < measured.accuracy.successes


def test_same_seed_same_result(held_out: tuple[np.ndarray, np.ndarray], measured: Robustness) -> None:
    again = attack(fit(), *held_out, 0.05, SETTINGS)
    np.testing.assert_array_equal(again.adversarial, measured.adversarial)
    other = attack(fit(), *held_out, 0.05, replace(SETTINGS, seed=1))
    assert (other.adversarial != measured.adversarial).any()


def test_without_gradient_only_square_runs(held_out: tuple[np.ndarray, np.ndarray]) -> None:
    result = attack(fit(BlackBox), *held_out, 0.05, SETTINGS)
    assert result.white_box == ()
    assert result.accuracy is None
    assert result.black_box.accuracy.value < 0.9
    check = check_white_box(result)
    assert check.passed is False
    assert "Mystery" in check.reason
    assert check_recomputed(fit(), held_out[1], result, 64).passed
    nothing = attack(fit(BlackBox), *held_out, 0.05, replace(SETTINGS, square_queries=0))
    assert check_recomputed(fit(), held_out[1], nothing, 64).passed is None
    assert check_white_box_strongest(result).passed is None
    assert check_threat_model(result, 0.05).passed


@pytest.mark.parametrize("allow_black_box", [False, True])
def test_an_attack_that_breaks_off_is_no_silent_pass(
    allow_black_box: bool, held_out: tuple[np.ndarray, np.ndarray]
) -> None:
    result = attack(fit(HalfWay), *held_out, 0.05, SETTINGS)
    assert [found.name for found in result.attacks] == ["pgd-10 cross-entropy", "square"]
    check = check_white_box(result, allow_black_box)
    assert check.passed is False
    assert "pgd-10 margin broke off: no derivative is known for operator Mystery" in check.reason


def test_checks_of_an_honest_attack_pass(measured: Robustness, held_out: tuple[np.ndarray, np.ndarray]) -> None:
    assert check_white_box(measured).passed
    assert check_threat_model(measured, 0.05).passed
    assert check_recomputed(fit(), held_out[1], measured, 30).passed
    assert check_white_box_strongest(measured).passed
    assert check_gradients(fit(), *held_out, 64).passed
    large = check_large_eps(fit(), *held_out, SETTINGS)
    assert large.passed
    # at 0.5 PGD from the images left an honest MNIST network at 26 %: a false alarm
    assert large.evidence["eps"] == 1.0


def test_images_outside_the_threat_model_are_found(measured: Robustness) -> None:
    broken = replace(measured, black_box=replace(measured.black_box, violations=2))
    check = check_threat_model(broken, 0.05)
    assert check.passed is False
    assert "2 adversarial images" in check.reason


def test_a_fresh_session_that_disagrees_is_found(measured: Robustness, held_out: tuple[np.ndarray, np.ndarray]) -> None:
    other = fit(hidden=150)
    check = check_recomputed(other, held_out[1], measured, 64)
    assert check.passed is False
    flags = measured.robust.copy()
    first = np.flatnonzero(flags)[0]
    flags[first] = False
    assert check_recomputed(fit(), held_out[1], replace(measured, robust=flags), 64).passed is False


def test_an_image_on_the_boundary_may_fall_to_either_side(measured: Robustness) -> None:
    """Two equal logits: which one is larger is decided by the order of summation."""
    tied = Mlp(np.zeros((64, 10), np.float32), np.zeros(10, np.float32))
    labels = np.zeros(len(measured.robust), np.int64)
    for robust in (True, False):
        claimed = replace(measured, robust=np.full(len(labels), robust))
        assert check_recomputed(tied, labels, claimed, 64).passed


@pytest.mark.parametrize(("more", "passed"), [(-5, True), (0, True), (2, True), (3, False)])
def test_square_may_be_stronger_by_two_samples_at_most(measured: Robustness, more: int, passed: bool) -> None:
    robust = np.zeros(100, np.bool_)
    robust[:50] = True
    white = tuple(replace(result, robust=robust) for result in measured.white_box)
    black = np.zeros(100, np.bool_)
    black[: 50 - more] = True
    changed = replace(measured, white_box=white, black_box=replace(measured.black_box, robust=black))
    assert check_white_box_strongest(changed).passed is passed


@pytest.mark.parametrize(("useless", "value", "passed"), [(2, 0, True), (3, 0, False), (3, np.nan, False)])
def test_one_percent_of_gradients_may_be_useless(
    useless: int, value: float, passed: bool, held_out: tuple[np.ndarray, np.ndarray]
) -> None:
    class Partly(Mlp):
        def logits_and_gradient(self, images, labels, loss, targets=None):
            logits, gradient = super().logits_and_gradient(images, labels, loss, targets)
            if loss == "margin":
                gradient[:useless] = value
            return logits, gradient

    assert check_gradients(fit(Partly), *held_out, 200).passed is passed


@pytest.mark.parametrize(
    "values",
    [
        {"steps": 0},
        {"restarts": 0},
        {"step_size": 0.0},
        {"step_size": float("nan")},
        {"square_queries": -1},
        {"square_samples": 0},
        {"batch_size": 0},
        {"seed": -1},
        {"auto_steps": 0},
        {"attack": "weak"},
    ],
)
def test_settings_out_of_range(values: dict[str, float]) -> None:
    with pytest.raises(UsageError, match=next(iter(values))):
        AttackSettings(**values)


@pytest.mark.parametrize(("norm", "eps"), [("linf", 0.05), ("l2", 0.4)])
def test_autoattack_spends_nothing_on_the_fooled_and_finds_what_the_standard_attack_finds(
    norm: str, eps: float, held_out: tuple[np.ndarray, np.ndarray]
) -> None:
    settings = AttackSettings("autoattack", auto_steps=20, square_queries=50)
    seen: list[tuple[str, int, int]] = []
    auto = attack(fit(), *held_out, eps, settings, lambda *done: seen.append(done), norm=norm)
    assert [result.name for result in auto.attacks] == ["apgd-ce", "apgd-t", "fab-t", "square"]
    left = [len(held_out[1]), *(int(result.robust.sum()) for result in auto.attacks)]
    assert [result.parameters["attacked"] for result in auto.attacks] == left[:-1]
    assert left == sorted(left, reverse=True)
    np.testing.assert_array_equal(auto.attacks[-1].robust, auto.robust)
    np.testing.assert_array_equal(correct(fit().logits(auto.adversarial), held_out[1]), auto.robust)
    assert all(result.violations == 0 for result in auto.attacks)
    assert {name for name, _, _ in seen} == {"apgd-ce", "apgd-t", "fab-t", "square"}
    assert all(any(s == name and done == total for s, done, total in seen) for name in ("apgd-ce", "square"))
    again = attack(fit(), *held_out, eps, settings, norm=norm)
    np.testing.assert_array_equal(again.adversarial, auto.adversarial)
    standard = attack(fit(), *held_out, eps, SETTINGS, norm=norm)
    assert abs(int(standard.robust.sum()) - int(auto.robust.sum())) <= 6  # of 200; with 10 steps
    assert check_threat_model(auto, eps).passed
    assert check_recomputed(fit(), held_out[1], auto, 64).passed
    assert check_white_box_strongest(auto).passed


def test_without_a_gradient_a_surrogate_attacks_by_transfer(held_out: tuple[np.ndarray, np.ndarray]) -> None:
    black, settings = fit(BlackBox), replace(SETTINGS, square_queries=5)
    alone = attack(black, *held_out, 0.05, settings)
    assert alone.transfer == ()
    assert alone.without_gradient == alone.black_box.accuracy
    twin, other = (attack(black, *held_out, 0.05, settings, surrogate=fit(hidden=h)) for h in (200, 60))
    white = attack(fit(), *held_out, 0.05, settings)
    assert twin.white_box == other.white_box == ()
    assert [result.name for result in twin.attacks[:3]] == [f"transfer, {result.name}" for result in white.white_box]
    for found, exact in zip(twin.transfer, white.white_box, strict=True):
        np.testing.assert_array_equal(found.robust, exact.robust)
    assert twin.without_gradient.successes == white.robust[:100].sum()
    assert twin.without_gradient.successes < other.without_gradient.successes < alone.without_gradient.successes
    assert other.without_gradient.n == 100
    nothing = attack(black, *held_out, 0.05, settings, surrogate=fit(BlackBox))
    assert nothing.transfer == ()
    assert "nor has the surrogate one" in nothing.no_gradient
    some = attack(black, *held_out, 0.05, settings, surrogate=fit(HalfWay))
    assert [result.name for result in some.transfer] == ["transfer, pgd-10 cross-entropy"]
    assert "of the surrogate's attacks pgd-10 margin broke off" in some.no_gradient
    assert "nor has" not in some.no_gradient


@pytest.mark.parametrize("queries", [0, 100])
def test_a_surrogate_never_raises_what_is_judged(queries: int, held_out: tuple[np.ndarray, np.ndarray]) -> None:
    settings = replace(SETTINGS, square_queries=queries, square_samples=50, steps=2)
    useless = Masked(fit())
    alone, moved = (attack(fit(BlackBox), *held_out, 0.05, settings, surrogate=s) for s in (None, useless))
    assert len(moved.transfer[0].robust) == 200
    before, after = alone.without_gradient, moved.without_gradient
    if queries == 0:
        assert before is after is None
    else:
        assert after.value <= before.value
        assert after.clopper_pearson.low <= before.clopper_pearson.low


def test_transferred_images_are_scored_again(held_out: tuple[np.ndarray, np.ndarray]) -> None:
    images, labels = held_out
    settings = replace(SETTINGS, square_queries=5)
    moved = attack(fit(BlackBox), images, labels, 0.05, settings, surrogate=fit())
    robust, adversarial = moved.judged
    assert robust.sum() == moved.without_gradient.successes < moved.black_box.accuracy.successes
    np.testing.assert_array_equal(correct(fit().logits(adversarial), labels[:100]), robust)
    assert check_recomputed(fit(), labels, moved, 64).passed
    assert check_recomputed(fit(hidden=60), labels, moved, 64).passed is False
    grey = check_grey_levels(fit(), images, labels, parse_threat_model("0.05"), moved, 64)
    assert grey.passed
    assert grey.evidence["before"]["correct"] == robust.sum()


def test_transfer_counts_where_the_policy_allows_it(held_out: tuple[np.ndarray, np.ndarray]) -> None:
    measured = attack(fit(BlackBox), *held_out, 0.05, SETTINGS, surrogate=fit(hidden=60))
    failed, allowed = (check_white_box(measured, allow) for allow in (False, True))
    assert (failed.status, allowed.status) == ("failed", "warning")
    for check in (failed, allowed):
        assert "operator Mystery" in check.reason
        assert "transfer, pgd-" in check.reason
