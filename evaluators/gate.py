"""From measurements to a verdict: checks, each with its reason, and the rule that joins them."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypeGuard

from atmc_tool.errors import AtmcError
from atmc_tool.threat_model import parse_eps
from evaluators.paired import Paired
from evaluators.statistics import Proportion

Grade = Literal["smoke", "release"]

RELEASE_SAMPLES = 512  # below, the interval is wider than ± 4.4 points
CHECKS = (
    "signature",
    "source",
    "metadata",
    "same-logits",
    "held-out",
    "statement",
    "weight-parity",
    "logits",
    "normalisation",
    "determinism",
    "providers",
    "white-box",
    "perturbations",
    "recomputed",
    "white-box-strongest",
    "gradients",
    "large-eps",
    "undefended",
    "attack-order",
    "eps-curve",
    "losses-agree",
    "converged",
    "grey-levels",
    "sample-size",
    "attack-budget",
    "min-clean",
    "min-robust",
    "clean-drop",
    "robust-drop",
    "clean-loss",
    "robust-loss",
    "max-bytes",
    "robustness-judged",
    "required",
)
"""Names of all checks, in the order in which they are reported."""


@dataclass(frozen=True)
class Check:
    """One condition. `passed` is None where it could not be applied; `reason` is one line that says why.

    warning: it holds, and yet somebody should look at it: the gate does not fail
    """

    name: str
    passed: bool | None
    reason: str
    evidence: Mapping[str, Any] = field(default_factory=dict)
    warning: bool = False

    @property
    def status(self) -> Literal["passed", "warning", "failed", "not applied"]:
        """`passed` and `warning` in words."""
        if self.passed is None:
            return "not applied"
        return "failed" if not self.passed else "warning" if self.warning else "passed"

    def to_json(self) -> dict[str, Any]:
        """Everything as plain values."""
        return {"name": self.name, "status": self.status, "reason": self.reason, "evidence": dict(self.evidence)}


@dataclass(frozen=True)
class Verdict:
    """All checks, and whether the artefact may be released. A `smoke` verdict rests on too few samples for that."""

    passed: bool
    grade: Grade
    checks: tuple[Check, ...]

    @property
    def failed(self) -> tuple[Check, ...]:
        """The checks that failed."""
        return tuple(check for check in self.checks if check.status == "failed")

    @property
    def warnings(self) -> tuple[Check, ...]:
        """The checks that hold with a warning."""
        return tuple(check for check in self.checks if check.status == "warning")

    def to_json(self) -> dict[str, Any]:
        """Everything as plain values."""
        return {"passed": self.passed, "grade": self.grade, "checks": [check.to_json() for check in self.checks]}


def grade(n: int) -> Grade:
    """What a verdict on `n` samples is worth."""
    return "release" if n >= RELEASE_SAMPLES else "smoke"


def judge(checks: Sequence[Check], n: int, required: Sequence[str] = ()) -> Verdict:
    """Passed where at least one check was applied and none failed; `n` samples were measured.

    required: names of checks that must have passed, without a warning; `required` is then one more check

    Raises:
        ValueError: two checks of one name.
    """
    checks = [*checks, check_required(checks, required)]
    names = [check.name for check in checks]
    if len(set(names)) != len(names):
        raise ValueError(f"names of checks are not unique: {names}")
    applied = [check.passed for check in checks if check.passed is not None]
    return Verdict(bool(applied) and all(applied), grade(n), tuple(sorted(checks, key=_place)))


def check_required(checks: Sequence[Check], required: Sequence[str]) -> Check:
    """Every check that the policy names passed."""
    if not required:
        return Check("required", None, "the policy requires no check by name")
    found = {check.name: check for check in checks}
    missing = {name: found[name].status if name in found else "not applied" for name in required}
    missing = {name: status for name, status in missing.items() if status != "passed"}
    if missing:
        text = ", ".join(f"{name} ({status})" for name, status in missing.items())
        return Check("required", False, f"required and not passed: {text}", missing)
    return Check("required", True, f"passed: {', '.join(required)}")


def _place(check: Check) -> int:
    return CHECKS.index(check.name) if check.name in CHECKS else len(CHECKS)


def at_least(name: str, measured: Proportion | None, threshold: float | None, missing: str = "") -> Check:
    """The lower end of the exact 95 % interval reaches the threshold; fails, saying `missing`, without measurement."""
    if threshold is None:
        return Check(name, None, "no threshold is set")
    if measured is None:
        return Check(name, False, f"not measured: {missing}", {"threshold": threshold})
    bound = measured.clopper_pearson.low
    reason = (
        f"measured {measured.value:.4f} (n {measured.n}), lower 95 % bound {bound:.4f}, required at least {threshold:g}"
    )
    return Check(name, bound >= threshold, reason, {**measured.to_json(), "bound": bound, "threshold": threshold})


def no_worse(name: str, paired: Paired | None, margin: float | None, missing: str) -> Check:
    """The upper 95 % bound of the fall below the baseline, image by image, is at most the margin of non-inferiority."""
    if paired is None:
        unusable = None if margin is None else False
        return Check(name, unusable, f"not compared: {missing}", {} if margin is None else {"margin": margin})
    reason = (
        f"{paired.lost} images lost and {paired.gained} gained of {paired.n} against the baseline, drop "
        f"{paired.drop:.4f}, upper 95 % bound {paired.highest_drop:.4f}"
    )
    if margin is None:
        return Check(name, None, f"no margin is set: {reason}", paired.to_json())
    reason += f", allowed at most {margin:g}"
    return Check(name, paired.highest_drop <= margin, reason, {**paired.to_json(), "margin": margin})


def check_judged(checks: Sequence[Check]) -> Check:
    """A threshold above 0 judged robust accuracy, or its fall below a recorded number or a baseline: else nothing is
    proved."""
    judges = ("min-robust", "robust-drop", "robust-loss")
    applied = [
        check.name
        for check in checks
        if check.name in judges and check.passed is not None and check.evidence.get("threshold") != 0
    ]
    if applied:
        return Check("robustness-judged", True, f"by {' and '.join(applied)}")
    reason = "neither a threshold nor a recorded number nor a baseline judges robust accuracy: give --min-robust"
    return Check("robustness-judged", False, reason)


def small_enough(name: str, size: int | None, limit: int | None) -> Check:
    """`size` bytes are at most `limit`."""
    if limit is None:
        return Check(name, None, "no limit is set")
    if size is None:
        return Check(name, False, "the size of the file is not known", {"limit": limit})
    return Check(name, size <= limit, f"{size} bytes, allowed at most {limit}", {"bytes": size, "limit": limit})


def drop(
    name: str,
    measured: Proportion | None,
    conditions: Mapping[str, Any],
    recorded: Mapping[str, Any] | None,
    key: str,
    max_drop: float,
    required: bool,
) -> Check:
    """The recorded accuracy minus the measured one, on the same images, is at most `max_drop`.

    conditions: how it was measured; `recorded` must have been measured in the same way: equal values, where the
                number of steps and restarts may also be larger now than then (the attack is then stronger)
    key:        name of the accuracy in `recorded`
    required:   where the numbers can't be compared the check fails; otherwise it is not applied
    """
    unusable = False if required else None
    if measured is None:
        return Check(name, unusable, "not measured")
    before = None if recorded is None else recorded.get(key)
    if recorded is None or not _is_probability(before):
        return Check(name, unusable, f"no {key} is recorded at compression")
    differing = [name for name, value in conditions.items() if not comparable(name, recorded.get(name), value)]
    if differing:
        then = ", ".join(f"{name} {recorded.get(name, 'unknown')}" for name in differing)
        now = ", ".join(f"{name} {conditions[name]}" for name in differing)
        return Check(name, unusable, f"not comparable: recorded at {then}; measured at {now}")
    fall = before - measured.value
    reason = f"recorded {before:.4f}, measured {measured.value:.4f}, drop {fall:.4f}, allowed at most {max_drop:g}"
    evidence = {"recorded": before, "measured": measured.value, "drop": fall, "allowed": max_drop}
    return Check(name, fall <= max_drop + 1e-12, reason, evidence)  # 0.92 − 0.90 is not 0.02 in binary


def _is_probability(value: Any) -> TypeGuard[float]:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= 1


def comparable(name: str, then: Any, now: Any) -> bool:
    """Whether a number measured with `then` can stand beside one with `now`, for the condition of that name."""
    if name in ("steps", "restarts"):
        return isinstance(then, int) and now >= then
    if name == "eps":
        try:
            return math.isclose(parse_eps(str(then)), parse_eps(now))
        except AtmcError:
            return False
    return bool(then == now)
