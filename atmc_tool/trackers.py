"""Trackers of experiments: the numbers of a run, also for TensorBoard and MLflow. Both are optional packages.

Their results decide nothing: a tracker that fails during a run is left out from there on, and that is said.
"""

import json
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

from atmc_tool.errors import AtmcError, InterruptedRunError, MissingEnvironmentError
from atmc_tool.files import write_atomic
from atmc_tool.metrics import METRICS, read_metrics

if TYPE_CHECKING:
    from atmc_tool.training import Event

TENSORBOARD, MLFLOW, MLFLOW_RUN = "tensorboard", "mlflow", "mlflow-run-id"  # in the run folder
PARAMETERS = 100  # that MLflow takes at once
State = Literal["open", "finished", "stopped", "failed"]


class Tracker(Protocol):
    """Where numbers go."""

    def log(self, step: int, numbers: Mapping[str, float]) -> None:
        """Keep `numbers` as those of `step`."""
        ...

    def close(self, state: State) -> None:
        """Write what is left; the run is in `state`."""
        ...


def check_installed(trackers: Sequence[str]) -> None:
    """See that the packages of `trackers` are there; imports none of them.

    Raises:
        MissingEnvironmentError: one is not; the hint says how to install it.
    """
    for name in trackers:
        if find_spec(name) is None:
            hint = f"pip install 'atmc-tool[{name}]', or leave it out of trackers"
            raise MissingEnvironmentError(f"the tracker {name} needs a package that is not installed", hint=hint)


@contextmanager
def tracked(
    trackers: Sequence[str], folder: Path, settings: Mapping[str, Any], warn: Callable[[str], None]
) -> Iterator[Callable[["Event"], None]]:
    """A function that gives the numbers of each epoch's event to `trackers`, at its step; other events it passes over.

    TensorBoard reads `folder`/tensorboard. MLflow's server is what MLFLOW_TRACKING_URI names, else `folder`/mlflow. A
    resumed run goes on in both: what a killed run logged after its last checkpoint is replaced or not logged again.

    Args:
        settings: the configuration, nested, as plain JSON; logged once as parameters (MLflow) or text (TensorBoard).
        warn: told of a tracker that fails later on.

    Raises:
        MissingEnvironmentError: a package is not installed.
        AtmcError: a tracker can't be opened.
    """
    with _opened(trackers, folder, settings, warn, result=False) as log:
        yield lambda event: log(event.step, event.metrics) if event.kind == "epoch" else None


def track_result(
    trackers: Sequence[str],
    folder: Path,
    settings: Mapping[str, Any],
    numbers: Mapping[str, float],
    warn: Callable[[str], None],
) -> None:
    """Give the final `numbers` (sizes, accuracies) of the run in `folder` to `trackers`, at its last step.

    What fails is said to `warn`: the run is finished.
    """
    lines = read_metrics(folder / METRICS)
    try:
        with _opened(trackers, folder, settings, warn, result=True) as log:
            log(lines[-1]["step"] if lines else 0, numbers)
    except AtmcError as error:
        warn(f"warning: {error}")


@contextmanager
def _opened(
    trackers: Sequence[str],
    folder: Path,
    settings: Mapping[str, Any],
    warn: Callable[[str], None],
    *,
    result: bool,
) -> Iterator[Callable[[int, Mapping[str, float]], None]]:
    check_installed(trackers)
    flat = dict(_flat(settings))
    live = {name: _open(name, folder, flat, result) for name in dict.fromkeys(trackers)}

    def each(act: Callable[[Tracker], None]) -> None:
        for name, tracker in list(live.items()):
            try:
                act(tracker)
            except Exception as error:  # a full disk or a server that is gone must not end a training of hours
                del live[name]
                warn(f"warning: {name} gets no more numbers: {type(error).__name__}: {error}")

    state: State = "failed"
    try:
        yield lambda step, numbers: each(lambda tracker: tracker.log(step, numbers))
        state = "finished" if result else "open"
    except InterruptedRunError:
        state = "stopped"
        raise
    finally:
        each(lambda tracker: tracker.close(state))


