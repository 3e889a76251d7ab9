"""`atmc-tool search`: which layer keeps how much, found by an algorithm on a trained network."""

import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from atmc_tool.cli.options import EPS, PATH, as_json, config_sources, data, new_or_old, norm, setting, verbosity
from atmc_tool.cli.pool import chosen_pool, pool_options
from atmc_tool.errors import InputError, MissingEnvironmentError, UsageError

if TYPE_CHECKING:
    from atmc_tool.cli.search_plan import SearchPlan
    from atmc_tool.search.settings import SearchSettings

DEFAULT = Path("atmc-search")
FIGURES = Path("searches.html")
ALGORITHMS = ("uniform", "erk", "lamp", "global", "sensitivity", "random", "ddpg", "tpe", "cmaes", "nsga2", "harp")
NEEDED = {  # algorithm → packages of the extra `search`
    "ddpg": ("stable_baselines3", "gymnasium"),
    "tpe": ("optuna",),
    "cmaes": ("optuna", "cmaes"),
    "nsga2": ("optuna",),
}


@click.command("search", epilog="Example: atmc-tool search model.pt --algorithm tpe --keep 0.01 --evaluations 100")
@click.argument("models", metavar="MODEL", type=PATH, nargs=-1, required=True)
@click.option(
    "--algorithm", type=click.Choice(ALGORITHMS), default="ddpg", show_default=True, help="What proposes the rates."
)
@click.option(
    "--keep", type=click.FloatRange(0, 1, min_open=True), default=0.05, show_default=True, help="Share that is kept."
)
@click.option(
    "--structure",
    type=click.Choice(["irregular", "filter", "column", "channel"]),
    default="irregular",
    help="What goes together; default irregular: single weights.",
)
@click.option(
    "--measure",
    type=click.Choice(["weights", "shrunk", "bytes", "flops"]),
    default="weights",
    help="What --keep is a share of; default weights.",
)
@click.option("--evaluations", type=click.IntRange(1), default=100, show_default=True, help="Strategies to try.")
@click.option("--batch", type=click.IntRange(1), default=4, show_default=True, help="Strategies proposed at once.")
@click.option("--seed", type=click.IntRange(0, 2**31 - 1), default=0, show_default=True, help="Seed of the search.")
@click.option("--lower", type=click.FloatRange(0, 1, min_open=True), help="Lowest rate of a layer.")
@click.option("--upper", type=click.FloatRange(0, 1, min_open=True), help="Highest rate of a layer.")
@click.option("--beta", type=click.FloatRange(0), help="Reward: clean + beta x robust accuracy; default 1.")
@click.option("--images", type=click.IntRange(10), help="Held-out training images; default 500.")
@click.option("--attack-steps", type=click.IntRange(1), help="Steps of PGD in the reward; default 10.")
@click.option("--steps", type=click.IntRange(0), help="Steps of fine-tuning before the measurement; default 0.")
@click.option("--halving", type=click.IntRange(2), metavar="N", help="Successive halving: one of N goes on with more.")
@setting("model.arch", "--arch", metavar="NAME", help="Built-in network, pkg.mod:callable or file.py:callable.")
@data
@setting("threat_model.eps", "--eps", type=EPS, help="Radius of the ball of the norm: 8/255 or 0.1.")
@norm
@setting("device", "--device", metavar="NAME", help="auto (default), cpu or cuda:0.")
@pool_options
@click.option("--trust-pickle", is_flag=True, help="Load a whole pickled module, which runs code in the file.")
@click.option("--figures", is_flag=True, help="Draw the figures of finished searches: MODEL are their folders.")
@click.option("--dry-run", is_flag=True, help="Show the layers, the bounds and the budget; write nothing.")
@click.option("-o", "--output", type=PATH, help=f"The folder; default {DEFAULT}. Of --figures the page: {FIGURES}.")
@config_sources
@new_or_old
@as_json
@verbosity
def command(
    models: tuple[Path, ...],
    workers: int | None,
    ray: str | None,
    cpus: int | None,
    gpus: float | None,
    trust_pickle: bool,
    figures: bool,
    dry_run: bool,
    output: Path | None,
    resume: bool,
    overwrite: bool,
    as_json: bool,
    **options: Any,
) -> None:
    """Find out which layer of a trained network should keep how much.

    Rates are tried by pruning the network by magnitude, measuring batch norm again, and attacking it on images held
    out from training. strategy.yaml in the folder is what compress takes as --strategy. Ctrl-C saves the state.
    """
    if figures:
        _draw(models, output or FIGURES, overwrite)
        return
    if len(models) > 1:
        raise UsageError("a search takes one network", hint="--figures takes the folders of several searches")
    settings, pool = _settings(options), chosen_pool(workers, ray, cpus, gpus)
    _check_installed(settings.algorithm)
    model, folder = models[0], output or DEFAULT
    if not model.is_file():
        raise InputError(f"{model} is not there", expected="a trained network", hint="make one with atmc-tool train")
    from atmc_tool.cli.search_folder import SearchFolder

    target = SearchFolder(folder)
    if not dry_run:
        target.check_free(resume=resume, overwrite=overwrite)
    from atmc_tool.cli.search_plan import make_plan

    plan = make_plan(model, trust_pickle, settings)
    if dry_run:
        _show_plan(plan, as_json)
        return
    from atmc_tool.cli.search_run import run_search

    command_line = shlex.join(["atmc-tool", *sys.argv[1:]])
    results = run_search(plan, target, pool, resume=resume, overwrite=overwrite, command=command_line)
    _show(results, target, as_json)


