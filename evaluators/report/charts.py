"""Charts of accuracies and sizes as small SVG elements, drawn by hand: matplotlib takes a second to import.

Colours and line widths are classes of the page's style. What is drawn is also said in words beside it, so the charts
in rows are hidden from screen readers. The same numbers give the same bytes.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

LEAST = 0.004  # of a bar's whole length: what is smaller is drawn so long, to be seen at all
WIDTH, HEIGHT = 360, 220  # SVG units; about the pixels of a phone, so that text keeps its size there
LEFT, RIGHT, TOP, BOTTOM = 44, 14, 12, 36  # room for ticks and labels
LETTER = 7  # SVG units that a letter of a label takes at most
HEAD = '<svg class="row" aria-hidden="true" focusable="false">'


@dataclass(frozen=True)
class Point:
    """A point of a curve: its label on the lower axis, its value with its interval, all in [0, 1]."""

    label: str
    value: float
    low: float
    high: float


def bar(share: float) -> str:
    """A bar of `share` in [0, 1] of the whole length."""
    return f'{HEAD}<rect class="bar" x="0" y="20%" width="{_percent(max(share, LEAST))}" height="60%"/></svg>'


def interval(value: float, low: float, high: float, threshold: float | None = None) -> str:
    """A dot at `value` on a line from 0 to 1, its interval as a thick stroke, and a mark at `threshold`."""
    drawn = [
        _line("track", 0, 1),
        _line("range", low, high),
        f'<circle class="dot" cx="{_percent(value)}" cy="50%" r="5"/>',
    ]
    return f"{HEAD}{''.join(drawn)}{_mark(threshold)}</svg>"


def span(before: float, after: float) -> str:
    """A ring at `before` and a dot at `after` on a line from 0 to 1, joined."""
    drawn = [
        _line("track", 0, 1),
        _line("join", min(before, after), max(before, after)),
        f'<circle class="ring" cx="{_percent(before)}" cy="50%" r="5"/>',
        f'<circle class="dot" cx="{_percent(after)}" cy="50%" r="5"/>',
    ]
    return f"{HEAD}{''.join(drawn)}</svg>"


def curve(points: Sequence[Point], x_label: str, marked: str | None) -> str:
    """Points from left to right at equal distances, joined, each with its interval; a dotted line at label `marked`."""
    step = (WIDTH - LEFT - RIGHT) / max(len(points) - 1, 1)
    at = [LEFT + index * step for index in range(len(points))]
    parts = []
    for tick in (0, 0.25, 0.5, 0.75, 1):
        y = _y(tick)
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y}" y2="{y}"/>')
        parts.append(f'<text x="{LEFT - 7}" y="{y + 4}" text-anchor="end">{100 * tick:.0f} %</text>')
    widest = LETTER * (max(len(point.label) for point in points) + 1)
    every = max(1, -(-widest // max(1, int(step))))
    for index, (x, point) in enumerate(zip(at, points, strict=True)):
        if index % every == 0:
            within = min(x, WIDTH - LETTER * len(point.label) / 2)
            parts.append(
                f'<text x="{within:.1f}" y="{HEIGHT - BOTTOM + 16}" text-anchor="middle">{escape(point.label)}</text>'
            )
        if point.label == marked:
            parts.append(
                f'<line class="mark" x1="{x:.1f}" x2="{x:.1f}" y1="{TOP}" y2="{HEIGHT - BOTTOM}" stroke-width="1.5"/>'
            )
    parts.append(
        f'<text x="{(LEFT + WIDTH - RIGHT) / 2}" y="{HEIGHT - 3}" text-anchor="middle">{escape(x_label)}</text>'
    )
    joined = " ".join(f"{x:.1f},{_y(point.value)}" for x, point in zip(at, points, strict=True))
    parts.append(f'<polyline class="join" points="{joined}"/>')
    for x, point in zip(at, points, strict=True):
        parts.append(
            f'<line class="range" x1="{x:.1f}" x2="{x:.1f}" y1="{_y(point.low)}" y2="{_y(point.high)}"/>'
            f'<circle class="dot" cx="{x:.1f}" cy="{_y(point.value)}" r="3.5"/>'
        )
    return f'<svg class="curve" viewBox="0 0 {WIDTH} {HEIGHT}">{"".join(parts)}</svg>'


def _y(value: float) -> float:
    return round(TOP + (1 - value) * (HEIGHT - TOP - BOTTOM), 1)


def _line(name: str, low: float, high: float) -> str:
    return f'<line class="{name}" x1="{_percent(low)}" x2="{_percent(high)}" y1="50%" y2="50%"/>'


def _mark(threshold: float | None) -> str:
    if threshold is None:
        return ""
    x = _percent(threshold)
    return f'<line class="mark" x1="{x}" x2="{x}" y1="0" y2="100%"/>'


def _percent(value: float) -> str:
    return f"{100 * value:.2f}%"