def _open(name: str, folder: Path, settings: Mapping[str, str], result: bool) -> Tracker:
    try:
        if name == TENSORBOARD:
            return _TensorBoard(folder / TENSORBOARD, settings, purge=not result)
        return _MLflow(folder, settings)
    except Exception as error:  # theirs are of many kinds
        raise AtmcError(f"the tracker {name} can't be opened: {error}", hint="leave it out of trackers") from error


def _flat(settings: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """`{"compress": {"lr": 0.1}}` → ("compress.lr", "0.1"); text as it is, the rest as JSON."""
    for key, value in settings.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value if isinstance(value, str) else json.dumps(value)


class _TensorBoard:
    """Event files in a folder of their own. `purge`: what is there of the first step logged and later is hidden."""

    def __init__(self, folder: Path, settings: Mapping[str, str], *, purge: bool) -> None:
        from torch.utils.tensorboard import SummaryWriter

        folder.mkdir(parents=True, exist_ok=True)
        self._make, self._folder, self._purge = SummaryWriter, folder, purge
        self._settings = {} if any(folder.iterdir()) else settings
        self._writer: SummaryWriter | None = None

    def log(self, step: int, numbers: Mapping[str, float]) -> None:
        if self._writer is None:
            self._writer = self._make(str(self._folder), purge_step=step if self._purge else None)
            if self._settings:
                lines = "\n".join(f"    {key}: {value}" for key, value in self._settings.items())  # Markdown: as it is
                self._writer.add_text("configuration", lines, 0)
        for name, value in numbers.items():
            self._writer.add_scalar(name, value, step)
        self._writer.flush()

    def close(self, state: State) -> None:  # noqa: ARG002
        if self._writer is not None:
            self._writer.close()


class _MLflow:
    """A run of MLflow, whose id is kept in the run folder."""

    def __init__(self, folder: Path, settings: Mapping[str, str]) -> None:
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")  # read at its import; we send nothing anywhere
        server = os.environ.get("MLFLOW_TRACKING_URI")
        if not server:
            os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")  # a folder is what works without more packages
            server = (folder / MLFLOW).absolute().as_uri()
        from mlflow import MlflowClient
        from mlflow.entities import Metric, Param

        self._client, self._metric = MlflowClient(tracking_uri=server), Metric
        known = folder / MLFLOW_RUN
        if known.is_file():
            self._run = known.read_text().strip()
            self._client.update_run(self._run, status="RUNNING")
        else:
            name = os.environ.get("MLFLOW_EXPERIMENT_NAME", "atmc-tool")
            experiment = self._client.get_experiment_by_name(name)
            number = experiment.experiment_id if experiment else self._client.create_experiment(name)
            self._run = self._client.create_run(number, run_name=folder.absolute().name).info.run_id
            write_atomic(known, self._run.encode())
            parameters = [Param(key, value) for key, value in settings.items()]
            for first in range(0, len(parameters), PARAMETERS):
                self._client.log_batch(self._run, params=parameters[first : first + PARAMETERS])

    def log(self, step: int, numbers: Mapping[str, float]) -> None:
        now, name = time.time_ns() // 1_000_000, next(iter(numbers))
        if any(metric.step == step for metric in self._client.get_metric_history(self._run, name)):
            return  # a killed run logged it, and a resumed one comes to the same bits
        metrics = [self._metric(key, float(value), now, step) for key, value in numbers.items()]
        self._client.log_batch(self._run, metrics=metrics)

    def close(self, state: State) -> None:
        status = {"open": "RUNNING", "finished": "FINISHED", "stopped": "KILLED", "failed": "FAILED"}[state]
        if status != "RUNNING":
            self._client.set_terminated(self._run, status)
