"""The report of a comparison as one HTML page, and its figure as a file of its own."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from evaluators.comparison import MeanSd, Point, Run, points
from evaluators.report.page import render
from evaluators.report.size_figures import draw_alone, draw_inline, size_figures

COLUMNS = {  # quantity → its name in the table
    "density": "kept",
    "nominal_bytes": "nominal bytes",
    "file_bytes": "real bytes",
    "clean_accuracy": "clean, %",
    "robust_accuracy": "robust, %",
    "validation_robust": "robust on held-out, %",
    "worst_case": "worst case, %",
    "steps": "steps",
    "passes_per_image": "passes per image",
    "seconds": "seconds",
}


@dataclass(frozen=True)
class Comparison:
    """What is known of a comparison.

    name:    for people
    runs:    finished and failed, in their order
    planned: number of all runs
    labels:  what the figure shows
    facts:   what → text: machine, versions, command
    grid:    the YAML file, as it was read
    """

    name: str
    runs: Sequence[Run]
    planned: int
    labels: Sequence[str]
    facts: Mapping[str, str]
    grid: str

    def shown(self) -> list[Point]:
        """The points of the figure."""
        return [point for point in points(self.runs) if point.label in self.labels]

    def state(self) -> str:
        """`7 of 13 runs finished, 1 failed`."""
        failed = sum(run.error is not None for run in self.runs)
        finished = f"{len(self.runs) - failed} of {self.planned} runs finished"
        return f"{finished}, {failed} failed" if failed else finished


def table(found: Sequence[Point], columns: Mapping[str, str] = COLUMNS) -> tuple[list[str], list[list[str]]]:
    """(names of the columns, a row of text for each point); columns without any value are left out."""
    present = {name: title for name, title in columns.items() if any(name in point.values for point in found)}
    rows = [
        [point.label, point.budget or "–", str(point.n), *(_cell(name, point.values.get(name)) for name in present)]
        for point in found
    ]
    return ["method", "budget", "runs", *present.values()], rows


def _cell(name: str, value: MeanSd | None) -> str:
    """Accuracies as mean ± standard deviation in per cent, all else as the mean."""
    if value is None:
        return "–"
    if name == "density":
        return f"{value.mean:.3g}" if value.mean < 0.001 else f"{value.mean:.4f}"
    if name.endswith("accuracy") or name in ("validation_robust", "worst_case"):
        return f"{100 * value.mean:.2f}" + ("" if value.sd is None else f" ± {100 * value.sd:.2f}")
    return f"{value.mean:,.0f}"


def measured(runs: Sequence[Run]) -> list[str]:
    """How robust accuracy was measured: a sentence for each way."""
    found = [run.outcome for run in runs if run.outcome is not None]
    return list(
        dict.fromkeys(
            f"{o.n:,} test images; robust: {o.attack.upper()}-{o.attack_steps}, worst of {o.restarts} starts, "
            f"{o.norm}, eps {o.eps}, seed {o.attack_seed}"
            for o in found
        )
    )


def comparison_report(comparison: Comparison) -> bytes:
    """The page; see `page.render`."""
    shown = comparison.shown()
    columns, rows = table(points(comparison.runs))
    return render(
        "comparison.html.j2",
        title=comparison.name,
        state=comparison.state(),
        measured=measured(comparison.runs),
        figures=[{"title": f.title, "text": f.text(), "svg": draw_inline(f)} for f in size_figures(shown) if shown],
        columns=columns,
        rows=rows,
        failed=[(run.name, run.error) for run in comparison.runs if run.error is not None],
        facts=comparison.facts,
        grid=comparison.grid,
    )


def comparison_figure(comparison: Comparison) -> str | None:
    """Both figures side by side as an SVG file; None while there is nothing to show."""
    shown = comparison.shown()
    return draw_alone(size_figures(shown)) if shown else None
