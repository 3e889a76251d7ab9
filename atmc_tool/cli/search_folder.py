"""What lies where in the folder of a search, and when a search may write into one."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from atmc_tool.cli.run_folder import RunFolder
from atmc_tool.errors import InputError, UsageError
from atmc_tool.files import leftovers, read_bytes, remove_leftovers

if TYPE_CHECKING:
    from evaluators.report.search_report import SearchRecord

MAX_BYTES = 1 << 28


@dataclass(frozen=True)
class SearchFolder:
    """The folder of one search."""

    path: Path

    @property
    def config(self) -> Path:
        """All that decides what the search finds."""
        return self.path / "search.yaml"

    @property
    def trials(self) -> Path:
        """Every evaluation."""
        return self.path / "trials.jsonl"

    @property
    def strategy(self) -> Path:
        """The best strategy."""
        return self.path / "strategy.yaml"

    @property
    def results(self) -> Path:
        """What was found, with all that is known about it."""
        return self.path / "results.json"

    @property
    def page(self) -> Path:
        """The report."""
        return self.path / "search.html"

    @property
    def harp(self) -> RunFolder:
        """The training of HARP's rates."""
        return RunFolder(self.path / "harp")

    def own(self) -> list[Path]:
        """Everything that a search writes here."""
        return [self.config, self.trials, self.strategy, self.results, self.page]

    def check_free(self, *, resume: bool, overwrite: bool) -> None:
        """Refuse to write over what is there unless told to, and to resume what is not there. Changes nothing.

        Raises:
            UsageError: non-empty and neither `resume` nor `overwrite`; both; or nothing to resume.
        """
        if resume and overwrite:
            raise UsageError("--resume and --overwrite exclude each other", hint="keep the state or replace it")
        if self.path.exists() and not self.path.is_dir():
            raise UsageError(f"{self.path} is not a folder", hint="choose another one with -o")
        there = self.path.is_dir() and not {*self.path.iterdir()} <= {*leftovers(self.path, self.config.name)}
        if resume and not self.config.is_file():
            raise UsageError(f"nothing to resume in {self.path}", hint="leave out --resume to start a search")
        if there and overwrite and not self.config.is_file():
            raise UsageError(f"{self.path} holds no search to replace", hint="choose another folder with -o")
        if there and not (resume or overwrite):
            raise UsageError(f"{self.path} is not empty", hint="--resume goes on, --overwrite replaces, -o elsewhere")

    def check_same(self, identity: dict[str, Any]) -> None:
        """Nothing where the search that was begun here is the one of `identity`.

        Raises:
            UsageError: it had other settings, another network or other data.
        """
        from atmc_tool.settings import read_yaml

        then = read_yaml(self.config)
        now = yaml.safe_load(yaml.safe_dump(identity))
        different = [key for key in now if now[key] != then.get(key)]
        if different:
            inner = [
                f"{key}.{name}"
                for key in different
                if isinstance(now[key], dict) and isinstance(then.get(key), dict)
                for name in now[key]
                if now[key][name] != then[key].get(name)
            ]
            raise UsageError(
                f"the search in {self.path} was begun with other settings: {', '.join(inner or different)}",
                hint="take the first settings, --overwrite, or another folder (-o)",
            )

    def clear(self) -> None:
        """Remove what an earlier search left; files of others stay."""
        if self.harp.path.is_dir():
            self.harp.clear()
        for path in self.own():
            path.unlink(missing_ok=True)
            remove_leftovers(self.path, path.name)


def read_record(folder: SearchFolder) -> "SearchRecord":
    """What the figures show of the finished search in `folder`.

    Raises:
        InputError: there is none, or its files are damaged.
    """
    from atmc_tool.search.trial_log import read_trials
    from evaluators.report.search_report import SearchRecord, TrialPoint

    if not folder.results.is_file():
        raise InputError(f"{folder.path} holds no finished search", expected=folder.results.name)
    try:
        results = json.loads(read_bytes(folder.results, MAX_BYTES))
        last = {trial.number: trial for trial in read_trials(folder.trials)}  # the highest fidelity comes last
        measure = results["budget"]["measure"]
        front = {trial["number"] for trial in results["front"]}
        points = [
            TrialPoint(
                number=trial.number,
                reward=trial.outcome.reward,
                clean=trial.outcome.clean,
                robust=trial.outcome.robust,
                size=getattr(trial.outcome, measure),
                whole=trial.outcome.fidelity == 1,
                on_front=trial.number in front,
            )
            for trial in last.values()
        ]
        return SearchRecord(
            name=str(folder.path),
            algorithm=results["search"]["algorithm"],
            seed=results["search"]["seed"],
            measure=measure,
            rates=dict(results["best"]["rates"]),
            trials=sorted(points, key=lambda point: point.number),
            best=results["best"]["outcome"]["reward"],
        )
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{folder.results} is damaged", hint="run the search again with --overwrite") from error
