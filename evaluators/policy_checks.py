"""What the policy asks of the measurements: enough images, a strong enough attack, thresholds, drops and sizes."""

import math
from collections.abc import Mapping
from typing import Any

from atmc_tool.threat_model import ThreatModel, parse_eps
from evaluators.attack_plan import SQUARE_QUERIES, AttackSettings
from evaluators.gate import RELEASE_SAMPLES, Check, at_least, drop, grade, small_enough
from evaluators.policy import Policy
from evaluators.robustness import Robustness
from evaluators.statistics import Proportion


def check_sample_size(policy: Policy, n: int) -> Check:
    """There are as many images as the policy wants, and enough for its grade."""
    wanted = max(policy.min_n or 0, RELEASE_SAMPLES if policy.grade == "release" else 0)
    evidence = {"n": n, "required": wanted, "grade": grade(n)}
    if not wanted:
        hint = f": below {RELEASE_SAMPLES} it is a smoke test" if grade(n) == "smoke" else ""
        return Check("sample-size", None, f"n {n}, no least number is set{hint}", evidence)
    short = "" if n >= wanted else ": measure more (-n), or take a larger test set"
    return Check("sample-size", n >= wanted, f"n {n}, required at least {wanted}{short}", evidence)


def check_attack_budget(
    policy: Policy, threat_model: ThreatModel, settings: AttackSettings, measured: Robustness | None
) -> Check:
    """The artefact was attacked at least as hard as the policy wants, by what ran; `min_eps` alone is one in linf.

    measured: the attacks; None where the outputs are no logits
    """
    if measured is None:
        return Check("attack-budget", None, "no attack ran")
    ran = [attack.parameters for attack in measured.white_box]
    facts: dict[str, tuple[Any, Any, bool]] = {}  # what → measured, required, met
    norm = policy.norm or (None if policy.min_eps is None else "linf")
    if norm is not None:
        facts["norm"] = (threat_model.norm, norm, threat_model.norm == norm)
    if policy.min_eps is not None:
        least = parse_eps(policy.min_eps)
        enough = threat_model.eps >= least or math.isclose(threat_model.eps, least)
        facts["eps"] = (threat_model.text, policy.min_eps, enough)
    if policy.attack == "autoattack":
        facts["attack"] = (settings.attack, policy.attack, settings.attack == policy.attack)
        if settings.attack == policy.attack:
            queries = 0 if measured.black_box is None else measured.black_box.parameters["queries"]
            least_queries = SQUARE_QUERIES[policy.attack]
            facts["square_queries"] = (queries, least_queries, queries >= least_queries)
    if policy.min_steps is not None:
        steps = min((parameters["steps"] for parameters in ran), default=0)
        facts["steps"] = (steps, policy.min_steps, steps >= policy.min_steps)
    if policy.min_restarts is not None:
        restarts = ran[0]["restarts"] if ran else 0
        facts["restarts"] = (restarts, policy.min_restarts, restarts >= policy.min_restarts)
    if not facts:
        return Check("attack-budget", None, "no least attack is set")
    evidence = {name: {"measured": now, "required": least} for name, (now, least, _) in facts.items()}
    weak = [f"{name} {now} instead of {least}" for name, (now, least, met) in facts.items() if not met]
    if weak:
        hint = " and ".join(_option(name, settings) for name, (_, _, met) in facts.items() if not met)
        return Check("attack-budget", False, f"attacked with {', '.join(weak)}: give {hint}", evidence)
    text = ", ".join(f"{name} {now} (at least {least})" for name, (now, least, _) in facts.items())
    return Check("attack-budget", True, text, evidence)


def _option(name: str, settings: AttackSettings) -> str:
    """How to set what was too weak; `autoattack` has its own steps and a single start."""
    if name == "square_queries":
        return f"--set evaluation.square_queries={SQUARE_QUERIES[settings.attack]}"
    own = settings.attack == "autoattack" and name in ("steps", "restarts")
    return f"--{name} with --attack standard" if own else f"--{name}"


def threshold_checks(
    policy: Policy,
    size: int,
    clean: Proportion | None,
    robust: Proportion | None,
    robustness: Robustness | None,
    recorded: Mapping[str, Any] | None,
    images: Mapping[str, Any],
    threat_model: ThreatModel,
) -> list[Check]:
    """Thresholds on accuracies and size, and drops below the recorded numbers: of clean accuracy, and of PGD alone,
    for PGD on the cross-entropy is what was recorded.

    images: how clean accuracy was measured
    """
    pgd = robustness.white_box[0] if robustness is not None and robustness.white_box else None
    attack_conditions = {"norm": threat_model.norm, "eps": threat_model.text, "attack": "pgd"}
    if pgd is not None:
        attack_conditions |= {name: pgd.parameters[name] for name in ("attack", "steps", "restarts")}
    required = policy.requires_drop
    return [
        at_least("min-clean", clean, policy.min_clean, "the outputs are no logits"),
        at_least("min-robust", robust, policy.min_robust, "no white-box attack ran"),
        drop("clean-drop", clean, images, recorded, "clean_accuracy", policy.max_drop, required),
        drop(
            "robust-drop",
            None if pgd is None else pgd.accuracy,
            {**images, **attack_conditions},
            recorded,
            "robust_accuracy",
            policy.max_drop,
            required,
        ),
        small_enough("max-bytes", size, policy.max_bytes),
    ]


def image_conditions(n: int, split: str, digest: str, recorded: Mapping[str, Any] | None) -> dict[str, Any]:
    """How clean accuracy was measured; the digest of the images counts where it was recorded."""
    conditions: dict[str, Any] = {"n": n, "split": split}
    if recorded is not None and "images_sha256" in recorded:
        conditions["images_sha256"] = digest
    return conditions
