"""A verdict as a person sees it: its tables and one line."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from atmc_tool.cli.render import note, show_line, show_table

if TYPE_CHECKING:
    from atmc_tool.threat_model import ThreatModel
    from evaluators.robustness import AttackResult
    from evaluators.statistics import Proportion
    from evaluators.verification import Verification


def show_verdict(report: Mapping[str, Any], verification: "Verification", destination: Path) -> None:
    """The accuracies, the checks and the verdict, on stdout."""
    dense, recorded = report["dense"] or {}, report["recorded"] or {}
    rows: list[list[object]] = []
    if verification.clean is not None:
        rows.append(_row("clean", verification.clean, dense.get("clean_accuracy"), recorded.get("clean_accuracy")))
    attacks = () if verification.robustness is None else verification.robustness.attacks
    for attack in attacks:
        before = [_recorded(facts, attack, verification.threat_model) for facts in (dense, recorded)]
        rows.append(_row(f"under {attack.name}", attack.accuracy, *before))
    if verification.robust is not None:
        rows.append(_row("worst case over all attacks", verification.robust))
    artefact, images = verification.artefact, report["data"]["name"]
    if report["provider_note"]:
        note(report["provider_note"])
    show_table(
        f"{artefact.name} ({artefact.bytes:,} bytes) on {images}, {verification.threat_model}, onnxruntime "
        f"{report['provider']}",
        ["accuracy", "here", "95 % interval", "n", "compressed, recorded", "dense, recorded"],
        rows,
    )
    if verification.comparison:
        show_table(
            "For comparison only, judged by no check: attacks that papers report",
            ["accuracy", "here", "95 % interval", "n", "mean distance", "largest"],
            [[*_row(f"under {row.name}", row.accuracy)[:4], row.mean, row.largest] for row in verification.comparison],
        )
    checks = [[check.name, check.status, check.reason] for check in verification.verdict.checks]
    show_table("Checks", ["check", "status", "reason"], checks, figures=False)
    show_line(verdict_line(report), bold=True)
    show_line(f"report: {destination.with_suffix('.html')}, for programs {destination}")


def verdict_line(report: Mapping[str, Any]) -> str:
    """The verdict with the number it is about, what failed, what warns, and what no threshold judged."""
    verdict, robust = report["verdict"], report["robust"]
    status = {check["name"]: check["status"] for check in verdict["checks"]}
    failed, warnings = ([name for name in status if status[name] == wanted] for wanted in ("failed", "warning"))
    words = "PASSED" if verdict["passed"] else f"FAILED ({', '.join(failed)})"
    if warnings:
        words += f" with warnings ({', '.join(warnings)})"
    model = report["threat_model"]
    number = f": robust accuracy {robust['accuracy']:.4g} ({model['norm']}, eps {model['eps']})" if robust else ""
    smoke = ", smoke test only: fewer than 512 images" if verdict["grade"] == "smoke" else ""
    unset = ""
    if verdict["passed"] and report["policy"].get("min_robust") is None:
        judges = {"robust-drop": "compression", "robust-loss": "a baseline"}
        others = " and ".join(other for name, other in judges.items() if status.get(name) == "passed")
        unset = f", compared with {others} only: no --min-robust"
    return f"verdict: {words}{number}{smoke}{unset}"


def _recorded(facts: Mapping[str, Any], attack: "AttackResult", threat_model: "ThreatModel") -> float | None:
    """The accuracy recorded at compression, which is under PGD on the cross-entropy, beside the same under the same
    norm and eps; else None."""
    from evaluators.gate import comparable

    conditions = {"attack": attack.parameters["attack"], "norm": threat_model.norm, "eps": threat_model.text}
    if attack.parameters.get("loss") != "cross_entropy":
        return None
    if not all(comparable(name, facts.get(name), value) for name, value in conditions.items()):
        return None
    value: float | None = facts.get("robust_accuracy")
    return value


def _row(
    name: str, measured: "Proportion", dense: float | None = None, compressed: float | None = None
) -> list[object]:
    interval = measured.clopper_pearson
    if measured.balanced is not None:
        name += f" (mean over classes {measured.balanced:.4f})"
    return [name, measured.value, f"{interval.low:.4f} to {interval.high:.4f}", measured.n, compressed, dense]
