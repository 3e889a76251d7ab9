"""What `train` and `compress` share: a network on its data, checked to fit each other, and its measurement."""

import json
import platform
from collections.abc import Mapping
from dataclasses import replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from atmc_tool import __version__
from atmc_tool.checkpoint import has_checkpoint
from atmc_tool.cli.interrupt import stop_on_interrupt
from atmc_tool.cli.measurement import predicted_seconds
from atmc_tool.cli.options import seconds_running
from atmc_tool.cli.render import note, training_progress
from atmc_tool.cli.report import report_at_end
from atmc_tool.cli.run_folder import RunFolder
from atmc_tool.cli.settings import portable
from atmc_tool.compute import select_compute
from atmc_tool.config import Config, ScheduleConfig, to_yaml
from atmc_tool.data import DataSet
from atmc_tool.distributed import Ranks
from atmc_tool.errors import InputError, UsageError
from atmc_tool.files import sha256, write_atomic
from atmc_tool.methods.method import Method
from atmc_tool.threat_model import ThreatModel
from atmc_tool.trackers import check_installed, track_result, tracked
from atmc_tool.training import Event, train
from atmc_tool.training_step import Setup
from evaluators.report.run_report import Results

MOST_BESIDE_TRAINING = 0.8  # of a time limit
WRITING_SECONDS = 3.0  # for files and the report at the end
ACCURACIES = ("clean_accuracy", "robust_accuracy", "balanced_clean_accuracy", "balanced_robust_accuracy")
VERSIONED = ("torch", "numpy", "onnx", "onnxscript")


def per_channel(name: str, values: tuple[float, ...], channels: int) -> tuple[float, ...]:
    """One value per channel of the images; a single one stands for all.

    Raises:
        UsageError: another number of values.
    """
    if len(values) not in (1, channels):
        raise UsageError(f"{name} does not fit the images", expected=f"1 or {channels} values", got=len(values))
    return values * channels if len(values) == 1 else values


def check_fit(network: nn.Module, name: str, data: DataSet, image_shape: tuple[int, int, int] | None) -> None:
    """Run `network` on images like those of `data`, so that what does not fit is said before any training.

    image_shape: what the network is made for, where that is known

    Raises:
        InputError: it does not take such images, or gives another number of logits than there are classes.
    """
    shape = data.image_shape
    hint = "choose another --arch or --data"
    if image_shape is not None and image_shape != shape:
        what = f"{name} is not made for the images of {data.name}"
        raise InputError(what, expected=f"{image_shape} (C, H, W)", got=shape, hint=hint)
    network.eval()
    try:
        with torch.no_grad():
            logits = network(torch.zeros(2, *shape))
    except (RuntimeError, ValueError, TypeError, IndexError) as error:
        first = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise InputError(f"{name} does not take the images of {data.name}, {shape}", got=first, hint=hint) from error
    if not isinstance(logits, Tensor) or tuple(logits.shape) != (2, data.n_classes):
        got = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        raise InputError(
            f"{name} does not fit the classes of {data.name}",
            expected=f"logits (N, {data.n_classes})",
            got=got,
            hint=hint,
        )


