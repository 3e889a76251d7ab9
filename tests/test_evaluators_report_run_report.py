import re
from collections.abc import Mapping, Sequence
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from evaluators.report.figures import Figure, Series, draw
from evaluators.report.palette import DARK, LIGHT
from evaluators.report.run_report import Results, Run, figures, run_report

VOID = {"meta", "img", "path", "use", "rect", "br"}
EVIL = "<script>alert(1)</script>\"'&"
EPOCHS: list[dict[str, Any]] = [
    {
        "epoch": epoch,
        "step": 10 * epoch,
        "steps": 100,
        "seconds": 30.5 * epoch,
        "loss": 2 / epoch,
        "validation_clean": 0.5 + epoch / 40,
        "validation_robust": 0.4 + epoch / 40,
        "density": max(0.05, 1 / epoch**2),
        "learning_rate": 0.1 / epoch,
        **({"primal_residual": 0.1, "dual_residual": 0.0, "codebook_movement": 0.1 / epoch} if epoch > 7 else {}),
    }
    for epoch in range(1, 11)
]
RESULTS = Results(
    {"dense": 212_008, "model.atmc": 6_253},
    {
        "compressed": {
            "clean_accuracy": 0.99,
            "robust_accuracy": 0.85,
            "n": 360,
            "eps": "0.1",
            "steps": 20,
            "restarts": 3,
        }
    },
    (2_638, 52_768),
)


class Page(HTMLParser):
    """Elements, ids and text of a page; fails where an end tag fits no start tag."""

    def __init__(self, content: bytes) -> None:
        super().__init__()
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(content.decode())
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open[-1:] != ["style"]:
            self.text += data

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]


def report(lines: Sequence[Mapping[str, Any]], **changed: Any) -> bytes:
    facts = {"name": "atmc-run", "state": "finished", "config": "seed: 0\n", "results": RESULTS, **changed}
    return run_report(Run(lines=lines, **facts))


def test_the_whole_report() -> None:
    warning = {"epoch": 4, "step": 40, "steps": 100, "rollback": 1, "warning": "training diverged in epoch 5"}
    content = report([*EPOCHS[:4], warning, *EPOCHS[4:]])
    page = Page(content)
    assert content == report([*EPOCHS[:4], warning, *EPOCHS[4:]])
    for said in ("finished", "100 of 100", "5:05 min", "212,008", "33.9", "0.99", "0.85", "eps 0.1", "2,638 of 52,768"):
        assert said in page.text, said
    assert "training diverged in epoch 5" in page.text
    assert "seed: 0" in page.text
    assert len(page.all("figure")) == len(page.all("svg")) == 6
    told = [each["aria-label"] or "" for each in page.all("div") if each.get("role") == "img"]
    assert len(told) == 6
    assert told[0] == (
        "Training loss against the step. loss: 2 at step 10, 0.2 at step 100, least 0.2, most 2. Marked: step 40."
    )
    assert "dual:" not in told[3]  # all zero: nothing on a logarithmic axis


def test_it_loads_nothing_and_ids_are_unique() -> None:
    page = Page(report(EPOCHS))
    ids = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    assert len(ids) == len(set(ids)) > 50
    assert not {tag for tag, _ in page.elements} & {"script", "link", "img", "iframe", "object"}
    used = {a.get("xlink:href") or "" for _, a in page.elements if "xlink:href" in a}
    assert used <= {f"#{each}" for each in ids}
    content = report(EPOCHS).decode()
    assert set(re.findall(r"url\(#([^)]+)\)", content)) <= set(ids)
    assert set(re.findall(r'"(https?:[^"]*)"', content)) == {
        "http://www.w3.org/1999/xlink",
        "http://www.w3.org/2000/svg",
    }
    assert "default-src &#39;none&#39;" in content or "default-src 'none'" in content


