"""Trials: the same work on many values side by side, in processes of this machine or on a Ray cluster.

There is no scheduler of our own: a pool gives the next trial to whoever is free.
"""

import os
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

from atmc_tool.errors import AtmcError, InterruptedRunError

T = TypeVar("T")
R = TypeVar("R")


@dataclass(frozen=True)
class Local:
    """Processes of this machine. One worker is this process itself.

    workers: how many; each computes with its share of the processors
    """

    workers: int = 1

    @property
    def threads(self) -> int | None:
        """Of each worker; None: as many as torch takes by itself, or as OMP_NUM_THREADS says."""
        if self.workers == 1 or "OMP_NUM_THREADS" in os.environ:
            return None
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        return max(1, cores // self.workers)


@dataclass(frozen=True)
class Ray:
    """A Ray cluster; a trial is a task.

    address: of a cluster that is there; None: one on this machine, which ends with the trials
    cpus:    of one trial; also how many threads it computes with
    gpus:    of one trial; None: one where the cluster has any
    """

    address: str | None = None
    cpus: int = 1
    gpus: float | None = None

    @property
    def threads(self) -> int | None:
        """Of a trial; None: as OMP_NUM_THREADS says."""
        return None if "OMP_NUM_THREADS" in os.environ else self.cpus


Pool = Local | Ray


@dataclass(frozen=True)
class Failure:
    """A trial that has no result.

    text:     one line for the user
    details:  the traceback; empty where its process ended
    expected: whether it is an `AtmcError`, so that the traceback says nothing more
    """

    text: str
    details: str = ""
    expected: bool = False


Results = Iterator[tuple[int, R | Failure]]


def run_trials(
    work: Callable[[T], R], trials: Sequence[T], pool: Pool, say: Callable[[str], None] = lambda _: None
) -> Results[R]:
    """`opened_pool` for one list of trials."""
    with opened_pool(work, pool, say) as run:
        yield from run(trials)


@contextmanager
def opened_pool(
    work: Callable[[T], R], pool: Pool, say: Callable[[str], None] = lambda _: None
) -> Iterator[Callable[[Sequence[T]], Results[R]]]:
    """A function that yields (index of the trial, what `work` returns for it), for every trial once, as they finish.

    It may be called for one list of trials after the other; processes stay until the block ends.

    A trial that raises is a `Failure`; the others go on. One whose process ends is tried again in another process (on
    Ray: another node, where this one is gone), so `work` must bear to be begun twice. One worker has no other process.

    Ctrl-C: the workers are interrupted as this process is, and waited for; a second one stops them at once. No process
    is left where the block ends, however it does.

    Args:
        work: a function at the top level of a module, or a `functools.partial` of one. What is bound to it goes to
            each local worker once, and to Ray's object store once.
        pool: with one local worker nothing is pickled; with others work, trials (plain values) and results are.
        say: told of processes that ended, and of Ctrl-C.

    On Ray what is printed to stdout meanwhile goes to stderr, for Ray prints there too.

    Raises:
        InterruptedRunError: Ctrl-C; or `work` raised it in this process.
        MissingEnvironmentError: Ray is not installed, its cluster is not there, or has no room for a trial.
    """
    if isinstance(pool, Ray):
        from atmc_tool.ray_pool import on_ray

        with on_ray(work, pool, say) as run:
            yield run
    elif pool.workers > 1:
        from atmc_tool.local_pool import in_processes

        with in_processes(work, pool, say) as run:
            yield run
    else:
        yield lambda trials: ((index, attempt(work, trial)) for index, trial in enumerate(trials))


@contextmanager
def connected(pool: Pool) -> Iterator[None]:
    """Connected to the cluster of `pool`, if it is one, until the block ends: once for all trials that run in it.

    Raises:
        MissingEnvironmentError: Ray is not installed, or its cluster is not there.
    """
    if isinstance(pool, Ray):
        from atmc_tool.ray_pool import joined

        with joined(pool.address):
            yield
    else:
        yield


def attempt(work: Callable[[T], R], trial: T) -> R | Failure:
    """What `work` returns for `trial`, or why it failed. InterruptedRunError and KeyboardInterrupt are raised."""
    try:
        return work(trial)
    except InterruptedRunError:
        raise
    except AtmcError as error:
        return Failure(str(error), traceback.format_exc(), expected=True)
    except Exception as error:  # the other trials go on
        return Failure(str(AtmcError(f"{type(error).__name__}: {error}")), traceback.format_exc())
