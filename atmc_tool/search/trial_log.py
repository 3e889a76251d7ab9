"""Every evaluation of a search, as lines of JSON: what it can go on from, and what its figures are drawn from."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from atmc_tool.errors import AtmcError, InputError
from atmc_tool.files import read_bytes, sha256, write_atomic
from atmc_tool.search.evaluation import Outcome
from atmc_tool.search.strategy import Strategy

MAX_BYTES = 1 << 30
Key = tuple[str, float]  # digest of a strategy, fidelity


@dataclass(frozen=True)
class Trial:
    """The outcome of proposal `number`. repeats: the proposal of the same strategy that was evaluated in its place."""

    number: int
    digest: str
    rates: Mapping[str, float]
    outcome: Outcome
    repeats: int | None = None

    @property
    def key(self) -> Key:
        """What the outcome follows from."""
        return self.digest, self.outcome.fidelity

    def to_json(self) -> dict[str, Any]:
        """As plain values."""
        facts = {"number": self.number, "digest": self.digest, "repeats": self.repeats}
        return {**facts, "rates": dict(self.rates), "outcome": self.outcome.to_json()}


def strategy_digest(strategy: Strategy) -> str:
    """The same for strategies that do the same to a network."""
    layers = {name: rate.model_dump(mode="json") for name, rate in sorted(strategy.layers.items())}
    return sha256(json.dumps([strategy.structure, layers], sort_keys=True).encode())[:16]


class TrialLog:
    """The file `path`, one trial a line, appended to as they come; a line that was cut off is dropped."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.trials: list[Trial] = _read(path)
        self._there = {(trial.number, trial.outcome.fidelity) for trial in self.trials}
        write_atomic(path, self._content())

    def add(self, trial: Trial) -> None:
        """Keep `trial`, on the disk, unless it is there."""
        if (trial.number, trial.outcome.fidelity) in self._there:
            return
        self._there.add((trial.number, trial.outcome.fidelity))
        self.trials.append(trial)
        try:
            with self._path.open("ab") as file:
                file.write(_line(trial))
        except OSError as error:
            raise AtmcError(f"can't write {self._path}: {error.strerror}", hint="free space, then --resume") from error

    def finish(self) -> None:
        """Put the lines in the order of proposals: evaluations end in any order."""
        self.trials.sort(key=lambda trial: (trial.number, trial.outcome.fidelity))
        write_atomic(self._path, self._content())

    def _content(self) -> bytes:
        return b"".join(map(_line, self.trials))


def read_trials(path: Path) -> list[Trial]:
    """The trials in the file `path`.

    Raises:
        InputError: it is not there, or damaged in another place than its end.
    """
    lines = read_bytes(path, MAX_BYTES).split(b"\n")[:-1]  # what follows the last newline was cut off
    try:
        return [_trial(json.loads(line)) for line in lines]
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path} is damaged", expected="a trial on every line", got=str(error)) from error


def _read(path: Path) -> list[Trial]:
    return read_trials(path) if path.is_file() else []


def _trial(line: Mapping[str, Any]) -> Trial:
    return Trial(**{**line, "outcome": Outcome(**line["outcome"])})


def _line(trial: Trial) -> bytes:
    return json.dumps(trial.to_json()).encode() + b"\n"
