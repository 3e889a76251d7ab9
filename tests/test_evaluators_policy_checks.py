from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from numpy_classifiers import fit

from atmc_tool.threat_model import parse_threat_model
from evaluators.attack_plan import AttackSettings, plan
from evaluators.gate import Check
from evaluators.policy import parse_policy
from evaluators.policy_checks import check_attack_budget, check_sample_size
from evaluators.robustness import AttackResult, Robustness

SETTINGS = AttackSettings(steps=20, restarts=3)


def ran(settings: AttackSettings) -> Robustness:
    """All attacks of the settings, on no images."""
    outcomes = (np.ones(0, np.bool_), np.zeros(0, np.int64), np.zeros((0, 1, 8, 8), np.float32), 0, 0.0)
    planned = plan(fit(), 8 / 255, "linf", 10, settings)
    white_box = tuple(AttackResult(p.name, p.parameters, *outcomes) for p in planned if p.white_box)
    black_box = [AttackResult(p.name, p.parameters, *outcomes) for p in planned if not p.white_box]
    return Robustness(white_box, black_box[0] if black_box else None, None, None)


def test_the_standard_attack_has_fab_in_l2_alone() -> None:
    """No fewer of its steps than of the others: `min_steps` judges each."""
    names = ["pgd-200 cross-entropy", "pgd-200 margin", "apgd-t", "fab-t", "square"]
    in_l2 = plan(fit(), 0.5, "l2", 10, AttackSettings(steps=200))
    assert [attack.name for attack in in_l2] == names
    assert [attack.name for attack in plan(fit(), 0.1, "linf", 10, AttackSettings(steps=200))] == [*names[:3], "square"]
    fab = in_l2[3]
    assert fab.standing
    assert fab.white_box
    assert (fab.parameters["steps"], len(fab.attempts)) == (200, 9)
    (default,) = (attack for attack in plan(fit(), 0.5, "l2", 4, SETTINGS) if attack.name == "fab-t")
    assert (default.parameters["steps"], len(default.attempts)) == (100, 3)


def budget(policy: dict[str, Any], settings: AttackSettings) -> Check:
    return check_attack_budget(parse_policy(policy), parse_threat_model("8/255"), settings, ran(settings))


@pytest.mark.parametrize(
    ("policy", "n", "passed"),
    [
        ({}, 10, None),
        ({"min_n": 300}, 300, True),
        ({"min_n": 301}, 300, False),
        ({"grade": "release"}, 511, False),
        ({"grade": "release"}, 512, True),
        ({"grade": "release", "min_n": 1000}, 512, False),
        ({"grade": "smoke"}, 10, None),
    ],
)
def test_there_are_enough_images(policy: dict[str, Any], n: int, passed: bool | None) -> None:
    check = check_sample_size(parse_policy(policy), n)
    assert check.passed is passed
    assert ("smoke test" in check.reason) is (passed is None)


@pytest.mark.parametrize(
    ("policy", "passed", "words"),
    [
        ({}, None, "no least attack"),
        ({"min_steps": 20, "min_restarts": 3, "min_eps": "8/255", "norm": "linf"}, True, "eps 8/255 (at least 8/255)"),
        ({"min_eps": str(8 / 255)}, True, "eps 8/255"),
        ({"min_eps": "4/255"}, True, "eps 8/255"),
        ({"min_eps": "9/255"}, False, "eps 8/255 instead of 9/255: give --eps"),
        ({"min_steps": 21}, False, "steps 20 instead of 21: give --steps"),
        ({"norm": "l2"}, False, "norm linf instead of l2: give --norm"),
        ({"attack": "autoattack"}, False, "attack standard instead of autoattack: give --attack"),
        ({"attack": "standard"}, None, "no least attack"),
        ({"min_restarts": 4, "min_steps": 21}, False, "give --steps and --restarts"),
    ],
)
def test_the_attack_is_as_strong_as_the_policy_wants(policy: dict[str, Any], passed: bool | None, words: str) -> None:
    check = budget(policy, SETTINGS)
    assert check.passed is passed
    assert words in check.reason


@pytest.mark.parametrize(
    ("policy", "changes", "passed", "words"),
    [
        ({"attack": "autoattack"}, {}, True, "square_queries 5000 (at least 5000)"),
        ({"attack": "autoattack"}, {"square_queries": 4999}, False, "give --set evaluation.square_queries=5000"),
        ({"attack": "autoattack"}, {"square_queries": 0}, False, "square_queries 0 instead of 5000"),
        ({"min_steps": 100}, {"steps": 1}, True, "steps 100"),
        ({"min_steps": 11}, {"auto_steps": 10}, False, "steps 10 instead of 11: give --steps with --attack standard"),
        ({"min_restarts": 2}, {}, False, "restarts 1 instead of 2: give --restarts with --attack standard"),
    ],
)
def test_autoattack_is_judged_by_what_ran(
    policy: dict[str, Any], changes: dict[str, Any], passed: bool, words: str
) -> None:
    check = budget(policy, replace(SETTINGS, attack="autoattack", **changes))
    assert check.passed is passed
    assert words in check.reason


def test_what_did_not_run_is_no_attack() -> None:
    policy = parse_policy({"min_steps": 1, "min_restarts": 1})
    nothing = Robustness((), None, None, None, "no gradient")
    check = check_attack_budget(policy, parse_threat_model("8/255"), SETTINGS, nothing)
    assert check.passed is False
    assert "steps 0 instead of 1, restarts 0 instead of 1" in check.reason
    assert check_attack_budget(policy, parse_threat_model("8/255"), SETTINGS, None).passed is None


def test_a_least_eps_without_a_norm_is_one_in_linf() -> None:
    l2 = parse_threat_model("0.5", "l2")
    for policy, passed in (({"min_eps": "8/255"}, False), ({"min_eps": "0.5", "norm": "l2"}, True)):
        check = check_attack_budget(parse_policy(policy), l2, SETTINGS, ran(SETTINGS))
        assert check.passed is passed
