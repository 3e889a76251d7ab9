"""The verdict as Markdown, for a pipeline's summary page: the verdict first, then accuracies, then checks."""

from collections.abc import Mapping, Sequence
from typing import Any

from evaluators.report.verdict_text import as_markdown

ORDER = ("failed", "warning", "passed", "not applied")


def to_markdown(report: Mapping[str, Any]) -> str:
    """The report in short; names and reasons are shown as they are, whatever they hold."""
    verdict, artefact = report["verdict"], report["artefact"]
    name = as_markdown(str(artefact["name"]))
    lines = [f"## {name}: {'PASSED' if verdict['passed'] else 'FAILED'}", ""]
    lines += [_summary(report), "", *_accuracies(report), *_comparison(report)]
    for status, title in (("failed", "Failed"), ("warning", "Warnings")):
        found = [check for check in verdict["checks"] if check["status"] == status]
        if found:
            lines += [f"### {title}", "", *_table(("check", "reason"), [_named(check) for check in found]), ""]
    rows = [
        (*_named(check), check["status"])
        for status in ORDER
        for check in verdict["checks"]
        if check["status"] == status
    ]
    lines += [f"<details><summary>All {len(rows)} checks</summary>", "", *_table(("check", "reason", "status"), rows)]
    lines += ["", "</details>", ""]
    lines.append(f"SHA-256 {artefact['sha256']}, {artefact['bytes']:,} bytes, atmc-tool {report['atmc_tool']}")
    return "\n".join(lines) + "\n"


def _summary(report: Mapping[str, Any]) -> str:
    """The number that the verdict is about, and what it is worth."""
    robust, model, verdict = report["robust"], report["threat_model"], report["verdict"]
    worth = "Release grade." if verdict["grade"] == "release" else "Smoke test only: fewer than 512 images."
    if robust is None:
        return f"Robust accuracy was not measured. {worth}"
    low, high = robust["clopper_pearson_95"]
    threat = as_markdown(f"{model['norm']}, eps {model['eps']}")
    return (
        f"Robust accuracy **{robust['accuracy']:.4f}** (95 % interval {low:.4f} to {high:.4f}, n {robust['n']}) under "
        f"{threat}, worst case over all attacks. {worth}"
    )


def _accuracies(report: Mapping[str, Any]) -> list[str]:
    measured = [("clean", report["clean"])]
    measured += [(f"under {attack['name']}", attack) for attack in report["attacks"]]
    measured.append(("worst case over all attacks", report["robust"]))
    rows = [_measured(name, facts) for name, facts in measured if facts is not None]
    return [*_table(("accuracy", "here", "95 % interval", "n"), rows), ""]


def _comparison(report: Mapping[str, Any]) -> list[str]:
    """The attacks that papers report, if they ran."""
    rows = [
        (*_measured(f"under {row['name']}", row), *(f"{row['distance'][key]:.4g}" for key in ("mean", "largest")))
        for row in report.get("comparison", ())
    ]
    head = ("for comparison only", "here", "95 % interval", "n", "mean distance", "largest")
    return [*_table(head, rows), ""] if rows else []


def _measured(name: str, facts: Mapping[str, Any]) -> tuple[str, str, str, str]:
    bounds = "{:.4f} to {:.4f}".format(*facts["clopper_pearson_95"])
    return as_markdown(name), f"{facts['accuracy']:.4f}", bounds, str(facts["n"])


def _named(check: Mapping[str, Any]) -> tuple[str, str]:
    return f"`{check['name']}`", as_markdown(check["reason"])


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    return [f"| {' | '.join(row)} |" for row in (head, ["---"] * len(head), *rows)]
