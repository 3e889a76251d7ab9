"""What a person sees: tables on stdout, progress on stderr. The only file that imports rich."""

import json
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import click
from rich.console import Console, Group
from rich.live import Live
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Column, Table
from rich.text import Text

from atmc_tool.cli.options import is_quiet, is_verbose

if TYPE_CHECKING:
    from atmc_tool.training import Event

PLAIN_WIDTH = 110
WIDE = 130  # columns; in a narrower terminal progress is words without a bar
LABELS = {
    "validation_clean": "clean",
    "validation_robust": "robust",
    "validation_single_step": "one step",
    "primal_residual": "primal",
    "dual_residual": "dual",
    "codebook_movement": "codebooks",
    "learning_rate": "lr",
}
QUIET_SECONDS = 5.0  # between two lines where stderr is no terminal


def show_table(title: str, columns: Sequence[str], rows: Sequence[Sequence[object]], *, figures: bool = True) -> None:
    """A table on stdout; the first column is text, the others are `figures` or text."""
    table = _table(columns, rows, title=title, figures=figures)
    width = None if sys.stdout.isatty() else PLAIN_WIDTH
    Console(file=sys.stdout, width=width, highlight=False).print(table)


def _table(columns: Sequence[str], rows: Sequence[Sequence[object]], *, title: str | None, figures: bool) -> Table:
    table = Table(title=title, title_justify="left", title_style="bold", header_style="bold")
    for index, column in enumerate(columns):
        table.add_column(column, justify="right" if index and figures else "left", overflow="fold")
    for row in rows:
        # Text, not str: a name in brackets is no markup.
        table.add_row(*(Text(_plain(cell)) for cell in row))
    return table


@contextmanager
def live_table(columns: Sequence[str]) -> Iterator[Callable[[Sequence[Sequence[object]], str], None] | None]:
    """A function that shows rows and a text beneath in place of the last ones; None where stdout is no terminal."""
    if not sys.stdout.isatty():
        yield None
        return
    with Live(console=Console(file=sys.stdout, highlight=False), auto_refresh=False) as live:

        def show(rows: Sequence[Sequence[object]], text: str) -> None:
            live.update(Group(_table(columns, rows, title=None, figures=False), Text(text)), refresh=True)

        yield show


def show_line(text: str, *, bold: bool = False) -> None:
    """A line of the result on stdout."""
    console = Console(file=sys.stdout, highlight=False, soft_wrap=True)
    console.print(text, style="bold" if bold else None, markup=False)


def show_json(value: Mapping[str, Any]) -> None:
    """One JSON object on stdout."""
    click.echo(json.dumps(value, indent=2))


def note(text: str) -> None:
    """A line for people on stderr; none with -q."""
    if not is_quiet():
        click.echo(text, err=True)


def _plain(cell: object) -> str:
    if cell is None:
        return "–"
    if isinstance(cell, bool):
        return "yes" if cell else "no"
    if isinstance(cell, int):
        return f"{cell:,}"
    return f"{cell:.4g}" if isinstance(cell, float) else str(cell)


@contextmanager
def training_progress(name: str, time_limit: float | None) -> Iterator[Callable[["Event"], None]]:
    """A function that shows each event of a training on stderr: a bar on a terminal, else a line per epoch."""
    if is_quiet():
        yield lambda event: _warn(name, event)
    elif sys.stderr.isatty():
        with _bar(transient=False) as bar:
            yield _BarProgress(name, bar, time_limit)
    else:
        yield _PlainProgress(name, time_limit)


def _warn(name: str, event: "Event") -> None:
    """A warning is shown also with -q: it is no progress."""
    if event.kind == "warning":
        click.echo(f"{name}: warning: {event.text}", err=True)


def _steps(event: "Event", time_limit: float | None) -> int:
    """Steps in all: of the schedule, or as many as fit the time limit at the pace so far."""
    if time_limit is None or not event.seconds:
        return event.steps
    return max(event.step, min(event.steps, round(event.step * time_limit / event.seconds)))