def training_setup(
    config: Config,
    schedule: ScheduleConfig,
    network: nn.Module,
    mean: tuple[float, ...],
    std: tuple[float, ...],
    device: torch.device,
    data: DataSet,
    threat_model: ThreatModel | None,
    ranks: Ranks,
) -> Setup:
    """What is trained on what, and how.

    Every rank's `network` gets the first one's weights.
    """
    network.load_state_dict(ranks.from_first(network.state_dict))
    most = -(-min(schedule.batch_size, len(data.train)) // ranks.size)
    graphs = 2 if schedule.objective in ("trades", "mart") else 1
    own = ranks.together(
        lambda: select_compute(config.compute, network.to(device), data.image_shape, most, device, graphs=graphs)
    )
    micro_batches = [size for size in ranks.each(own.micro_batch) if size is not None]
    compute = replace(own, micro_batch=min(micro_batches, default=None))
    return Setup(network, mean, std, device, data, threat_model, config.attack, config.seed, compute, ranks)


def _training_seconds(config: Config, section: str, time_limit: float, setup: Setup) -> float:
    """Seconds of a time limit that are left for the training by what came before it and what comes after it.

    Raises:
        UsageError: they leave too little for the training.
    """
    attacked, networks = config.threat_model.parse() is not None, 1 if section == "train" else 2
    own = predicted_seconds(setup, config.evaluation, networks, attacked=attacked)
    reserve = max(setup.ranks.each(own)) + WRITING_SECONDS
    needed = max(setup.ranks.each(seconds_running())) + reserve
    if needed > MOST_BESIDE_TRAINING * time_limit:
        raise UsageError(
            f"a time limit of {time_limit:.3g} s is too short: starting took {needed - reserve:.0f} s, measuring "
            f"at the end takes about {reserve:.0f} s",
            expected=f"at least {needed / MOST_BESIDE_TRAINING:.0f} s",
            hint="measure less (--set evaluation.n=, evaluation.steps= or evaluation.restarts=) or allow more time",
        )
    return time_limit - needed


def resume_digest(config: Config, section: str, **inputs: str) -> str:
    """SHA-256 of everything that must be equal for a checkpoint to be resumed: settings that train, and inputs."""
    settings = portable(config)
    used = {key: settings[key] for key in ("seed", "model", "data", "threat_model", "attack", section)}
    return sha256(json.dumps({**used, **inputs}, sort_keys=True).encode())


def run_training(
    config: Config,
    section: Literal["train", "compress"],
    setup: Setup,
    method: Method,
    folder: RunFolder,
    *,
    select: bool,
    resume: bool,
    **inputs: str,
) -> None:
    """Train into `folder`, with progress and Ctrl-C; before that what an earlier run left there is removed.

    A run that is to be resumed and has no checkpoint yet starts from the beginning.

    `inputs` are digests of what the run starts from.

    Raises:
        UsageError: more ranks than images in a batch.
        InputError: the ranks do not train the same.
    """
    check_installed(config.trackers)
    schedule = config.train if section == "train" else config.compress
    ranks, batch = setup.ranks, min(schedule.batch_size, len(setup.data.train))
    if ranks.size > batch:
        raise UsageError("more processes than images in a batch", expected=f"at most {batch}", got=ranks.size)
    digest = resume_digest(config, section, data=setup.data.digest, **inputs)
    if len(set(ranks.each(digest))) > 1:
        hint = "the same files, options and atmc.yaml for every process"
        raise InputError("the processes of this run differ in their data, model or settings", hint=hint)
    limit = schedule.time_limit
    seconds = None if limit is None else _training_seconds(config, section, limit, setup)
    resume = ranks.from_first(lambda: _open(folder, config, resume))
    with (
        stop_on_interrupt() as stop,
        training_progress(section, seconds) as show,
        tracked(config.trackers if ranks.first else (), folder.path, portable(config), note) as track,
    ):
        events: list[Event] = []  # the last one

        def report(event: Event) -> None:
            if not events:  # said once it runs: what stops it before is one line, an error
                _introduce(setup, event.step - 1)
            events[:] = [event]
            show(event)
            track(event)

        train(
            setup,
            method,
            schedule,
            folder.path,
            digest=digest,
            select=select,
            resume=resume,
            time_limit=seconds,
            report=report if ranks.first else lambda _: None,
            stop=stop,
        )
    if events and events[0].step < events[0].steps:
        note(f"the time limit ended the schedule after {events[0].step:,} of {events[0].steps:,} steps")


def _introduce(setup: Setup, done: int) -> None:
    """Say how the training runs, and where it goes on."""
    for text in setup.compute.notes:
        note(text)
    if setup.ranks.size > 1:
        note(f"on {setup.ranks.size} processes")
    if done:
        note(f"going on after step {done:,}")


def conclude(config: Config, path: Path, results: Results) -> None:
    """Give what the finished run in folder `path` has made to its trackers, and write its report."""
    numbers: dict[str, float] = {f"bytes_{what.split()[0]}": n for what, n in results.sizes.items()}
    for which, facts in results.accuracies.items():
        numbers |= {f"test_{which}_{key}": facts[key] for key in ACCURACIES if key in facts}
    track_result(config.trackers, path, portable(config), numbers, note)
    report_at_end(path, results)


def _open(folder: RunFolder, config: Config, resume: bool) -> bool:
    """Make `folder` ready to be written into; whether there is a checkpoint to go on from."""
    if resume and not has_checkpoint(folder.checkpoints):
        note(f"{folder.path} has no checkpoint yet: starting from the beginning")
        resume = False
    if resume:
        folder.remove_leftovers()
    else:
        folder.clear()
        write_atomic(folder.config, to_yaml(config).encode())
    return resume


def versions() -> dict[str, str]:
    """Versions of what decides a training's result."""
    found = {"atmc_tool": __version__, "python": platform.python_version()}
    for name in VERSIONED:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def arrays(state: Mapping[str, Tensor]) -> dict[str, Any]:
    """The tensors as NumPy arrays of their own."""
    return {name: tensor.detach().cpu().numpy().copy() for name, tensor in state.items()}
