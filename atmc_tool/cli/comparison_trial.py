"""One run of a comparison as a trial: in its run folder, or on another machine from where its files are brought."""

import json
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from atmc_tool.cli.comparison import Job, Plan
from atmc_tool.cli.compress import run_compression
from atmc_tool.cli.data_source import load_configured
from atmc_tool.cli.export import exported
from atmc_tool.cli.feasibility import check_feasible
from atmc_tool.cli.options import no_command
from atmc_tool.cli.render import note
from atmc_tool.cli.report import report_at_end, results_of
from atmc_tool.cli.run_folder import ONNX, REPORT, RUN_REPORT, RunFolder
from atmc_tool.cli.start import read_start
from atmc_tool.cli.train import train_dense
from atmc_tool.cli.verification import verify_file
from atmc_tool.config import Config, to_yaml
from atmc_tool.data import DataSet
from atmc_tool.distributed import Ranks
from atmc_tool.errors import AtmcError, InputError
from atmc_tool.files import remove, sha256, write_atomic
from atmc_tool.trials import Failure, attempt
from exporters.atmc_file import read_atmc


@dataclass
class Shared:
    """What the runs of a comparison have in common. A process that runs several keeps what it has found out.

    config:   names the data
    skeleton: the network's graph
    digest:   of the data
    networks: file → content, of networks that runs start from, for machines that don't have them
    own:      whether runs are in processes of their own, which say nothing of their progress
    data:     None: not read yet
    measured: file of a dense network → its facts
    """

    config: Config
    skeleton: bytes
    digest: str
    networks: Mapping[Path, bytes] = field(default_factory=dict)
    own: bool = True
    data: DataSet | None = None
    measured: dict[Path, dict[str, Any]] = field(default_factory=dict)

    def context(self) -> AbstractContextManager[object]:
        """What a run needs around it to ask whether it may talk."""
        return no_command() if self.own else nullcontext()

    def read_data(self) -> DataSet:
        """The data that all compressions share.

        Raises:
            InputError: this machine has other ones.
        """
        if self.data is None:
            data = load_configured(self.config)
            if data.digest != self.digest:
                what = f"{data.name} is not the same on all machines"
                raise InputError(what, hint="the same content under the same path on each")
            self.data = data
        return self.data


def shared(plan: Plan, *, own: bool, networks: Mapping[Path, bytes] | None = None) -> Shared:
    """What the runs of `plan` share; see `Shared`."""
    start = plan.start
    data = None if own else start.data
    return Shared(start.config, start.skeleton, start.data.digest, networks or {}, own, data)


@dataclass(frozen=True)
class Trial:
    """A run.

    heading: said where it begins
    files:   what is there of a begun run, for another machine: path beneath the folder that the run folder is in →
             content
    """

    job: Job
    heading: str
    files: Mapping[str, bytes] = field(default_factory=dict)


@dataclass(frozen=True)
class Brought:
    """The files of a run on another machine, as in `Trial`; `failure` where it failed."""

    files: Mapping[str, bytes]
    failure: Failure | None


def make_trial(job: Job, heading: str, *, elsewhere: bool) -> Trial:
    """The run `job`, without what only the plan needs to know."""
    return Trial(replace(job, feasibility=None), heading, _files(job) if elsewhere else {})


def run_here(shared: Shared, trial: Trial) -> None:
    """Run the trial in its run folder to its end, from its checkpoint where there is one.

    Raises:
        InterruptedRunError: Ctrl-C; the state is saved.
        AtmcError: it failed.
    """
    with shared.context():
        note(trial.heading)
        _run(trial.job, shared)


def run_elsewhere(shared: Shared, trial: Trial) -> Brought:
    """Run the trial in a folder of this machine that is gone afterwards; its files."""
    with TemporaryDirectory(prefix="atmc-") as folder, shared.context():
        job = _moved(trial.job, Path(folder))
        _write(Path(folder), trial.files)
        network = None if trial.job.source is None else shared.networks.get(trial.job.source)
        if network is not None and job.source is not None:
            write_atomic(job.source, network)
        failure = attempt(lambda job: _run(job, shared, checked=True), job)
        return Brought(_files(job), failure)


def bring(trial: Trial, brought: Brought) -> None:
    """Write the files of a run to where a local run would have left them; what makes it a finished one at last."""
    job = trial.job
    parent, name = job.folder.path.parent, job.folder.path.name
    page = f"{name}/{RUN_REPORT}"  # made again here, for it names the folder, as the configuration does
    for gone in trial.files.keys() - brought.files.keys():
        remove(parent / gone)
    deciding = {f"{name}/{REPORT}", str(job.result.relative_to(parent))}
    own = {f"{name}/{job.folder.config.name}": to_yaml(job.config).encode()}
    written = {path: own.get(path, content) for path, content in brought.files.items() if path != page}
    _write(parent, {path: content for path, content in written.items() if path not in deciding})
    _write(parent, {path: content for path, content in written.items() if path in deciding})
    results = results_of(job.folder.path) if page in brought.files else None
    if results is not None:
        report_at_end(job.folder.path, results)


def _write(parent: Path, files: Mapping[str, bytes]) -> None:
    for path, content in files.items():
        write_atomic(parent / path, content)


def _files(job: Job) -> dict[str, bytes]:
    """All that lies in the run folder, and the network that a training has made beside it."""
    parent = job.folder.path.parent
    found = [path for path in sorted(job.folder.path.rglob("*")) if path.is_file()]
    if job.trained and job.result not in found:
        found.append(job.result)
    return {str(path.relative_to(parent)): path.read_bytes() for path in found}


def _moved(job: Job, folder: Path) -> Job:
    """`job` with its paths in `folder`; a network that it starts from is in a folder of its own there."""
    run = RunFolder(folder / job.folder.path.name)
    result = folder / job.result.relative_to(job.folder.path.parent)
    source = None if job.source is None else folder / "start" / job.source.name
    config = job.config if job.cell is None else job.config.model_copy(update={"run": run.path})
    return replace(job, folder=run, result=result, source=source, config=config)


def _run(job: Job, shared: Shared, *, checked: bool = False) -> None:
    """Train and verify; `checked`: after the data were seen to be those of the comparison."""
    if checked:
        shared.read_data()
    if not job.trained:
        _train(job, shared)
    if job.verify:
        _verify(job)


def _train(job: Job, shared: Shared) -> None:
    resume = job.folder.config.is_file()
    if job.cell is None:
        train_dense(job.config, job.result, job.folder, Ranks(), resume=resume)
        return
    assert job.source is not None
    if not job.source.is_file():
        raise AtmcError(f"the network that it starts from is not there: {job.source}")
    start = read_start(job.source, {}, False, lambda _: job.config, shared.skeleton, shared.read_data())
    report = run_compression(start, check_feasible(start), job.folder, Ranks(), resume, shared.measured.get(job.source))
    assert report is not None  # for there is one rank
    shared.measured[job.source] = report["metrics"]["dense"]


def _verify(job: Job) -> None:
    """`atmc-tool export --onnx` and `atmc-tool verify`; the verdict stands in verify.json and stops nothing."""
    target = job.folder.path / ONNX
    content, _ = exported(read_atmc(job.result), sha256(job.result.read_bytes()))
    write_atomic(target, content)
    report, *_ = verify_file(target, "auto", None, lambda _: job.config)
    write_atomic(job.folder.path / REPORT, (json.dumps(report, indent=2) + "\n").encode())
