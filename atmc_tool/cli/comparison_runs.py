"""All runs of a comparison, over a pool: what is finished stays, the rest are trials."""

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from functools import partial
from typing import Any

import click

from atmc_tool.cli.comparison import Job, Plan
from atmc_tool.cli.comparison_trial import Brought, bring, make_trial, run_elsewhere, run_here, shared
from atmc_tool.cli.options import is_verbose
from atmc_tool.cli.outcomes import given_dense, outcome_of, run_of
from atmc_tool.cli.render import note
from atmc_tool.trials import Failure, Local, Pool, Ray, attempt, connected, run_trials
from evaluators.comparison import Run

Numbered = tuple[int, Job]


def run_all(plan: Plan, pool: Pool, record: Callable[[list[Run]], object]) -> list[Run]:
    """All runs in their order; `record` is called with those that are known after each that was not finished before.

    Where several run at a time, the networks that compressions start from come first.

    Raises:
        InterruptedRunError: Ctrl-C; see `run_trials`.
    """
    runs: dict[int, Run] = {}
    left: list[Numbered] = []
    if plan.measures_dense:
        note(f"[1/{plan.planned}] dense: {plan.grid.dense}")
        runs[1] = given_dense(plan)
    for number, job in enumerate(plan.jobs, 1 + plan.measures_dense):
        if job.finished:
            note(f"{_heading(plan, number, job)}: finished before")
            runs[number] = _outcome(plan, job, None)
        else:
            left.append((number, job))
    alone = pool == Local()
    with connected(pool) if left else nullcontext():
        for stage in [left] if alone else _stages(left):
            for number, job, failure in _run_stage(plan, stage, pool):
                if not alone:
                    note(f"{_heading(plan, number, job)}: {'finished' if failure is None else 'ended'}")
                runs[number] = _outcome(plan, job, failure)
                record([runs[number] for number in sorted(runs)])
    return [runs[number] for number in sorted(runs)]


def _stages(left: Sequence[Numbered]) -> list[list[Numbered]]:
    """What others start from, and the others."""
    trainings = [numbered for numbered in left if numbered[1].cell is None]
    compressions = [numbered for numbered in left if numbered[1].cell is not None]
    return [stage for stage in (trainings, compressions) if stage]


def _heading(plan: Plan, number: int, job: Job) -> str:
    return f"[{number}/{plan.planned}] {job.title}"


def _run_stage(plan: Plan, stage: Sequence[Numbered], pool: Pool) -> Iterator[tuple[int, Job, Failure | None]]:
    """(number, job, why it failed) of each of `stage`, as they finish; no other is needed by one of them."""
    elsewhere = isinstance(pool, Ray)
    trials = [make_trial(job, _heading(plan, number, job), elsewhere=elsewhere) for number, job in stage]
    sources = {job.source for _, job in stage if job.source is not None} if elsewhere else set()
    networks = {source: source.read_bytes() for source in sources if source.is_file()}
    known = shared(plan, own=pool != Local(), networks=networks)
    work: Callable[[Any], Brought | None] = partial(run_elsewhere if elsewhere else run_here, known)
    for index, found in run_trials(work, trials, pool, note):
        failure = found if isinstance(found, Failure) else None
        if isinstance(found, Brought):
            failure = found.failure or attempt(partial(bring, trials[index]), found)
        yield *stage[index], failure


def _outcome(plan: Plan, job: Job, failure: Failure | None) -> Run:
    """The run with what it has made; a failure is said, with its traceback where that was asked for."""
    found = attempt(lambda job: outcome_of(plan, job), job) if failure is None else failure
    if not isinstance(found, Failure):
        return run_of(job, found)
    if found.details and not found.expected and (is_verbose() or "ATMC_DEBUG" in os.environ):
        click.echo(found.details, err=True)
    note(f"failed: {found.text}")
    return run_of(job, None, found.text)
