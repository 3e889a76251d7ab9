from typing import Any

import pytest

from atmc_tool.errors import UsageError
from evaluators.gate import CHECKS
from evaluators.policy import Policy, parse_policy


def test_nothing_set() -> None:
    policy = parse_policy({})
    assert policy == Policy()
    assert (policy.min_clean, policy.min_robust, policy.max_drop, policy.max_bytes) == (None, None, 0.02, None)
    assert not policy.requires_drop
    assert policy.to_json() == {}


def test_values_as_users_write_them() -> None:
    policy = parse_policy({"max_bytes": "20KB", "min_eps": 0.1, "required": list(CHECKS)})
    assert (policy.max_bytes, policy.min_eps, policy.required) == (20_000, "0.1", CHECKS)


def test_errors_name_the_file() -> None:
    with pytest.raises(UsageError, match=r"^release/policy.yaml: unknown configuration key min_robst"):
        parse_policy({"min_robst": 0.5}, "release/policy.yaml")


def test_what_was_asked_for_survives_a_round_trip() -> None:
    settings = {"min_clean": 0.9, "max_drop": 0.02, "max_bytes": 20_000}
    policy = parse_policy(settings)
    assert policy.requires_drop
    assert policy.to_json() == settings
    assert parse_policy(policy.to_json()).requires_drop


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"min_clean": 1.5}, "min_clean"),
        ({"min_robust": -0.1}, "min_robust"),
        ({"min_robust": float("nan")}, "min_robust"),
        ({"max_drop": 2}, "max_drop"),
        ({"max_bytes": 0}, "max_bytes"),
        ({"max_bytes": "many"}, "max_bytes"),
        ({"min_robst": 0.5}, "did you mean min_robust"),
        ({"max_bytes": "20x"}, "max_bytes: expected bytes such as 20KB"),
        ({"max_robust_loss": -0.01}, "max_robust_loss"),
        ({"grade": "gold"}, "grade"),
        ({"attack": "weak"}, "attack"),
        ({"min_eps": "-8/255"}, "eps is out of range"),
        ({"min_n": 0}, "min_n"),
        ({"required": ["weight-partiy"]}, "unknown check 'weight-partiy'. Hint: did you mean weight-parity"),
        ({"required": ["xyz"]}, "known: signature, source, "),
    ],
)
def test_bad_thresholds_are_one_line(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError, match=words) as caught:
        parse_policy(settings)
    assert "\n" not in str(caught.value)