def _settings(options: dict[str, Any]) -> "SearchSettings":
    from atmc_tool.search.settings import build_settings

    names = ("beta", "images", "attack_steps", "steps")
    scoring = {name: options.pop(name) for name in names}
    given = {name: value for name, value in scoring.items() if value is not None}
    return build_settings({**options, "scoring": given})


def _check_installed(algorithm: str) -> None:
    """See that the packages of `algorithm` are there; imports none of them."""
    from importlib.util import find_spec

    missing = [name for name in NEEDED.get(algorithm, ()) if find_spec(name) is None]
    if missing:
        raise MissingEnvironmentError(
            f"the algorithm {algorithm} needs packages that are not installed: {', '.join(missing)}",
            hint="pip install 'atmc-tool[search]'",
        )


def _show_plan(plan: "SearchPlan", as_json: bool) -> None:
    from atmc_tool.cli.render import show_json, show_line, show_table
    from atmc_tool.cli.search_plan import identity

    space, settings, wall = plan.space, plan.settings, plan.space.wall
    rows = [
        [", ".join(layer.name for layer in layers), sum(layer.weights for layer in layers)]
        for layers in space.decisions
    ]
    if as_json:
        facts = {"decisions": rows, "limit": space.wall.limit, "uniform": plan.uniform}
        show_json({**identity(plan), **facts, "whole": [layer.name for layer in space.whole]})
        return
    show_table(f"Layers that {settings.algorithm} decides on", ["layer", "weights"], rows)
    if space.whole:
        show_line(f"left whole: {', '.join(layer.name for layer in space.whole)}")
    show_line(
        f"budget: {wall.limit:,} {settings.measure}; rates from {wall.lower:.4g} to {wall.upper:.4g}; "
        f"the same rate for all would be {plan.uniform:.4g}"
    )
    show_line(f"{settings.evaluations:,} evaluations, {settings.batch} at once, on {settings.scoring.images} images")


def _show(results: dict[str, Any], folder: Any, as_json: bool) -> None:
    from atmc_tool.cli.render import show_json, show_line, show_table

    if as_json:
        show_json(results)
        return
    best, measure = results["best"], results["budget"]["measure"]
    rows = [[name, rate] for name, rate in best["rates"].items()]
    show_table("Rates of the best strategy", ["layer", "kept"], rows)
    columns = ["network", "clean", "robust", "reward", measure]
    shown = {"dense": results["dense"], "best": best["outcome"], "best, on other images": results["confirmed"]}
    table = [
        [name, *(outcome[key] for key in ("clean", "robust", "reward", measure))]
        for name, outcome in shown.items()
        if outcome is not None
    ]
    show_table("Accuracy on held-out training images", columns, table)
    show_line(
        f"{results['proposed']} strategies proposed, {results['evaluated']} evaluated; best: number {best['number']}"
    )
    show_line(f"{folder.strategy}   next: atmc-tool compress MODEL --strategy {folder.strategy}; report: {folder.page}")


def _draw(folders: tuple[Path, ...], output: Path, overwrite: bool) -> None:
    from atmc_tool.cli.render import show_line
    from atmc_tool.cli.search_folder import SearchFolder, read_record
    from atmc_tool.files import write_atomic
    from evaluators.report.search_report import search_report

    if output.exists() and not overwrite:
        raise UsageError(f"{output} is there", hint="--overwrite replaces it, -o writes elsewhere")
    records = [read_record(SearchFolder(folder)) for folder in folders]
    write_atomic(output, search_report(f"{len(records)} searches", records, {}))
    show_line(f"report: {output}")
