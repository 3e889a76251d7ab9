"""The verdict as JUnit XML, which pipelines show as tests: one test case for each check."""

import json
from collections.abc import Mapping
from typing import Any
from xml.etree import ElementTree

from evaluators.report.verdict_text import printable


def to_junit(report: Mapping[str, Any]) -> bytes:
    """A test suite of the report's checks, UTF-8: a failed one is a failure, one that was not applied is skipped.

    A warning passes, and stands in the case's output. Evidence is JSON below the reason of a failure.
    """
    checks = report["verdict"]["checks"]
    counts = {
        "tests": len(checks),
        "failures": sum(check["status"] == "failed" for check in checks),
        "errors": 0,
        "skipped": sum(check["status"] == "not applied" for check in checks),
    }
    numbers = {name: str(count) for name, count in counts.items()}
    root = ElementTree.Element("testsuites", {"name": "atmc-tool verify", **numbers})
    suite = ElementTree.SubElement(root, "testsuite", {"name": printable(report["artefact"]["name"]), **numbers})
    properties = ElementTree.SubElement(suite, "properties")
    for name, value in _facts(report).items():
        ElementTree.SubElement(properties, "property", {"name": name, "value": printable(str(value))})
    for check in checks:
        case = ElementTree.SubElement(suite, "testcase", {"classname": "atmc_tool.verify", "name": check["name"]})
        reason = printable(check["reason"])
        if check["status"] == "failed":
            failure = ElementTree.SubElement(case, "failure", {"message": reason, "type": "check"})
            failure.text = printable(json.dumps(check["evidence"], ensure_ascii=True))
        elif check["status"] == "not applied":
            ElementTree.SubElement(case, "skipped", {"message": reason})
        else:
            words = "warning: " if check["status"] == "warning" else ""
            ElementTree.SubElement(case, "system-out").text = words + reason
    ElementTree.indent(root)
    content: bytes = ElementTree.tostring(root, encoding="utf-8", xml_declaration=True)
    return content + b"\n"


def _facts(report: Mapping[str, Any]) -> dict[str, Any]:
    clean, robust = report["clean"], report["robust"]
    return {
        "verdict": "passed" if report["verdict"]["passed"] else "failed",
        "grade": report["verdict"]["grade"],
        "sha256": report["artefact"]["sha256"],
        "norm": report["threat_model"]["norm"],
        "eps": report["threat_model"]["eps"],
        **({} if clean is None else {"n": clean["n"], "clean_accuracy": clean["accuracy"]}),
        **({} if robust is None else {"robust_accuracy": robust["accuracy"]}),
    }
