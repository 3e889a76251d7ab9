"""`atmc-tool compare`: a grid of methods, budgets and seeds, run one after the other or at a time, set side by side."""

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from atmc_tool.cli.options import PATH, as_json, new_or_old, verbosity
from atmc_tool.cli.pool import as_options, chosen_pool, pool_options
from atmc_tool.errors import AtmcError, InputError, UsageError
from atmc_tool.trials import Pool

if TYPE_CHECKING:
    from atmc_tool.cli.comparison import Plan
    from atmc_tool.cli.output_folder import OutputFolder
    from evaluators.comparison import Run

GRID = "grid.yaml"
DEFAULT = "atmc-compare"


@click.command("compare", epilog="Example: atmc-tool compare grid.yaml -o comparison --dry-run")
@click.argument("grid", metavar="GRID.yaml", type=PATH)
@click.option("-o", "--output", default=DEFAULT, show_default=True, help="Folder of everything, or fsspec URL.")
@click.option("--dry-run", is_flag=True, help="Show the runs, their sizes and what they cost; write nothing.")
@pool_options
@new_or_old
@as_json
@verbosity
def command(
    grid: Path,
    output: str,
    dry_run: bool,
    workers: int | None,
    ray: str | None,
    cpus: int | None,
    gpus: float | None,
    resume: bool,
    overwrite: bool,
    as_json: bool,
) -> None:
    """Run methods × budgets × seeds on one data set and set them side by side.

    GRID.yaml names methods, budgets, seeds and settings. All is checked before the first training. Every run takes the
    same steps and attack, unless its method's own settings say otherwise: the cost is in the results. Ctrl-C saves the
    state; --resume goes on with the runs that are not finished.
    """
    from atmc_tool.cli.launch import several
    from atmc_tool.cli.output_folder import output_folder
    from atmc_tool.grid import build_grid
    from atmc_tool.settings import read_yaml

    if several():
        raise UsageError("a comparison starts its processes itself", hint="start it without torchrun")
    pool = chosen_pool(workers, ray, cpus, gpus)
    if not grid.is_file():
        raise InputError(f"{grid} is not there", expected="a grid as YAML", hint="docs/compare.md has an example")
    asked = build_grid(read_yaml(grid))
    with output_folder(output) as folder:
        if not dry_run:
            _check_free(folder.path, resume=resume, overwrite=overwrite)
        from atmc_tool.cli.comparison import make_plan

        plan = make_plan(asked, folder.path)
        if dry_run:
            _show_plan(plan, as_json)
            return
        if overwrite:
            _clear(folder.path)
        for job in plan.jobs:
            job.check_same(plan.start.data.digest)
        _compare(plan, pool, grid, folder, as_json)


def _compare(plan: "Plan", pool: Pool, grid: Path, folder: "OutputFolder", as_json: bool) -> None:
    """Run everything and show it.

    Raises:
        AtmcError: a run failed; the others are there.
    """
    from atmc_tool.cli.comparison_runs import run_all
    from atmc_tool.cli.outcomes import write_results
    from atmc_tool.files import read_bytes, write_atomic
    from atmc_tool.settings import MAX_YAML_BYTES

    content = read_bytes(grid, MAX_YAML_BYTES)
    write_atomic(folder.path / GRID, content)
    command_line = shlex.join(["atmc-tool", "compare", str(grid), "-o", folder.name]) + as_options(pool)

    def record(runs: "list[Run]") -> dict[str, Any]:
        found = write_results(plan, runs, folder, content.decode(), command_line, pool.threads)
        folder.keep()
        return found

    runs = run_all(plan, pool, record)
    _show(runs, record(runs), folder.name, as_json)
    failed = [run.name for run in runs if run.error is not None]
    if failed:
        raise AtmcError(
            f"{len(failed)} of {len(runs)} runs failed: {', '.join(failed)}",
            hint=f"{folder.name}/results.json says why; --resume tries them again",
        )


def _check_free(folder: Path, *, resume: bool, overwrite: bool) -> None:
    if resume and overwrite:
        raise UsageError("--resume and --overwrite exclude each other", hint="keep the runs or replace them")
    if folder.exists() and not folder.is_dir():
        raise UsageError(f"{folder} is not a folder", hint="choose another one with -o")
    begun, there = (folder / GRID).is_file(), folder.is_dir() and any(folder.iterdir())
    if resume and not begun:
        raise UsageError(f"nothing to resume in {folder}", hint="leave out --resume to start a comparison")
    if there and not (resume or overwrite):
        raise UsageError(f"{folder} is not empty", hint="--resume goes on, --overwrite replaces, -o elsewhere")
    if there and overwrite and not begun:
        raise UsageError(f"{folder} holds no comparison to replace", hint="choose another folder with -o")


def _clear(folder: Path) -> None:
    """Remove what an earlier comparison left; files of others stay."""
    from atmc_tool.cli.outcomes import FIGURE, PAGE, RESULTS, TABLE
    from atmc_tool.cli.run_folder import RunFolder
    from atmc_tool.files import remove_leftovers
    from atmc_tool.grid import DENSE, NATURAL

    networks = [path for label in (DENSE, NATURAL) for path in folder.glob(f"{label}-seed*.pt")]
    for run in [*folder.glob("runs/*/"), *(path.with_suffix(".train") for path in networks)]:
        RunFolder(run).clear()
    for path in [*networks, *(folder / name for name in (GRID, RESULTS, TABLE, PAGE, FIGURE))]:
        path.unlink(missing_ok=True)
    remove_leftovers(folder)


def _show(runs: "list[Run]", results: dict[str, Any], folder: str, as_json: bool) -> None:
    from atmc_tool.cli.outcomes import PAGE
    from atmc_tool.cli.render import show_json, show_line, show_table
    from evaluators.comparison import points
    from evaluators.report.comparison_report import COLUMNS, measured, table

    if as_json:
        show_json(results)
        return
    columns, rows = table(points(runs), {name: COLUMNS[name] for name in COLUMNS if name != "steps"})
    show_table("Mean ± sample standard deviation over the runs", columns, rows)
    for text in measured(runs):
        show_line(text)
    show_line(f"report: {folder}/{PAGE}")


def _show_plan(plan: "Plan", as_json: bool) -> None:
    from atmc_tool.cli.render import show_json, show_line, show_table

    rows = plan.table()
    if as_json:
        show_json({"runs": rows})
        return
    names = {
        "run": "run",
        "kept": "kept",
        "nominal_bytes": "nominal bytes",
        "file_bytes": "bytes of model.atmc",
        "steps": "steps",
        "passes": "passes",
        "passes_per_image": "per image",
        "state": "state",
    }
    show_table(
        "Runs (sizes are estimated from weights before training)",
        list(names.values()),
        [[row[key] for key in names] for row in rows],
    )
    passes = sum(row["passes"] for row in rows if row["state"] != "finished")
    show_line(f"{len(rows)} runs, {passes:,} passes of one image through the network still to go")
