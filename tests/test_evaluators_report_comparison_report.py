"""The page and the figure of a comparison."""

import re
from dataclasses import replace
from xml.etree import ElementTree

import pytest
from test_evaluators_comparison import OUTCOME, RUN
from test_evaluators_report_run_report import EVIL, Page

from evaluators.comparison import Run, points
from evaluators.report.comparison_report import Comparison, comparison_figure, comparison_report
from evaluators.report.palette import LIGHT
from evaluators.report.size_figures import size_figures

DENSE = Run(
    "dense-seed0", "dense", "dense", None, None, 0, 9, 9, 1.0, replace(OUTCOME, nominal_bytes=400, file_bytes=400)
)


def grown(label: str, size: int, robust: float, seed: int = 0) -> Run:
    outcome = replace(OUTCOME, nominal_bytes=size, file_bytes=2 * size, robust_accuracy=robust)
    return replace(RUN, label=label, name=f"{label}-{size}-{seed}", budget=f"size {size}", seed=seed, outcome=outcome)


RUNS = [DENSE, grown("a", 40, 0.5), grown("a", 40, 0.7, 1), grown("a", 4, 0.3), grown("b", 20, 0.25)]


def comparison(runs: list[Run], *labels: str, name: str = "folder") -> Comparison:
    return Comparison(name, runs, 7, labels or tuple(run.label for run in runs), {"machine": "one"}, "methods: [a]\n")


def test_the_whole_page() -> None:
    failed = replace(RUN, label="c", name="c-keep0.1-seed0", outcome=None, error="training diverged")
    content = comparison_report(comparison([*RUNS, failed]))
    page = Page(content)
    assert content == comparison_report(comparison([*RUNS, failed]))
    for said in ("5 of 7 runs finished, 1 failed", "training diverged", "60.00 ± 14.14", "PGD-20, worst of 3", "one"):
        assert said in page.text, said
    assert "methods: [a]" in page.text
    told = [each["aria-label"] or "" for each in page.all("div") if each.get("role") == "img"]
    assert len(page.all("svg")) == len(told) == 2
    assert "a: at 0.01 clean 0.9, robust 0.3; at 0.1 clean 0.9 ± 0, robust 0.6 ± 0.14" in told[0]
    assert "a: at 8 clean" in told[1]
    assert "dense: at 1 clean" in told[0]
    ids = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    assert not page.all("script")


def test_labels_and_errors_are_text() -> None:
    evil = [replace(run, label=EVIL, name=EVIL, budget=EVIL) for run in RUNS[1:]]
    evil.append(replace(RUN, label=EVIL, name=EVIL, outcome=None, error=EVIL))
    content = comparison_report(replace(comparison(evil, EVIL, name=EVIL), facts={EVIL: EVIL}, grid=EVIL))
    assert b"<script" not in content
    assert Page(content).text.count("<script>") >= 8
    figure = comparison_figure(comparison(evil, EVIL))
    assert figure is not None
    assert "<script" not in figure


def test_what_is_not_asked_for_is_in_the_table_alone() -> None:
    shown = comparison([*RUNS, grown("natural", 400, 0.1)], "a", "b").shown()
    assert {point.label for point in shown} == {"a", "b"}
    page = Page(comparison_report(comparison([*RUNS, grown("natural", 400, 0.1)], "a", "b")))
    assert "natural" in page.text


def test_nothing_finished_yet() -> None:
    failed = replace(RUN, outcome=None, error="x")
    for runs in ([], [failed]):
        page = Page(comparison_report(comparison(runs)))
        assert not page.all("svg")
        assert "Results" not in page.text
        assert comparison_figure(comparison(runs)) is None


def test_the_figure_as_a_file_stands_alone() -> None:
    figure = comparison_figure(comparison(RUNS))
    assert figure is not None
    root = ElementTree.fromstring(figure)
    assert root.tag == "{http://www.w3.org/2000/svg}svg"
    assert root.get("width")
    assert "var(" not in figure
    assert "#0a0b" not in figure
    assert f'<rect width="100%" height="100%" fill="{LIGHT["page"]}"/>' in figure
    assert {"a", "b", "dense", "robust", "clean"} <= {(text.text or "").strip() for text in root.iter() if text.text}
    assert figure == comparison_figure(comparison(RUNS))


def test_a_figure_orders_points_by_size_and_puts_dense_last() -> None:
    nominal, real = size_figures(points(RUNS))
    assert nominal.labels() == ["a", "b", "dense"]
    assert [nominal.x(point) for point in nominal.of("a")] == [0.01, 0.1]
    assert [real.x(point) for point in real.of("a")] == [8, 80]


@pytest.mark.parametrize("count", [1, 8, 9, 20])
def test_every_line_has_a_look_of_its_own(count: int) -> None:
    """No two lines have colour and marker in common."""
    runs = [grown(f"m{index}", 10 + index, 0.5) for index in range(count)]
    figure = comparison_figure(comparison(runs))
    assert figure is not None
    legend = figure[figure.index('id="legend_1"') :]
    looks = re.findall(r'<use xlink:href="#(\w+)"[^>]*?style="fill: (#\w{6})', legend)
    assert len(looks) == len(set(looks)) == count
