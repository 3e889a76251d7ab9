"""The report of searches for layer-wise strategies: rates per layer, reward per proposal, the front, as one page."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import TYPE_CHECKING

from evaluators.report.figures import LINES, TEXT, inline, logarithmic, rendered
from evaluators.report.page import render

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure as Canvas

SIZE = (5.6, 3.4)  # inches of 72 SVG units
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "p")
DASHES = ("solid", "dashed", "dashdot", "dotted")
MOST_NAMES = 24  # of layers on an axis
BAND = 0.15  # opacity of a band from the least to the most


@dataclass(frozen=True)
class TrialPoint:
    """A proposal. size: in what the budget counts; whole: measured on all images; on_front: no other beats it."""

    number: int
    reward: float
    clean: float
    robust: float
    size: int
    whole: bool
    on_front: bool


@dataclass(frozen=True)
class SearchRecord:
    """A finished search. rates: of the best strategy, by layer in order; best: its reward."""

    name: str
    algorithm: str
    seed: int
    measure: str
    rates: Mapping[str, float]
    trials: Sequence[TrialPoint]
    best: float


@dataclass(frozen=True)
class Spread:
    """A quantity of several searches at one place: median, least, most."""

    middle: float
    low: float
    high: float

    def __str__(self) -> str:
        if self.low == self.high:
            return f"{self.middle:.4g}"
        return f"{self.middle:.4g} ({self.low:.4g} to {self.high:.4g})"


def spread(values: Sequence[float]) -> Spread:
    """Of at least one value."""
    return Spread(median(values), min(values), max(values))


def by_algorithm(records: Sequence[SearchRecord]) -> dict[str, list[SearchRecord]]:
    """The searches of each algorithm, in order of appearance: they differ in their seed."""
    found: dict[str, list[SearchRecord]] = {}
    for record in records:
        found.setdefault(record.algorithm, []).append(record)
    return found


def rates_per_layer(records: Sequence[SearchRecord]) -> dict[str, Spread]:
    """The rate of every layer of the first search, over all that have the layer."""
    return {name: spread([r.rates[name] for r in records if name in r.rates]) for name in records[0].rates}


def best_so_far(records: Sequence[SearchRecord]) -> list[Spread]:
    """After each proposal the best reward measured on all images until then, as far as all searches have gone.

    The first proposals of successive halving may have none: they count as the first that has.
    """
    curves = []
    for record in records:
        rewards = [trial.reward if trial.whole else None for trial in record.trials]
        top = next((reward for reward in rewards if reward is not None), 0.0)
        curve = []
        for reward in rewards:
            top = max(top, top if reward is None else reward)
            curve.append(top)
        curves.append(curve)
    return [spread(values) for values in zip(*curves, strict=False)]


def search_report(title: str, records: Sequence[SearchRecord], facts: Mapping[str, str]) -> bytes:
    """The page; see `page.render`. At least one search."""
    groups = by_algorithm(records)
    figures = [
        ("rates", "Rates per layer", _rates_text(groups), lambda axes: _plot_rates(axes, groups)),
        ("reward", "Best reward so far", _reward_text(groups), lambda axes: _plot_reward(axes, groups)),
        ("front", "Accuracy against size", _front_text(groups), lambda axes: _plot_front(axes, groups)),
    ]
    return render(
        "search.html.j2",
        title=title,
        state=f"{len(records)} finished" if len(records) > 1 else f"{len(records[0].trials)} proposals",
        figures=[{"title": name, "text": text, "svg": _drawn(key, plot)} for key, name, text, plot in figures],
        columns=["algorithm", "seed", "proposals", "best reward", "clean, %", "robust, %", records[0].measure],
        rows=[_row(record) for record in records],
        layers=list(records[0].rates),
        algorithms=[(label, rates_per_layer(group)) for label, group in groups.items()],
        facts=facts,
    )


def _row(record: SearchRecord) -> list[str]:
    best = next(trial for trial in record.trials if trial.whole and trial.reward == record.best)
    accuracies = [f"{100 * value:.2f}" for value in (best.clean, best.robust)]
    return [
        record.algorithm,
        str(record.seed),
        str(len(record.trials)),
        f"{record.best:.4f}",
        *accuracies,
        f"{best.size:,}",
    ]


def _drawn(name: str, plot: Callable[["Axes"], None]) -> str:
    def draw(canvas: "Canvas") -> None:
        axes = canvas.add_subplot()
        plot(axes)
        axes.legend(loc="best")

    return inline(rendered(name, SIZE, draw), name)


def _look(index: int) -> dict[str, str]:
    return {"color": LINES[index % len(LINES)], "linestyle": DASHES[index % len(DASHES)]}


def _plot_rates(axes: "Axes", groups: Mapping[str, Sequence[SearchRecord]]) -> None:
    longest: list[str] = []
    for index, (label, records) in enumerate(groups.items()):
        found = rates_per_layer(records)
        longest = max(longest, list(found), key=len)
        places = [longest.index(name) for name in found if name in longest]
        values = [value for name, value in found.items() if name in longest]
        look = _look(index)
        marker = MARKERS[index % len(MARKERS)]
        axes.plot(places, [value.middle for value in values], marker=marker, label=label, **look)  # type: ignore[arg-type]
        axes.fill_between(
            places, [v.low for v in values], [v.high for v in values], color=look["color"], alpha=BAND, linewidth=0
        )
    rates = [value for records in groups.values() for r in records for value in r.rates.values()]
    axes.set_yscale("log")
    axes.set_ylim(min(rates) / 1.5, 1.5 * max(rates))
    logarithmic(axes.yaxis, min(rates), max(rates))
    axes.yaxis.set_major_formatter(lambda value, _: f"{100 * value:.4g} %")
    if len(longest) <= MOST_NAMES:
        axes.set_xticks(range(len(longest)), longest, rotation=60, ha="right", fontsize=7)
    axes.set_xlabel("layer")


def _plot_reward(axes: "Axes", groups: Mapping[str, Sequence[SearchRecord]]) -> None:
    longest = max(len(record.trials) for records in groups.values() for record in records)
    for index, (label, records) in enumerate(groups.items()):
        found, look = best_so_far(records), _look(index)
        if len(found) == 1:  # a built-in allocation: the same all along
            axes.axhline(found[0].middle, label=label, **look)  # type: ignore[arg-type]
            continue
        steps = range(1, len(found) + 1)
        axes.plot(steps, [value.middle for value in found], label=label, **look)  # type: ignore[arg-type]
        axes.fill_between(
            steps, [v.low for v in found], [v.high for v in found], color=look["color"], alpha=BAND, linewidth=0
        )
        if len(groups) == 1 and len(records) == 1:
            trials = [trial for trial in records[0].trials if trial.whole]
            axes.plot([t.number + 1 for t in trials], [t.reward for t in trials], "o", color=TEXT, markersize=2)
    axes.set_xlim(0.5, longest + 0.5)
    axes.set_xlabel("proposal")


def _plot_front(axes: "Axes", groups: Mapping[str, Sequence[SearchRecord]]) -> None:
    sizes = []
    for index, (label, records) in enumerate(groups.items()):
        look, marker = _look(index), MARKERS[index % len(MARKERS)]
        points = sorted((t for record in records for t in record.trials if t.on_front), key=lambda t: t.size)
        sizes += [point.size for point in points]
        for kind, filled in (("robust", look["color"]), ("clean", "none")):
            axes.plot(
                [point.size for point in points],
                [getattr(point, kind) for point in points],
                marker,
                color=look["color"],
                markerfacecolor=filled,
                markersize=4,
                label=f"{label}, {kind}",
            )
    axes.set_xscale("log")
    axes.set_xlim(min(sizes) / 1.5, 1.5 * max(sizes))
    logarithmic(axes.xaxis, min(sizes), max(sizes))
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    axes.yaxis.set_major_formatter(lambda value, _: f"{100 * value:.4g} %")
    axes.set_xlabel(next(iter(groups.values()))[0].measure)


def _rates_text(groups: Mapping[str, Sequence[SearchRecord]]) -> str:
    told = [
        f"{label}: " + ", ".join(f"{name} {value}" for name, value in rates_per_layer(records).items())
        for label, records in groups.items()
    ]
    return f"Share of each layer that the best strategy keeps, logarithmic axis. {'. '.join(told)}."


def _reward_text(groups: Mapping[str, Sequence[SearchRecord]]) -> str:
    told = []
    for label, records in groups.items():
        found = best_so_far(records)
        told.append(f"{label}: {found[0]} after 1 proposal, {found[-1]} after {len(found)}")
    return f"Best reward so far against the proposal. {'. '.join(told)}."


def _front_text(groups: Mapping[str, Sequence[SearchRecord]]) -> str:
    told = []
    for label, records in groups.items():
        points = sorted((t for record in records for t in record.trials if t.on_front), key=lambda t: t.size)
        told.append(
            f"{label}: "
            + "; ".join(f"at {p.size:,} clean {100 * p.clean:.4g} %, robust {100 * p.robust:.4g} %" for p in points)
        )
    return f"Strategies that no other of their search beats in all of clean, robust and size. {'. '.join(told)}."
