import json
from typing import Any

import pytest

from evaluators.gate import CHECKS, Check, at_least, check_judged, drop, judge, no_worse, small_enough
from evaluators.paired import Paired
from evaluators.statistics import Proportion

GOOD, BAD, UNKNOWN = (Check(name, passed, "why") for name, passed in (("good", True), ("bad", False), ("none", None)))


@pytest.mark.parametrize(
    ("checks", "passed"),
    [
        ([GOOD], True),
        ([GOOD, UNKNOWN], True),
        ([GOOD, BAD], False),
        ([BAD, UNKNOWN], False),
        ([UNKNOWN], False),
        ([], False),
    ],
)
def test_passed_where_something_was_applied_and_nothing_failed(checks: list[Check], passed: bool) -> None:
    verdict = judge(checks, 1000)
    assert verdict.passed is passed
    names = [check["name"] for check in verdict.to_json()["checks"]]
    assert sorted(names) == sorted(["required", *(check.name for check in checks)])
    assert verdict.failed == tuple(check for check in checks if check is BAD)


@pytest.mark.parametrize(("n", "grade"), [(1, "smoke"), (511, "smoke"), (512, "release"), (10_000, "release")])
def test_few_samples_are_a_smoke_test(n: int, grade: str) -> None:
    assert judge([GOOD], n).grade == grade


def test_a_check_can_not_hide_another() -> None:
    with pytest.raises(ValueError, match="unique"):
        judge([GOOD, GOOD], 10)


def test_status_in_words() -> None:
    assert [check.status for check in (GOOD, BAD, UNKNOWN)] == ["passed", "failed", "not applied"]


def test_a_warning_is_seen_and_does_not_fail() -> None:
    looked_at = Check("converged", True, "why", warning=True)
    verdict = judge([looked_at], 1000)
    assert verdict.passed
    assert verdict.warnings == (looked_at,)
    assert looked_at.to_json()["status"] == "warning"


@pytest.mark.parametrize(
    ("required", "words"),
    [
        (["good"], ""),
        (["none"], "none (not applied)"),
        (["careful"], "careful (warning)"),
        (["absent"], "absent (not applied)"),
        (["good", "none", "careful"], "none (not applied), careful (warning)"),
    ],
)
def test_required_checks_must_have_passed(required: list[str], words: str) -> None:
    verdict = judge([GOOD, UNKNOWN, Check("careful", True, "why", warning=True)], 1000, required)
    assert verdict.passed is (not words)
    if words:
        assert verdict.failed[0].reason == f"required and not passed: {words}"


def test_checks_come_in_the_order_of_their_names_list() -> None:
    verdict = judge([Check(name, True, "why") for name in reversed(CHECKS) if name != "required"], 1000)
    assert tuple(check.name for check in verdict.checks) == CHECKS


@pytest.mark.parametrize(
    ("paired", "margin", "passed"),
    [
        (Paired(0, 0, 1000), 0.003, True),
        (Paired(0, 0, 1000), 0.0029, False),
        (Paired(10, 0, 1000), 0.01, False),
        (Paired(10, 0, 1000), 0.02, True),
        (Paired(10, 0, 1000), None, None),
        (None, None, None),
        (None, 0.1, False),
    ],
)
def test_the_margin_holds_on_the_upper_bound(paired: Paired | None, margin: float | None, passed: bool | None) -> None:
    check = no_worse("clean-loss", paired, margin, "no baseline is given")
    assert check.passed is passed
    if paired is None:
        assert "no baseline is given" in check.reason
    else:
        assert f"{paired.highest_drop:.4f}" in check.reason


# 900 of 1,000: exact 95 % interval [0.8797, 0.9179].
@pytest.mark.parametrize(("threshold", "passed"), [(0.0, True), (0.879, True), (0.88, False), (0.9, False), (1, False)])
def test_thresholds_hold_on_the_lower_bound(threshold: float, passed: bool) -> None:
    check = at_least("min-clean", Proportion(900, 1000), threshold)
    assert check.passed is passed
    for part in ("0.9000", "0.8797", f"{threshold:g}"):
        assert part in check.reason


