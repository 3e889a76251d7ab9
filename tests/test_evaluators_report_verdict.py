"""The verdict as JUnit XML and as Markdown."""

import json
from typing import Any
from xml.etree import ElementTree

import pytest

from evaluators.gate import Check, judge
from evaluators.report.verdict_junit import to_junit
from evaluators.report.verdict_markdown import to_markdown
from evaluators.statistics import Proportion

HOSTILE = "a|b\n<script>`x`</script>\x1b[31m\x00&[link](http://x.example)"
CHECKS = [
    Check("source", None, "no model.atmc"),
    Check("logits", True, "finite"),
    Check("converged", True, "5 more", warning=True),
    Check("gradients", False, HOSTILE, {"share": 0.5, "name": HOSTILE}),
]


def report(checks: list[Check] = CHECKS, name: str = "model.onnx", **changes: Any) -> dict[str, Any]:
    robust = Proportion(700, 1000).to_json()
    facts = {
        "atmc_tool": "0.1",
        "verdict": judge(checks, 1000).to_json(),
        "artefact": {"name": name, "bytes": 7408, "sha256": "ab" * 32},
        "threat_model": {"norm": "linf", "eps": "8/255"},
        "clean": Proportion(900, 1000).to_json(),
        "robust": robust,
        "attacks": [{"name": "pgd-20 cross-entropy", **robust}],
    }
    return {**facts, **changes}


def test_every_check_is_a_test_case() -> None:
    root = ElementTree.fromstring(to_junit(report()))
    suite = root.find("testsuite")
    cases = {case.get("name"): case for case in suite.findall("testcase")}
    assert list(cases) == [check["name"] for check in report()["verdict"]["checks"]]
    counts = [suite.get(key) for key in ("tests", "failures", "errors", "skipped")]
    assert counts == ["5", "1", "0", "2"]
    assert [root.get(key) for key in ("tests", "failures", "errors", "skipped")] == counts
    assert cases["source"].find("skipped").get("message") == "no model.atmc"
    assert cases["converged"].find("system-out").text == "warning: 5 more"
    assert json.loads(cases["gradients"].find("failure").text)["share"] == 0.5
    assert len(cases["logits"].findall("failure")) == 0
    properties = {p.get("name"): p.get("value") for p in suite.find("properties")}
    assert properties["robust_accuracy"] == "0.7"
    assert properties["verdict"] == "failed"


def test_hostile_names_stay_text_in_xml() -> None:
    content = to_junit(report(name=HOSTILE))
    suite = ElementTree.fromstring(content).find("testsuite")
    assert suite.get("name") == "a|b <script>`x`</script>?[31m?&[link](http://x.example)"
    assert b"<script>" not in content


def test_the_verdict_comes_first() -> None:
    lines = to_markdown(report()).splitlines()
    assert lines[0] == "## model.onnx: FAILED"
    assert "**0.7000**" in lines[2]
    assert "linf, eps 8/255" in lines[2]
    assert lines.index("### Failed") < lines.index("### Warnings") < lines.index("</details>")
    assert "## model.onnx: PASSED" in to_markdown(report([CHECKS[1]]))
    assert "### Failed" not in to_markdown(report([CHECKS[1]]))


def test_tables_have_one_width() -> None:
    tables: list[list[str]] = [[]]
    for line in to_markdown(report()).splitlines():
        if line.startswith("|"):
            tables[-1].append(line)
        elif tables[-1]:
            tables.append([])
    tables = [table for table in tables if table]
    assert [len(table) - 2 for table in tables] == [3, 1, 1, 5]
    for table in tables:
        assert len({line.count("|") for line in table}) == 1


def test_hostile_names_stay_text_in_markdown() -> None:
    text = to_markdown(report(name=HOSTILE))
    assert "<script>" not in text
    assert "\x1b" not in text
    assert "[link]" not in text
    assert text.splitlines()[0].startswith("## a&#124;b &#60;script&#62;")


@pytest.mark.parametrize(("grade", "words"), [("smoke", "Smoke test only"), ("release", "Release grade")])
def test_what_it_is_worth(grade: str, words: str) -> None:
    verdict = {**report()["verdict"], "grade": grade}
    assert words in to_markdown(report(verdict=verdict))


def test_without_measurements() -> None:
    bare = report(clean=None, robust=None, attacks=[])
    assert "Robust accuracy was not measured" in to_markdown(bare)
    ElementTree.fromstring(to_junit(bare))


def test_rows_of_papers_are_labelled() -> None:
    row = {"name": "wrm-15", "label": "for comparison only", "distance": {"mean": 2.5, "largest": 3.0}}
    shown = to_markdown(report(comparison=[{**row, **Proportion(360, 1000).to_json()}]))
    line = "| under wrm-15 | 0.3600 | 0.3302 to 0.3906 | 1000 | 2.5 | 3 |"
    head = "| for comparison only | here | 95 % interval | n | mean distance | largest |"
    assert f"{head}\n{'| --- ' * 6}|\n{line}\n" in shown
    assert "comparison only" not in to_markdown(report())
