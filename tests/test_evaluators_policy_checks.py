from typing import Any

import pytest

from atmc_tool.threat_model import parse_threat_model
from evaluators.attack_plan import AttackSettings
from evaluators.policy import parse_policy
from evaluators.policy_checks import check_attack_budget, check_sample_size

SETTINGS = AttackSettings(steps=20, restarts=3)


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
    check = check_attack_budget(parse_policy(policy), parse_threat_model("8/255"), SETTINGS)
    assert check.passed is passed
    assert words in check.reason


def test_autoattack_is_more_than_standard() -> None:
    settings = AttackSettings(attack="autoattack")
    assert check_attack_budget(parse_policy({"attack": "autoattack"}), parse_threat_model("8/255"), settings).passed