def test_threshold_without_measurement_fails_and_without_threshold_is_listed() -> None:
    check = at_least("min-robust", None, 0.5, "no attack ran")
    assert check.passed is False
    assert "no attack ran" in check.reason
    assert at_least("min-robust", Proportion(1, 10), None).passed is None


@pytest.mark.parametrize(("threshold", "judged"), [(None, False), (0.0, False), (1e-9, True), (0.95, True)])
def test_a_threshold_of_zero_judges_nothing(threshold: float | None, judged: bool) -> None:
    checks = [at_least(name, Proportion(900, 1000), threshold) for name in ("min-clean", "min-robust")]
    assert check_judged(checks).passed is judged


@pytest.mark.parametrize(
    ("size", "limit", "passed"), [(10, 10, True), (11, 10, False), (11, None, None), (None, 10, False)]
)
def test_size(size: int | None, limit: int | None, passed: bool | None) -> None:
    assert small_enough("max-bytes", size, limit).passed is passed


CONDITIONS = {"n": 1000, "split": "test", "norm": "linf", "eps": "8/255", "attack": "pgd", "steps": 20, "restarts": 3}
RECORDED = {"robust_accuracy": 0.92, **CONDITIONS}


@pytest.mark.parametrize(
    ("recorded", "correct", "passed"),
    [
        (RECORDED, 920, True),
        (RECORDED, 960, True),
        (RECORDED, 900, True),
        (RECORDED, 899, False),
        (RECORDED | {"eps": str(8 / 255)}, 899, False),
        (RECORDED | {"steps": 10, "restarts": 1}, 899, False),
        (RECORDED | {"other": "fact"}, 920, True),
    ],
)
@pytest.mark.parametrize("required", [True, False])
def test_drop_below_the_recorded_number(recorded: dict[str, Any], correct: int, passed: bool, required: bool) -> None:
    check = drop("robust-drop", Proportion(correct, 1000), CONDITIONS, recorded, "robust_accuracy", 0.02, required)
    assert check.passed is passed
    assert "0.9200" in check.reason


@pytest.mark.parametrize(
    ("recorded", "words"),
    [
        (None, "no robust_accuracy is recorded"),
        ({}, "no robust_accuracy is recorded"),
        (RECORDED | {"robust_accuracy": "high"}, "no robust_accuracy is recorded"),
        (RECORDED | {"robust_accuracy": float("nan")}, "no robust_accuracy is recorded"),
        (RECORDED | {"n": 500}, "recorded at n 500; measured at n 1000"),
        (RECORDED | {"split": "validation"}, "recorded at split validation"),
        (RECORDED | {"norm": "l2"}, "recorded at norm l2"),
        (RECORDED | {"eps": "4/255"}, "recorded at eps 4/255; measured at eps 8/255"),
        (RECORDED | {"eps": "8"}, "recorded at eps 8"),
        (RECORDED | {"eps": None}, "recorded at eps None"),
        (RECORDED | {"attack": "fgsm"}, "recorded at attack fgsm"),
        (RECORDED | {"steps": 40}, "recorded at steps 40; measured at steps 20"),
        (RECORDED | {"restarts": 10, "n": 1}, "recorded at n 1, restarts 10; measured at n 1000, restarts 3"),
        ({"robust_accuracy": 0.9}, "recorded at n unknown"),
    ],
)
@pytest.mark.parametrize("required", [True, False])
def test_numbers_that_can_not_be_compared(recorded: dict[str, Any] | None, words: str, required: bool) -> None:
    check = drop("robust-drop", Proportion(1000, 1000), CONDITIONS, recorded, "robust_accuracy", 0.02, required)
    assert check.passed is (False if required else None)
    assert words in check.reason


def test_checks_are_plain_json() -> None:
    check = at_least("min-clean", Proportion(3, 4), 0.5)
    assert json.loads(json.dumps(judge([check], 4).to_json()))["checks"][0]["evidence"]["correct"] == 3
