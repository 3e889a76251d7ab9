"""`atmc-tool watch`: follow runs in the terminal, from what they write into their folders."""

import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from atmc_tool.cli.options import PATH, as_json, verbosity
from atmc_tool.errors import UsageError

POLL_SECONDS = 1.0


@dataclass(frozen=True)
class View:
    """What can be seen of a run now. lines: of its metrics.jsonl; finished: what it was to make is there."""

    path: Path
    lines: tuple[Mapping[str, Any], ...]
    finished: bool

    @property
    def epochs(self) -> list[Mapping[str, Any]]:
        """The lines of epochs, without those of warnings."""
        return [line for line in self.lines if "warning" not in line]

    @property
    def state(self) -> str:
        """One or a few words."""
        if self.finished:
            return "finished"
        if not self.path.is_dir():
            return "waiting: the folder is not there yet"
        return "running" if self.epochs else "waiting for the first epoch"


@click.command("watch", epilog="Example: atmc-tool watch atmc-run model.train")
@click.argument("runs", metavar="[RUN]...", nargs=-1, type=PATH)
@click.option("--once", is_flag=True, help="Show the present state and exit.")
@as_json
@verbosity
def command(runs: tuple[Path, ...], once: bool, as_json: bool) -> None:
    """Follow runs of train and compress until all are finished.

    RUN is a run folder (default: atmc-run, or what atmc.yaml says), also one that is not there yet. On a terminal a
    table, else a line for each new epoch. --json shows the present state and exits. Changes nothing.
    """
    from atmc_tool.cli.render import live_table, show_json
    from atmc_tool.cli.settings import resolve

    paths = list(dict.fromkeys(runs or (resolve().run,)))
    for path in paths:
        if path.exists() and not path.is_dir():
            raise UsageError(f"{path} is not a run folder", expected="a folder such as atmc-run")
    views = [look(path) for path in paths]
    if as_json:
        show_json({"runs": [_facts(view) for view in views]})
        return
    with live_table(COLUMNS) as table:
        lines = _Lines()
        while True:
            if table is None:
                lines.show(views)
            else:
                table([_row(view) for view in views], "\n".join(text for view in views for text in _warnings(view)))
            if once or all(view.finished for view in views):
                return
            time.sleep(POLL_SECONDS)
            views = [look(path) for path in paths]


def look(path: Path) -> View:
    """The run in folder `path` as it is now."""
    from atmc_tool.metrics import METRICS, read_metrics

    return View(path, tuple(read_metrics(path / METRICS)), made(path) is not None)


def made(path: Path) -> Path | None:
    """The run's result where it is there: model.atmc, or beside NAME.train a NAME.pt that is newer than the run."""
    from atmc_tool.cli.run_folder import RunFolder
    from atmc_tool.cli.train import SUFFIXES

    folder = RunFolder(path)
    if folder.model.exists():
        return folder.model
    if path.suffix != ".train" or not folder.config.exists():
        return None
    began = folder.config.stat().st_mtime_ns
    files = [path.with_suffix(suffix) for suffix in SUFFIXES]
    return next((file for file in files if file.exists() and file.stat().st_mtime_ns >= began), None)


def _facts(view: View) -> dict[str, Any]:
    last = view.epochs[-1] if view.epochs else None
    return {
        "run": str(view.path),
        "state": view.state,
        "finished": view.finished,
        "last": last,
        "warnings": _warnings(view),
    }


def _warnings(view: View) -> list[str]:
    return [f"{view.path}: {_described(line)}" for line in view.lines if "warning" in line]


COLUMNS = ("run", "state", "epoch", "step", "loss", "clean", "robust", "kept", "lr", "time", "left")


def _row(view: View) -> list[object]:
    from atmc_tool.cli.render import clock

    if not view.epochs:
        return [view.path, view.state, *[None] * (len(COLUMNS) - 2)]
    last = view.epochs[-1]
    steps, seconds = last.get("steps"), last.get("seconds")
    left = None
    if steps and seconds is not None and not view.finished:
        left = clock(seconds / last["step"] * (steps - last["step"]))
    figures = [last.get(key) for key in ("loss", "validation_clean", "validation_robust", "kept", "learning_rate")]
    time_so_far = None if seconds is None else clock(seconds)
    return [view.path, view.state, last.get("epoch"), _of(last["step"], steps), *figures, time_so_far, left]


def _of(step: int, steps: int | None) -> str:
    return str(step) if steps is None else f"{step}/{steps}"


class _Lines:
    """For each run a line when its state changes, and one for each new epoch or warning."""

    def __init__(self) -> None:
        self._states: dict[Path, str] = {}
        self._shown: dict[Path, int] = {}

    def show(self, views: list[View]) -> None:
        """Say what is new since the last call; at the first call the last epoch alone."""
        for view in views:
            first = view.path not in self._states
            shown = min(self._shown.get(view.path, 0), len(view.lines))  # a resumed run takes lines back
            for line in view.lines[-1:] if first else view.lines[shown:]:
                self._say(view, _described(line))
            self._shown[view.path] = len(view.lines)
            if self._states.get(view.path) != view.state and view.state != "running":
                self._say(view, view.state)
            self._states[view.path] = view.state

    def _say(self, view: View, text: str) -> None:
        from atmc_tool.cli.render import show_line

        show_line(f"{view.path}: {text}")


def _described(line: Mapping[str, Any]) -> str:
    from atmc_tool.cli.render import facts

    if "warning" in line:
        return f"warning: {line['warning']}"
    where = f"epoch {line.get('epoch')}  step {_of(line['step'], line.get('steps'))}"
    rest = {key: value for key, value in line.items() if key not in ("epoch", "step", "steps", "seconds")}
    return f"{where}  {facts(rest)}"