class _BarProgress:
    """A bar over all steps. A step brings no accuracies: those of the last epoch stay in sight."""

    def __init__(self, name: str, bar: Progress, time_limit: float | None) -> None:
        self._name, self._bar, self._time_limit = name, bar, time_limit
        self._task = bar.add_task(name, total=None, facts="")

    def __call__(self, event: "Event") -> None:
        if event.kind == "warning":
            self._bar.console.print(Text(f"{self._name}: warning: {event.text}"))
        description = f"{self._name}, epoch {event.epoch}/{event.epochs}"
        self._bar.update(
            self._task, completed=event.step, total=_steps(event, self._time_limit), description=description
        )
        if event.kind == "epoch":
            self._bar.update(self._task, facts=facts(event.metrics))


class _PlainProgress:
    """One line per epoch (per step with -v), with the time left at the pace since the first event."""

    def __init__(self, name: str, time_limit: float | None) -> None:
        self._name, self._time_limit = name, time_limit
        self._first: tuple[int, float] | None = None

    def __call__(self, event: "Event") -> None:
        if self._first is None:
            self._first = (event.step, time.monotonic())
        _warn(self._name, event)
        if event.kind == "warning" or (event.kind == "step" and not is_verbose()):
            return
        total = _steps(event, self._time_limit)
        steps, seconds = event.step - self._first[0], time.monotonic() - self._first[1]
        left = f"  ETA {clock(seconds / steps * (total - event.step))}" if steps else ""
        click.echo(
            f"{self._name}: epoch {event.epoch}/{event.epochs}  step {event.step}/{total}  "
            f"{facts(event.metrics)}{left}",
            err=True,
        )


@contextmanager
def counted(name: str) -> Iterator[Callable[[int, int], None]]:
    """A function `progress(done, total)` that shows on stderr how much is done, and the time left."""
    if is_quiet():
        yield lambda _done, _total: None
    elif sys.stderr.isatty():
        with _bar(transient=True) as bar:
            task = bar.add_task(name, total=None, facts="")
            yield lambda done, total: bar.update(task, completed=done, total=total)
    else:
        yield _PlainCount(name)


@contextmanager
def staged() -> Iterator[Callable[[str, int, int], None]]:
    """A function `progress(stage, done, total)`: as `counted`, one after the other for each stage."""
    if is_quiet():
        yield lambda _stage, _done, _total: None
    elif sys.stderr.isatty():
        with _bar(transient=True) as bar:
            tasks: dict[str, TaskID] = {}

            def update(stage: str, done: int, total: int) -> None:
                if stage not in tasks:
                    tasks[stage] = bar.add_task(stage, total=None, facts="")
                bar.update(tasks[stage], completed=done, total=total)

            yield update
    else:
        counts: dict[str, _PlainCount] = {}
        yield lambda stage, done, total: counts.setdefault(stage, _PlainCount(stage))(done, total)


class _PlainCount:
    """A line every few seconds; none for what is done sooner."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._start = self._last = time.monotonic()

    def __call__(self, done: int, total: int) -> None:
        now = time.monotonic()
        if now - self._last < QUIET_SECONDS or not done:
            return
        self._last = now
        left = (now - self._start) / done * (total - done)
        click.echo(f"{self._name}: {done}/{total}  ETA {clock(left)}", err=True)


def _bar(*, transient: bool) -> Progress:
    console = Console(stderr=True)
    wide = (BarColumn(bar_width=24), MofNCompleteColumn(), TimeElapsedColumn()) if console.width >= WIDE else ()
    return Progress(
        TextColumn("{task.description}", table_column=Column(no_wrap=True)),
        *wide,
        TextColumn("ETA", table_column=Column(no_wrap=True)),
        TimeRemainingColumn(compact=True, table_column=Column(no_wrap=True)),
        TextColumn("{task.fields[facts]}", markup=False),
        console=console,
        transient=transient,
    )


def facts(metrics: Mapping[str, float]) -> str:
    """Names, the short ones where there are, and values on one line."""
    return "  ".join(f"{LABELS.get(name, name)} {_plain(value)}" for name, value in metrics.items())


def clock(seconds: float) -> str:
    """90 → 1:30."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
