from typing import Any

import pytest

from atmc_tool.errors import UsageError
from evaluators.policy import Policy, parse_policy


def test_nothing_set() -> None:
    policy = parse_policy({})
    assert policy == Policy()
    assert (policy.min_clean, policy.min_robust, policy.max_drop, policy.max_bytes) == (None, None, 0.02, None)
    assert not policy.requires_drop
    assert policy.to_json() == {}


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
    ],
)
def test_bad_thresholds_are_one_line(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError, match=words) as caught:
        parse_policy(settings)
    assert "\n" not in str(caught.value)
