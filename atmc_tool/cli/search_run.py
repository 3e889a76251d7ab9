"""A search from its plan to its results: evaluations in a pool, a log that it can go on from, figures at the end."""

import json
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import yaml

from atmc_tool import __version__
from atmc_tool.cli.render import counted, note
from atmc_tool.cli.search_folder import SearchFolder, read_record
from atmc_tool.cli.search_plan import SearchPlan, built_in, identity, probes
from atmc_tool.cli.search_work import Request, evaluate
from atmc_tool.cli.subject import versions
from atmc_tool.devices import select_device
from atmc_tool.distributed import Ranks
from atmc_tool.errors import AtmcError, InterruptedRunError
from atmc_tool.files import write_atomic
from atmc_tool.machine import machine
from atmc_tool.search.algorithm import Algorithm, Fixed
from atmc_tool.search.evaluation import Outcome
from atmc_tool.search.loop import Search, best, front
from atmc_tool.search.random_search import RandomSearch
from atmc_tool.search.settings import SEARCHES
from atmc_tool.search.strategy import LayerRate, Strategy, write_strategy
from atmc_tool.search.trial_log import Trial, TrialLog
from atmc_tool.trials import Failure, Local, Pool, opened_pool
from evaluators.report.search_report import search_report

FACTS = ("clean", "robust", "reward", "weights", "flops", "shrunk", "bytes")


Run = Callable[[Sequence[Request]], Iterator[tuple[int, Outcome | Failure]]]


def outcomes(run: Run, wanted: Sequence[Request]) -> Iterator[tuple[int, Outcome]]:
    """(index, outcome) of each of `wanted`, as they finish.

    Raises:
        AtmcError: one failed.
    """
    for index, found in run(wanted):
        if isinstance(found, Failure):
            raise AtmcError(f"an evaluation failed: {found.text}", hint="--resume tries it again")
        yield index, found


def run_search(
    plan: SearchPlan, folder: SearchFolder, pool: Pool, *, resume: bool, overwrite: bool, command: str
) -> dict[str, Any]:
    """Search, and write all that a search leaves into `folder`; the content of results.json.

    Raises:
        InterruptedRunError: Ctrl-C; every finished evaluation is on the disk.
        UsageError: to be resumed, but what was begun there had other settings.
        AtmcError: an evaluation failed.
    """
    facts = identity(plan)
    if resume:
        folder.check_same(facts)
    if overwrite:
        folder.clear()
    write_atomic(folder.config, yaml.safe_dump(facts, sort_keys=False).encode())
    if pool == Local(1):
        plan.evaluator()  # made of what the plan has read
    try:
        with opened_pool(partial(evaluate, plan.task), pool, note) as run:
            trials, whole, confirmed = _search(plan, folder, run)
    except KeyboardInterrupt:
        raise InterruptedRunError("interrupted", hint="the state is saved; go on with --resume") from None
    return _write(plan, folder, trials, whole, confirmed, command)


def _search(plan: SearchPlan, folder: SearchFolder, run: Run) -> tuple[list[Trial], Outcome, Outcome | None]:
    """(all trials, outcome of the whole network, outcome of the best strategy on images that it was not chosen by)."""
    settings, space = plan.settings, plan.space

    def work(asked: Sequence[tuple[Strategy, float]]) -> Iterator[tuple[int, Outcome]]:
        return outcomes(run, [Request(s.model_dump(mode="json"), fidelity) for s, fidelity in asked])

    algorithm = algorithm_of(plan, folder)
    log = TrialLog(folder.trials)
    count = settings.evaluations if settings.algorithm in SEARCHES else 1
    search = Search(space, work, log, evaluations=count, batch=settings.batch, halving=settings.halving)
    if log.trials:
        note(f"{len(log.trials)} evaluations of the search that was begun are used again")
    trials: list[Trial] = []
    with counted(f"searching by {settings.algorithm}") as progress:
        for trial in search.run(algorithm):
            trials.append(trial)
            progress(len(trials), count)
    log.finish()
    dense = {layer.name: LayerRate(keep=1.0) for layer in plan.layers}
    chosen = {name: LayerRate(keep=rate) for name, rate in best(trials).rates.items()}
    whole, top = (Strategy(structure=settings.structure, layers=layers).model_dump() for layers in (dense, chosen))
    found = dict(outcomes(run, [Request(whole), *([Request(top, part=1)] if plan.can_confirm else [])]))
    return trials, found[0], found.get(1)


def algorithm_of(plan: SearchPlan, folder: SearchFolder) -> Algorithm:
    """The algorithm that the plan asks for, from its beginning; HARP's rates are trained first."""
    settings, space = plan.settings, plan.space
    if settings.algorithm == "harp":
        from atmc_tool.cli.search_harp import trained_rates

        return Fixed(trained_rates(plan, folder.harp))
    if settings.algorithm not in SEARCHES:
        return Fixed(built_in(plan))
    if settings.algorithm == "random":
        return RandomSearch(space, settings.seed)
    if settings.algorithm == "ddpg":
        from atmc_tool.search.ddpg import DdpgSearch

        return DdpgSearch(space, settings.seed, settings.evaluations)
    from atmc_tool.search.optuna_search import OptunaSearch

    return OptunaSearch(space, settings.algorithm, settings.seed, settings.evaluations)  # type: ignore[arg-type]  # checked


def _write(
    plan: SearchPlan,
    folder: SearchFolder,
    trials: Sequence[Trial],
    whole: Outcome,
    confirmed: Outcome | None,
    command: str,
) -> dict[str, Any]:
    settings, space, top = plan.settings, plan.space, best(trials)
    outcome = top.outcome.to_json()
    evaluated = [trial for trial in TrialLog(folder.trials).trials if trial.repeats is None]
    results: dict[str, Any] = {
        "atmc_tool": __version__,
        "command": command,
        "versions": versions(),
        "machine": machine(select_device(plan.start.config.device, Ranks())),
        **identity(plan),
        "budget": {"measure": settings.measure, "limit": space.wall.limit, "uniform": plan.uniform},
        "proposed": len(trials),
        "evaluated": len(evaluated),
        "probes": probes(plan),
        "whole_evaluations": sum(trial.outcome.fidelity for trial in evaluated),
        "seconds": sum(trial.outcome.seconds for trial in evaluated),
        "dense": whole.to_json(),
        "best": top.to_json(),
        "confirmed": None if confirmed is None else confirmed.to_json(),
        "front": [trial.to_json() for trial in front(trials, space.size)],
    }
    found = {
        "algorithm": settings.algorithm,
        "seed": settings.seed,
        "number": top.number,
        "evaluations": len(evaluated),
        **{name: outcome[name] for name in FACTS if outcome[name] is not None},
    }
    rates = {name: LayerRate(keep=rate) for name, rate in top.rates.items()}
    strategy = Strategy(structure=settings.structure, budget=space.budget, layers=rates, found=found)
    write_strategy(folder.strategy, strategy)
    write_atomic(folder.results, (json.dumps(results, indent=2) + "\n").encode())
    shown = {"command": command, "data": plan.start.data.name, "network": plan.start.card.arch, **versions()}
    write_atomic(folder.page, search_report(str(folder.path), [read_record(folder)], shown))
    return results
