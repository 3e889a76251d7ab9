"""The report of a training or compression: what its folder holds, as one HTML page.

What comes from the run (names, warnings, settings, numbers) may be anything: text is escaped by the template, and what
should be a number and is none is left out. The same facts give the same bytes.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from evaluators.report.figures import Figure, Series, draw
from evaluators.report.page import render
from evaluators.report.plain import number, shown

LAST_STEP = 2**53  # a step beyond is damage and not drawn
LABELS = {  # of the key of metrics.jsonl, where a figure has more than one line
    "validation_clean": "clean",
    "validation_robust": "robust (PGD)",
    "validation_single_step": "robust (one step)",
    "primal_residual": "primal",
    "dual_residual": "dual",
}


@dataclass(frozen=True)
class Results:
    """What a finished run has made.

    sizes:      what → bytes; the first is what the others are compared with
    accuracies: which network → what was measured on test images: clean_accuracy, robust_accuracy, n, eps, …
    kept:       (kept weights, weights), None where nothing was pruned
    """

    sizes: Mapping[str, int] = field(default_factory=dict)
    accuracies: Mapping[str, Any] = field(default_factory=dict)
    kept: tuple[int, int] | None = None


@dataclass(frozen=True)
class Run:
    """What is known of a run.

    name:    for people
    state:   a few words
    lines:   of its metrics.jsonl, each with an integer `step`
    config:  the resolved configuration, as YAML; empty where there is none
    results: None while it is not finished
    """

    name: str
    state: str
    lines: Sequence[Mapping[str, Any]]
    config: str
    results: Results | None


def run_report(run: Run) -> bytes:
    """The page; see `page.render`."""
    epochs = [line for line in run.lines if "warning" not in line]
    events = [line for line in run.lines if "warning" in line]
    drawn = [figure for figure in figures(epochs, [line["step"] for line in events]) if figure.drawn()]
    return render(
        "run.html.j2",
        title=run.name,
        state=run.state,
        facts=_facts(run, epochs),
        sizes=_sizes(run.results) if run.results else [],
        accuracies=_accuracies(run.results) if run.results else [],
        measured=_measured(run.results) if run.results else [],
        figures=[{"title": f.title, "text": f.text(), "svg": draw(f), "marked": bool(f.marked())} for f in drawn],
        events=[{"step": shown(e["step"]), "epoch": shown(e.get("epoch")), "text": e["warning"]} for e in events],
        config=run.config,
    )


def figures(epochs: Sequence[Mapping[str, Any]], marks: Sequence[int] = ()) -> list[Figure]:
    """All figures of a run, from the lines of its epochs, those without data too."""

    def series(*keys: str) -> list[Series]:
        return [Series(LABELS.get(key, key), _points(epochs, key)) for key in keys]

    at = sorted({step for step in marks if abs(step) <= LAST_STEP})
    return [
        Figure("loss", "Training loss", series("loss"), marks=at),
        Figure(
            "accuracy",
            "Accuracy on validation images",
            series("validation_clean", "validation_robust", "validation_single_step"),
            percent=True,
            marks=at,
        ),
        Figure("density", "Share of the weights that is kept", series("density"), log=True, percent=True, marks=at),
        Figure(
            "residuals",
            "ADMM residuals (relative)",
            series("primal_residual", "dual_residual"),
            log=True,
            marks=at,
        ),
        Figure(
            "codebooks",
            "Codebook movement (relative)",
            series("codebook_movement"),
            log=True,
            marks=at,
        ),
        Figure("rate", "Learning rate", series("learning_rate"), marks=at),
    ]


def _points(epochs: Sequence[Mapping[str, Any]], key: str) -> list[tuple[int, float]]:
    """(step, value) wherever both are numbers; of a step that stands there twice the later one."""
    found = {}
    for line in epochs:
        step, value = line["step"], number(line.get(key))
        if abs(step) <= LAST_STEP and value is not None:
            found[int(step)] = value
    return sorted(found.items())


def _facts(run: Run, epochs: Sequence[Mapping[str, Any]]) -> list[tuple[str, str]]:
    """What is said first: (what, figure)."""
    facts = []
    if epochs:
        last = epochs[-1]
        facts += [
            ("epochs", shown(last.get("epoch"))),
            ("steps", f"{shown(last['step'])} of {shown(last.get('steps'))}"),
            ("training time", _duration(last.get("seconds"))),
        ]
        for key, name in (("validation_clean", "clean"), ("validation_robust", "robust")):
            value = number(last.get(key))
            if value is not None:
                facts.append((f"validation, {name}", f"{value:.4g}"))
    kept = run.results.kept if run.results else None
    if kept and kept[1]:
        facts.append(("weights kept", f"{kept[0]:,} of {kept[1]:,} ({kept[0] / kept[1]:.2%})"))
    return facts


def _duration(value: Any) -> str:
    """90 → 1:30 min."""
    seconds = number(value)
    if seconds is None or seconds < 0:
        return "–"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02} h" if hours else f"{minutes}:{rest:02} min"


def _sizes(results: Results) -> list[tuple[str, str, str]]:
    """(what, bytes, times smaller than the first)."""
    first = next(iter(results.sizes.values()), 0)
    return [(what, f"{n:,}", f"{first / n:.1f}" if n else "–") for what, n in results.sizes.items()]


def _stated(results: Results) -> list[tuple[str, Mapping[str, Any]]]:
    """(which network, what was measured), the dense network first."""
    entries = sorted(results.accuracies.items(), key=lambda entry: entry[0] != "dense")
    return [(str(which), facts if isinstance(facts, Mapping) else {}) for which, facts in entries]


def _accuracies(results: Results) -> list[tuple[str, str, str]]:
    """(which network, clean accuracy, robust accuracy); where classes are unbalanced also their means over classes."""
    rows = []
    for which, facts in _stated(results):
        rows.append((which, shown(facts.get("clean_accuracy")), shown(facts.get("robust_accuracy"))))
        balanced = [facts.get(f"balanced_{kind}_accuracy") for kind in ("clean", "robust")]
        if any(value is not None for value in balanced):
            rows.append((f"{which}, mean over classes", shown(balanced[0]), shown(balanced[1])))
    return rows


def _measured(results: Results) -> list[str]:
    """How the accuracies were measured: a sentence, where that differs one for each network."""
    sentences = {}
    for which, facts in _stated(results):
        text = f"{shown(facts.get('n'))} images"
        if "robust_accuracy" in facts:
            attack = f"PGD-{shown(facts.get('steps'))}, worst of {shown(facts.get('restarts'))} starts"
            text += f"; robust: {attack}, l-infinity, eps {facts.get('eps')}"
        sentences[which] = text
    if len(set(sentences.values())) == 1:
        return list(set(sentences.values()))
    return [f"{which}: {text}" for which, text in sentences.items()]
