"""Trials in processes of this machine."""

import os
import pickle
import signal
import sys
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from multiprocessing import get_context, parent_process
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from typing import Any, TypeVar

from atmc_tool.errors import InterruptedRunError
from atmc_tool.trials import Failure, Local, Results, attempt

T = TypeVar("T")
R = TypeVar("R")

ATTEMPTS = 2  # that a trial has whose process ends
GRACE_SECONDS = 60.0  # for workers to save what they have when they are interrupted


@dataclass
class _Worker:
    """A process, and the trial that it is at."""

    process: SpawnProcess
    connection: Connection
    index: int | None = None


@contextmanager
def in_processes(
    work: Callable[[T], R], pool: Local, say: Callable[[str], None]
) -> Iterator[Callable[[Sequence[T]], Results[R]]]:
    """`opened_pool` of processes, started when they are needed, each with its share of the processors."""
    content = pickle.dumps(work)
    crew: list[_Worker] = []
    try:
        yield lambda trials: _run(trials, crew, lambda: _start(content, pool.threads), pool.workers, say)
    finally:
        _end(crew)


def _run(
    trials: Sequence[Any], crew: list[_Worker], start: Callable[[], _Worker], workers: int, say: Callable[[str], None]
) -> Results[Any]:
    """Each of `trials` to a worker of `crew` that has none, the crew growing to at most `workers`."""
    waiting, begun = deque(range(len(trials))), [0] * len(trials)

    def hand_out() -> None:
        while len(crew) < workers and len(waiting) > sum(worker.index is None for worker in crew):
            crew.append(start())
        for worker in crew:
            if worker.index is None and waiting:
                worker.index = waiting.popleft()
                begun[worker.index] += 1
                with suppress(BrokenPipeError):  # its process has ended, as is found out where it is waited for
                    worker.connection.send(trials[worker.index])

    def ended(worker: _Worker, index: int) -> Failure | None:
        text = f"the process of trial {index + 1} ended {_cause(worker.process.exitcode)}"
        if begun[index] == ATTEMPTS:
            return Failure(f"{text}, and so did the one before")
        say(f"{text}: trying again")
        waiting.appendleft(index)
        return None

    try:
        hand_out()
        while any(worker.index is not None for worker in crew):
            ready = wait([worker.connection for worker in crew])
            found = []
            for worker in [worker for worker in crew if worker.connection in ready]:
                index, worker.index = worker.index, None
                try:
                    result = worker.connection.recv()
                except (EOFError, OSError):
                    crew.remove(worker)
                    worker.process.join()
                    worker.connection.close()
                    result = None if index is None else ended(worker, index)
                    if result is None:
                        continue
                assert index is not None  # for nobody answers unasked
                found.append((index, result))
            hand_out()  # before the results are looked at, which may take a while
            yield from found
    except KeyboardInterrupt:
        say("waiting for the workers to save their state … press Ctrl-C again to stop at once")
        _interrupt(crew)
        raise InterruptedRunError("interrupted", hint="the state is saved; go on with --resume") from None
    except GeneratorExit:
        _interrupt(crew)
        raise


def _cause(exit_code: int | None) -> str:
    if exit_code is not None and exit_code < 0:
        name = signal.Signals(-exit_code).name
        return f"by {name}" + (" (out of memory?)" if name == "SIGKILL" else "")
    return f"with exit code {exit_code}"


def _start(content: bytes, threads: int | None) -> _Worker:
    context = get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_serve, args=(theirs, threads), daemon=True)
    with _no_interrupt():
        process.start()
    theirs.close()
    with suppress(BrokenPipeError):
        ours.send_bytes(content)
    return _Worker(process, ours)


@contextmanager
def _no_interrupt() -> Iterator[None]:
    """Ctrl-C waits until the block ends; in a process that is started here, until it unblocks it."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _interrupt(crew: list[_Worker]) -> None:
    """Ctrl-C for the workers that are at a trial; the end for the others. Waits until they have ended."""
    for worker in crew:
        if worker.index is None:
            worker.process.kill()
        elif worker.process.is_alive() and worker.process.pid is not None:
            with suppress(ProcessLookupError):
                os.kill(worker.process.pid, signal.SIGINT)
    deadline = time.monotonic() + GRACE_SECONDS
    for worker in crew:
        worker.process.join(max(0.0, deadline - time.monotonic()))
    _end(crew)


def _end(crew: list[_Worker]) -> None:
    """Kill what is left of the crew; nobody is in it afterwards."""
    for worker in crew:
        worker.process.kill()
    for worker in crew:
        worker.process.join()
        worker.connection.close()
    crew.clear()


def _serve(connection: Connection, threads: int | None) -> None:
    """What a worker does: the work on one trial after the other, until there is none.

    It is in a session of its own: Ctrl-C in a terminal reaches the first process alone, which passes it on once.
    """
    threading.Thread(target=_end_with_parent, daemon=True).start()
    if hasattr(os, "setsid"):
        os.setsid()
    if threads is not None:
        os.environ["OMP_NUM_THREADS"] = str(threads)  # read by torch when it is imported, with the work
    if hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    try:
        work: Any = _received(connection.recv_bytes())
        while True:
            trial = connection.recv()
            found = work if isinstance(work, Failure) else attempt(work, trial)
            try:
                connection.send(found)
            except (pickle.PicklingError, TypeError, AttributeError) as error:
                connection.send(Failure(f"the result can't be sent: {error}", traceback.format_exc()))
    except (EOFError, BrokenPipeError, KeyboardInterrupt, InterruptedRunError):
        sys.exit(1)


def _received(content: bytes) -> object:
    """The work; where its module can't be imported, the failure that every trial then has."""
    try:
        return pickle.loads(content)
    except Exception as error:
        return Failure(f"{type(error).__name__}: {error}", traceback.format_exc())


def _end_with_parent() -> None:
    parent = parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)
