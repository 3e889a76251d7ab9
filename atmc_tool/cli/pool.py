"""Where trials run: the options `--workers`, `--ray`, `--cpus`, `--gpus`, and the pool that they mean."""

import re
import shlex
from collections.abc import Callable
from typing import Any, TypeVar

import click

from atmc_tool.errors import UsageError
from atmc_tool.trials import Local, Pool, Ray

F = TypeVar("F", bound=Callable[..., Any])
OWN = "local"  # a cluster of our own on this machine
ADDRESS = re.compile(r"auto|local|ray://.+|[^/]+:\d+")
OPTIONS = (
    click.option("--workers", type=click.IntRange(1), metavar="N", help="As many runs at a time, as processes here."),
    click.option(
        "--ray",
        metavar="[ADDRESS]",
        is_flag=False,
        flag_value=OWN,
        help="Runs on a Ray cluster: auto, host:port or ray://host:port; without an address one on this machine.",
    ),
    click.option("--cpus", type=click.IntRange(1), metavar="N", help="With --ray: processors of a run; default 1."),
    click.option("--gpus", type=click.FloatRange(0), metavar="N", help="With --ray: GPUs of a run; default 1 if any."),
)


def pool_options(command: F) -> F:
    """The options; the command takes `workers`, `ray`, `cpus`, `gpus` and gives them to `chosen_pool`."""
    for option in reversed(OPTIONS):
        command = option(command)
    return command


def chosen_pool(workers: int | None, ray: str | None, cpus: int | None, gpus: float | None) -> Pool:
    """The pool that the options mean; without any of them this process.

    Raises:
        UsageError: options that exclude each other, or no address.
        MissingEnvironmentError: Ray is asked for and not installed, or there is no cluster at the address.
    """
    if ray is None:
        if cpus is not None or gpus is not None:
            raise UsageError("--cpus and --gpus are those of a run on Ray", hint="add --ray")
        return Local(workers or 1)
    if workers is not None:
        raise UsageError("--workers and --ray exclude each other", hint="this machine's processes, or Ray's")
    if not ADDRESS.fullmatch(ray):
        expected = "auto, host:port or ray://host:port"
        raise UsageError("not the address of a Ray cluster", expected=expected, got=ray, hint="--ray= names none")
    from atmc_tool.ray_pool import check_ray

    address = None if ray == OWN else ray
    check_ray(address)
    return Ray(address, cpus or 1, gpus)


def as_options(pool: Pool) -> str:
    """` --workers 2`: how a command line names the pool."""
    if isinstance(pool, Local):
        return "" if pool.workers == 1 else f" --workers {pool.workers}"
    gpus = "" if pool.gpus is None else f" --gpus {pool.gpus:g}"
    return f" --ray {shlex.quote(pool.address or OWN)} --cpus {pool.cpus}{gpus}"
