"""Trials on a Ray cluster. Ray is an optional package, imported here alone."""

import logging
import os
import socket
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from importlib.util import find_spec
from pathlib import Path
from typing import Any, TypeVar

from atmc_tool.errors import InterruptedRunError, MissingEnvironmentError
from atmc_tool.trials import Failure, Ray, Results, attempt

T = TypeVar("T")
R = TypeVar("R")

RETRIES = 3  # of a trial whose process or node is gone
CONNECT_SECONDS = 10.0
STORE_BYTES = 128 * 1024**2  # of a cluster of our own; what does not fit, Ray puts on disk
STARTS = 3  # of a cluster of our own: Ray gives up after 30 seconds, which are few on a busy machine
SILENT = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0"}  # sends nothing, warns of nothing


def check_ray(address: str | None) -> None:
    """See that Ray is installed, which is not imported here, and that somebody listens at `address`.

    Ray itself would try for minutes.

    Raises:
        MissingEnvironmentError: one of the two is not so.
    """
    if find_spec("ray") is None:
        hint = "pip install 'atmc-tool[cluster]', or --workers for processes of this machine"
        raise MissingEnvironmentError("--ray needs a package that is not installed", hint=hint)
    host, _, port = (address or "").removeprefix("ray://").rpartition(":")
    if host and port.isdecimal():
        try:
            socket.create_connection((host, int(port)), CONNECT_SECONDS).close()
        except (OSError, OverflowError) as error:
            raise MissingEnvironmentError(f"no Ray cluster at {address}", got=str(error)) from error


@contextmanager
def on_ray(
    work: Callable[[T], R], pool: Ray, say: Callable[[str], None]
) -> Iterator[Callable[[Sequence[T]], Results[R]]]:
    """`opened_pool` of tasks on Ray, which places them, and places them elsewhere when a node is gone."""
    with joined(pool.address):
        import ray

        gpus = _gpus(pool)
        task = ray.remote(num_cpus=pool.cpus, num_gpus=gpus, max_retries=RETRIES)(_task)
        shared, folder = ray.put(work), str(Path.cwd())
        yield lambda trials: _run([task.remote(shared, trial, folder, gpus) for trial in trials], say)


def _run(tasks: Sequence[Any], say: Callable[[str], None]) -> Results[Any]:
    """(index, result) of each of Ray's references, as they finish."""
    import ray

    waiting = {reference: index for index, reference in enumerate(tasks)}
    try:
        while waiting:
            (done,), _ = ray.wait(list(waiting))
            index = waiting.pop(done)
            try:
                found = ray.get(done)
            except ray.exceptions.RayError as error:
                reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
                found = Failure(f"trial {index + 1} has no result, though Ray tried it again: {reason}")
            yield index, found
    except KeyboardInterrupt:
        say("stopping the trials on the cluster …")
        raise InterruptedRunError("interrupted", hint="what is finished is kept; go on with --resume") from None
    finally:
        for left in waiting:
            ray.cancel(left, force=True)


@contextmanager
def joined(address: str | None) -> Iterator[None]:
    """Connected to the cluster at `address`, or to one of our own, until the block ends; as is where it is connected.

    Raises:
        MissingEnvironmentError: Ray is not installed, or the cluster is not there.
    """
    check_ray(address)
    os.environ.update({name: os.environ.get(name, value) for name, value in SILENT.items()})
    import ray

    if ray.is_initialized():
        yield
        return
    with redirect_stdout(sys.stderr):  # Ray says on stdout what it has lost; that is for results alone
        try:
            _init(address)
            yield
        finally:
            ray.shutdown()


def _init(address: str | None) -> None:
    import ray

    own: dict[str, Any] = {"include_dashboard": False, "object_store_memory": STORE_BYTES} if address is None else {}
    for left in reversed(range(1 if address else STARTS)):
        try:
            ray.init(address or "local", logging_level=logging.ERROR, log_to_driver=False, **own)
            return
        except Exception as error:  # a bare one among them, where it does not start in time
            if not left:
                what = f"no Ray cluster at {address}" if address else "a Ray cluster can't be started here"
                raise MissingEnvironmentError(what, got=next(iter(str(error).splitlines()), "")) from error
            ray.shutdown()


def _gpus(pool: Ray) -> float:
    """GPUs of a trial, after it is checked that a machine has room for one: it would else wait for ever.

    Raises:
        MissingEnvironmentError: none has.
    """
    import ray

    found: list[dict[str, Any]] = ray.nodes()  # type: ignore[no-untyped-call]
    nodes = [node["Resources"] for node in found if node["Alive"]]
    gpus = float(any(node.get("GPU", 0) >= 1 for node in nodes)) if pool.gpus is None else pool.gpus
    if not any(node.get("CPU", 0) >= pool.cpus and node.get("GPU", 0) >= gpus for node in nodes):
        got = "; ".join(f"{node.get('CPU', 0):g} processors and {node.get('GPU', 0):g} GPUs" for node in nodes)
        expected = f"{pool.cpus} processors and {gpus:g} GPUs for a trial"
        raise MissingEnvironmentError("no machine of the cluster has room for a trial", expected=expected, got=got)
    return gpus


def _task(work: Any, trial: Any, folder: str, gpus: float) -> Any:
    """One trial, in the folder of the first process where this machine has it too."""
    if not gpus:
        os.environ["CUDA_VISIBLE_DEVICES"] = ""  # else it would take one that is others'
    if Path(folder).is_dir():
        os.chdir(folder)
    return attempt(work, trial)
