"""Figures of a comparison: accuracy against size, a line for each method."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from evaluators.comparison import MeanSd, Point
from evaluators.report.figures import LINES, TEXT, alone, inline, logarithmic, rendered

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure as Canvas

MARKERS = ("o", "s", "^", "D", "v", "P", "X", "p")
STYLES = {"robust": "solid", "clean": "dashed"}
PANEL = (4.4, 3.2)  # inches of 72 SVG units
LEGEND_LINE = 0.22  # inches
LEGEND_COLUMNS = 3
DENSE = "dense"


@dataclass(frozen=True)
class SizeFigure:
    """Clean and robust accuracy against one kind of size.

    name:   ASCII letters, unlike that of any other figure of the page
    size:   quantity of `Point`
    share:  the size is divided by that of the dense network
    points: of all labels; those of `dense` are drawn as lines across the figure too
    """

    name: str
    title: str
    axis: str
    size: str
    share: bool
    points: Sequence[Point]

    def labels(self) -> list[str]:
        """The labels in order of appearance, `dense` last."""
        found = dict.fromkeys(point.label for point in self.points)
        return sorted(found, key=lambda label: label == DENSE)

    def of(self, label: str) -> list[Point]:
        """The points of a label in order of size."""
        return sorted((point for point in self.points if point.label == label), key=self.x)

    def x(self, point: Point) -> float:
        """Where a point stands."""
        size = point.values[self.size].mean
        return size / point.values["dense_bytes"].mean if self.share else size

    def text(self) -> str:
        """The figure in words, for whoever does not see it."""
        told = [
            f"{label}: "
            + "; ".join(
                f"at {self.x(point):,.4g} clean {point.values['clean_accuracy'].text}, "
                f"robust {point.values['robust_accuracy'].text}"
                for point in self.of(label)
            )
            for label in self.labels()
        ]
        return f"{self.title}, logarithmic axis: {self.axis}. {'. '.join(told)}."


def size_figures(points: Sequence[Point]) -> list[SizeFigure]:
    """Both figures of `points`: against the nominal size and against real bytes."""
    return [
        SizeFigure(
            "nominal",
            "Accuracy against nominal size",
            "nominal size / dense size",
            "nominal_bytes",
            True,
            points,
        ),
        SizeFigure("real", "Accuracy against real size", "size of model.atmc", "file_bytes", False, points),
    ]


def draw_inline(figure: SizeFigure) -> str:
    """`figure` as an `<svg>` element of a page, with ids that begin with its name; it has at least one point."""
    return inline(_rendered(figure.name, [figure]), figure.name)


def draw_alone(figures: Sequence[SizeFigure]) -> str:
    """`figures` side by side as an SVG file of its own."""
    return alone(_rendered("comparison", figures))


def _rendered(name: str, figures: Sequence[SizeFigure]) -> str:
    labels = figures[0].labels()
    columns = LEGEND_COLUMNS * len(figures)
    height = PANEL[1] + LEGEND_LINE * (-(-(len(labels) + len(STYLES)) // columns) - 1)

    def plot(canvas: "Canvas") -> None:
        for axes, figure in zip(canvas.subplots(1, len(figures), squeeze=False)[0], figures, strict=True):
            _plot(axes, figure)
        _legend(canvas, labels, columns)

    return rendered(name, (PANEL[0] * len(figures), height), plot)


def _look(index: int, label: str) -> tuple[str, str]:
    """(colour, marker) of line number `index`: no two of the first 64 have both in common."""
    if label == DENSE:
        return TEXT, "*"
    count = len(LINES)
    return LINES[index % count], MARKERS[(index + index // count) % len(MARKERS)]


def _plot(axes: "Axes", figure: SizeFigure) -> None:
    for index, label in enumerate(figure.labels()):
        colour, marker = _look(index, label)
        found = figure.of(label)
        for kind, style in STYLES.items():
            values = [point.values[f"{kind}_accuracy"] for point in found]
            if label == DENSE:
                axes.axhline(values[0].mean, color=colour, linestyle=style, linewidth=1.0)
            axes.errorbar(
                [figure.x(point) for point in found],
                [value.mean for value in values],
                yerr=_bars(values),
                color=colour,
                linestyle=style,
                marker=marker,
                markersize=5,
                capsize=2,
            )
    sizes = [figure.x(point) for point in figure.points]
    axes.set_xscale("log")
    axes.set_xlim(min(sizes) / 1.5, 1.5 * max(sizes))
    logarithmic(axes.xaxis, min(sizes), max(sizes))
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:.4g}" if figure.share else _bytes(value))
    axes.yaxis.set_major_formatter(lambda value, _: f"{100 * value:.4g} %")
    axes.set_xlabel(figure.axis)


def _bars(values: Sequence[MeanSd]) -> list[float] | None:
    """Standard deviations, None where there are none."""
    return [value.sd or 0.0 for value in values] if any(value.sd for value in values) else None


def _bytes(number: float) -> str:
    """20000 → 20 KB."""
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("KB", 1e3)):
        if number >= size:
            return f"{number / size:.4g} {unit}"
    return f"{number:.4g} B"


def _legend(canvas: "Canvas", labels: Sequence[str], columns: int) -> None:
    """Labels with their colours and markers, then what solid and dashed mean; the handles are lines without points."""
    axes = canvas.axes[0]
    handles = []
    for index, label in enumerate(labels):
        colour, marker = _look(index, label)
        handles += axes.plot([], [], color=colour, marker=marker, markersize=5, linestyle="none", label=label)
    for kind, style in STYLES.items():
        handles += axes.plot([], [], color=TEXT, linestyle=style, label=kind)
    canvas.legend(handles=handles, loc="outside lower center", ncols=columns)