def test_figures_without_data_are_left_out() -> None:
    lines = [{"step": 10, "epoch": 1, "loss": 1.0, "validation_clean": 0.5}]
    page = Page(report(lines, results=None, config="", state="running"))
    assert len(page.all("svg")) == 2
    assert "Size" not in page.text
    assert "configuration" not in page.text
    empty = Page(report([], results=None, config="", state="waiting for the first epoch"))
    assert "waiting for the first epoch" in empty.text
    assert not empty.all("figure")
    assert len([figure for figure in figures(EPOCHS) if figure.drawn()]) == 6


def test_what_the_run_says_is_text() -> None:
    results = Results(
        {EVIL: 5}, {EVIL: {"clean_accuracy": EVIL, "robust_accuracy": 1, "n": EVIL, "eps": EVIL}, "x": EVIL}
    )
    lines = [*EPOCHS, {"step": 5, "epoch": EVIL, "warning": EVIL}, {"step": 6, "warning": [EVIL]}]
    lines += [{EVIL: 1, "step": 200, "epoch": EVIL, "steps": EVIL, "seconds": EVIL, "loss": EVIL}]
    content = report(lines, name=f"{EVIL}\udcff", state=EVIL, config=EVIL, results=results)
    page = Page(content)
    assert b"<script" not in content
    assert page.text.count("<script>") >= 7
    assert not page.all("script")


INFINITY = float("inf")
ODD = [None, True, "1", [], {}, float("nan"), INFINITY, -INFINITY, 10**400, -(10**400), 1e308, 5e-324, 0, -1, 1e29]
KEYS = (
    "loss",
    "validation_clean",
    "density",
    "primal_residual",
    "codebook_movement",
    "learning_rate",
    "seconds",
    "epoch",
)


@pytest.mark.parametrize("values", [ODD, ODD[:11], [5e-324], [1e29, 1e-29], [-1]])
def test_numbers_that_are_none_or_odd(values: list[Any]) -> None:
    steps = [0, -5, 10**400, 2**53]
    lines = [{"step": steps[i % 4], **dict.fromkeys(KEYS, value)} for i, value in enumerate(values)]
    page = Page(report([*lines, *({**line, "warning": 1} for line in lines)], results=None))
    assert not re.search("nan|inf", page.text)


def test_every_axis_has_labels() -> None:
    for values in ([0.05, 0.05], [0.0503, 0.05], [0.05], [1.0, 1e-9], [3.1, 3.9], [0.0, 0.0]):
        for log in (False, True):
            figure = Figure("f", "T", [Series("a", list(enumerate(values)))], log=log)
            if figure.drawn():
                svg = draw(figure)
                ticks = svg[svg.index("matplotlib.axis_2") :].count("<text")
                assert ticks >= 1, (values, log)
                assert not re.search(r"nan|inf", svg)


def luminance(colour: str) -> float:
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def test_colours_have_contrast() -> None:
    """WCAG 2: 4.5 for text, 3 for lines, on either ground, light and dark."""
    css = report(EPOCHS).decode()
    schemes = [
        dict(re.findall(r"--([\w-]+): (#\w{6});", block)) for block in re.findall(r":root \{(.*?)\}", css, re.DOTALL)
    ]
    assert schemes == [dict(LIGHT), dict(DARK)]
    lines = {name: 3.0 for name in LIGHT if name.startswith("line-")}
    assert len(lines) == 8
    for scheme in schemes:
        for ground in ("page", "card", "warn"):
            for name, least in {"text": 4.5, "soft": 4.5, "mark": 3.0, **lines}.items():
                pair = sorted((luminance(scheme[name]), luminance(scheme[ground])))
                assert (pair[1] + 0.05) / (pair[0] + 0.05) >= least, (name, ground)


def test_a_user_s_matplotlib_settings_change_nothing(tmp_path: Path) -> None:
    import matplotlib

    before = report(EPOCHS)
    (tmp_path / "matplotlibrc").write_text("lines.linewidth: 9\nfont.size: 30\n")
    with matplotlib.rc_context(fname=str(tmp_path / "matplotlibrc")):
        assert report(EPOCHS) == before
        assert matplotlib.rcParams["lines.linewidth"] == 9
