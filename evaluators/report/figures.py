"""Figures of a run: series of numbers over steps, drawn as SVG that stands inside an HTML page.

The only file that imports matplotlib, and late: it takes a second. Colours are the page's CSS variables, so that a
figure follows its light or dark scheme; dashes tell lines apart without colour. The same input gives the same bytes.
"""

import io
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import log10
from typing import TYPE_CHECKING, Any

from evaluators.report.palette import LIGHT

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure as Canvas

SIZE = (4.4, 2.6)  # inches of 72 SVG units: text keeps its size where the figure is as wide as a phone
FEW_POINTS = 40  # up to which each is marked
NARROW_DECADES = 2.5  # a log axis up to so wide is labelled between the powers of ten too
LEAST = 1e-30  # on a logarithmic axis; what is less counts as zero
DASHES = ("solid", "dashed")
# Name in the palette → colour in matplotlib. It takes no CSS variables: these stand for them until the SVG is made.
COLOURS = {name: f"#0a0b{index:02}" for index, name in enumerate(LIGHT)}
LINES = [colour for name, colour in COLOURS.items() if name.startswith("line-")]
MARK, GRID, TEXT = COLOURS["mark"], COLOURS["grid"], COLOURS["text"]
STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "font.size": 10.0,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": GRID,
    "grid.linewidth": 0.6,
    "axes.edgecolor": GRID,
    "axes.labelcolor": TEXT,
    "text.color": TEXT,
    "xtick.color": TEXT,
    "ytick.color": TEXT,
    "lines.linewidth": 1.6,
    "lines.markersize": 3.5,
    "legend.frameon": False,
}
_ID = re.compile(r'((?:\bid=|href=)"#?|url\(#)(?=[\w.-])')


@dataclass(frozen=True)
class Series:
    """A line of a figure, of at most as many as there are DASHES. points: (step, value), finite, in order of steps."""

    label: str
    points: Sequence[tuple[int, float]]


@dataclass(frozen=True)
class Figure:
    """A figure over steps.

    name: ASCII letters, unlike that of any other figure of the page
    log: logarithmic axis; values below LEAST are not drawn
    percent: values are shares, shown as per cent
    marks: steps at which something happened: dotted vertical lines, where the series are
    """

    name: str
    title: str
    series: Sequence[Series]
    log: bool = False
    percent: bool = False
    marks: Sequence[int] = ()

    def drawn(self) -> list[Series]:
        """The series that have something to show, with what is shown of them."""
        kept = [Series(s.label, [p for p in s.points if p[1] >= LEAST or not self.log]) for s in self.series]
        return [series for series in kept if series.points]

    def marked(self) -> list[int]:
        """The marks between the first and the last step that is drawn."""
        steps = [step for series in self.drawn() for step, _ in series.points]
        return [step for step in self.marks if min(steps) <= step <= max(steps)]

    def text(self) -> str:
        """The figure in words, for whoever does not see it."""
        lines = []
        for series in self.drawn():
            (first, start), (last, end) = series.points[0], series.points[-1]
            values = [value for _, value in series.points]
            shown = [self.value(value) for value in (start, end, min(values), max(values))]
            lines.append(
                f"{series.label}: {shown[0]} at step {first:,}, {shown[1]} at step {last:,}, "
                f"least {shown[2]}, most {shown[3]}."
            )
        scale = ", logarithmic axis" if self.log else ""
        marked = ", ".join(f"{step:,}" for step in self.marked())
        marks = f" Marked: step {marked}." if marked else ""
        return f"{self.title} against the step{scale}. {' '.join(lines)}{marks}"

    def value(self, value: float) -> str:
        """A value as people read it."""
        return f"{100 * value:.4g} %" if self.percent else f"{value:.4g}"


def draw(figure: Figure) -> str:
    """`figure` as an `<svg>` element, with ids that begin with its name; it has at least one series to draw."""

    def plot(canvas: "Canvas") -> None:
        axes = canvas.add_subplot()
        drawn = figure.drawn()
        for series, colour, dashes in zip(drawn, LINES, DASHES, strict=False):
            steps, values = zip(*series.points, strict=True)
            marker = "o" if len(steps) <= FEW_POINTS else ""
            axes.plot(steps, values, color=colour, linestyle=dashes, marker=marker, label=series.label)
        for step in figure.marked():
            axes.axvline(step, color=MARK, linestyle="dotted", linewidth=1.2)
        _scale(axes, figure, [value for series in drawn for _, value in series.points])
        if len(figure.series) > 1:
            axes.legend(loc="best")

    return inline(rendered(figure.name, SIZE, plot), figure.name)


def rendered(name: str, size: tuple[float, float], plot: Callable[["Canvas"], None]) -> str:
    """An SVG file of `size` (inches) with what `plot` draws, in the colours that stand for the palette's."""
    import matplotlib
    from matplotlib.figure import Figure as NewCanvas

    with matplotlib.rc_context():
        matplotlib.rcdefaults()  # a user's matplotlibrc may ask for LaTeX
        matplotlib.rcParams.update({**STYLE, "svg.hashsalt": name})
        canvas = NewCanvas(figsize=size, layout="constrained")
        plot(canvas)
        buffer = io.StringIO()
        nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
        canvas.savefig(buffer, format="svg", transparent=True, metadata=nothing)
    return buffer.getvalue()


def _scale(axes: "Axes", figure: Figure, values: Sequence[float]) -> None:
    """Axes for `values`: labels, ticks, and the logarithm where it is asked for."""
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    axes.set_xlabel("step")
    axes.xaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 5, 10], integer=True))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    if figure.log:
        low, high = min(values), max(values)
        axes.set_yscale("log")
        if high < 4 * low:
            axes.set_ylim(low / 2, 2 * high)  # so wide that a labelled tick lies inside
        logarithmic(axes.yaxis, low, high)
    label: Any = lambda value, _: figure.value(value)  # noqa: E731
    axes.yaxis.set_major_formatter(FuncFormatter(label))


def logarithmic(axis: "Axis", low: float, high: float) -> None:
    """Ticks of a logarithmic axis from `low` to `high`."""
    from matplotlib.ticker import LogLocator, NullFormatter, NullLocator

    narrow = log10(high) - log10(low) < NARROW_DECADES
    axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0) if narrow else (1.0,)))
    axis.set_minor_locator(NullLocator())
    axis.set_minor_formatter(NullFormatter())


def alone(svg: str) -> str:
    """The SVG file in the light scheme, on its ground, so that it can be read wherever it is put."""
    for name, colour in COLOURS.items():
        svg = svg.replace(colour, LIGHT[name])
    head = svg.index(">", svg.index("<svg")) + 1
    return f'{svg[:head]}\n <rect width="100%" height="100%" fill="{LIGHT["page"]}"/>{svg[head:]}'


def inline(svg: str, name: str) -> str:
    """The `<svg>` element alone, in the page's colours and font, as wide as it may be, its ids its own."""
    svg = svg[svg.index("<svg") :].strip()
    svg = re.sub(r"\s(?:width|height)=\"[\d.]+pt\"", "", svg, count=2)
    svg = re.sub(r"<defs>\s*<style.*?</style>\s*</defs>", "", svg, count=1, flags=re.DOTALL)  # it is for the whole page
    svg = re.sub(r"font-family: [^;]+; ", "", svg)
    for variable, colour in COLOURS.items():
        svg = svg.replace(colour, "currentColor" if variable == "text" else f"var(--{variable})")
    return _ID.sub(rf"\g<1>{name}-", svg)
