"""`atmc-tool report`: what is seen of a run or of a verification, as one HTML file."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from atmc_tool.cli.options import PATH, as_json, verbosity
from atmc_tool.errors import InputError, UsageError

if TYPE_CHECKING:
    from atmc_tool.model_card import ModelCard
    from evaluators.report.run_report import Results

MAX_CONFIG_BYTES = 1 << 20
MAX_VERIFY_BYTES = 64 << 20


@click.command("report", epilog="Example: atmc-tool report atmc-run -o run.html")
@click.argument("run", metavar="[RUN|verify.json]", required=False, type=PATH)
@click.option(
    "-o", "--output", type=PATH, help="The file to write; default: report.html in the run folder, verify.html."
)
@as_json
@verbosity
def command(run: Path | None, output: Path | None, as_json: bool) -> None:
    """Write the report of a run: its course in figures, what came out, its settings.

    RUN is the folder of a run of train or compress (default: atmc-run, or what atmc.yaml says), finished or not. Both
    write the report themselves when they end. A report.html is replaced, no other file is.

    Of a verify.json, the page that verify wrote, but for the images that fool the network: only verify has them.
    """
    from atmc_tool.cli.run_folder import RUN_REPORT, RunFolder
    from atmc_tool.cli.settings import resolve
    from atmc_tool.files import write_atomic
    from atmc_tool.metrics import METRICS
    from evaluators.report.verify_report import verify_report

    if run is not None and run.is_file() and run.suffix == ".json":
        target = output or run.with_suffix(".html")
        _check_free(target)
        write_atomic(target, verify_report(_read_verify(run)))
        _say(target, as_json)
        return
    folder = RunFolder(run or resolve().run)
    if not folder.config.is_file() and not (folder.path / METRICS).is_file():
        raise InputError(f"{folder.path} is not the folder of a run", expected=f"{folder.config.name} in it")
    target = output or folder.path / RUN_REPORT
    if target.name != RUN_REPORT or target.is_dir():
        _check_free(target)
    write_report(folder.path, target, results_of(folder.path))
    _say(target, as_json)


def _check_free(target: Path) -> None:
    if target.exists():
        raise UsageError(f"{target} exists", hint="name a file that is not there yet with -o")


def _say(target: Path, as_json: bool) -> None:
    from atmc_tool.cli.render import show_json, show_line

    if as_json:
        show_json({"report": str(target)})
    else:
        show_line(f"report: {target}")


def _read_verify(path: Path) -> dict[str, Any]:
    """What `verify` wrote to `path`.

    Raises:
        InputError: missing, too large, or no such file.
    """
    from atmc_tool.files import read_bytes

    try:
        found = json.loads(read_bytes(path, MAX_VERIFY_BYTES))
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} is damaged", expected="JSON", got=str(error)) from error
    if not isinstance(found, dict) or not isinstance(found.get("verdict"), dict):
        raise InputError(f"{path} is no report of verify", expected="a verify.json, or the folder of a run")
    return found


def report_at_end(path: Path, results: "Results") -> None:
    """Write the report of the finished run in folder `path` there; where that fails, say so and go on."""
    from atmc_tool.cli.render import note
    from atmc_tool.cli.run_folder import RUN_REPORT

    try:
        write_report(path, path / RUN_REPORT, results)
    except Exception as error:  # the run's result is there, and nothing about a picture may spoil it
        note(f"warning: no report was written: {type(error).__name__}: {error}")
    else:
        note(f"report: {path / RUN_REPORT}")


def write_report(path: Path, target: Path, results: "Results | None") -> None:
    """Write the report of the run in folder `path` to `target`.

    Raises:
        InputError: its configuration can't be read.
        AtmcError: `target` can't be written.
    """
    from atmc_tool.cli.run_folder import RunFolder
    from atmc_tool.cli.watch import look
    from atmc_tool.files import read_bytes, write_atomic
    from evaluators.report.run_report import Run, run_report

    view, config = look(path), RunFolder(path).config
    state = "not finished: running, interrupted or killed" if view.state == "running" else view.state
    text = read_bytes(config, MAX_CONFIG_BYTES).decode(errors="replace") if config.is_file() else ""
    write_atomic(target, run_report(Run(str(path), state, view.lines, text, results)))


def results_of(path: Path) -> "Results | None":
    """What the run in folder `path` has made, read from its files; None where it is not finished."""
    from atmc_tool.cli.run_folder import RunFolder
    from atmc_tool.cli.watch import made

    file = made(path)
    if file is None:
        return None
    if file == RunFolder(path).model:
        return _compressed_results(file)
    from atmc_tool.models.reading import read_model

    return trained_results(file, read_model(file).card)


def _compressed_results(file: Path) -> "Results":
    from atmc_tool.cli.compress import sizes
    from atmc_tool.files import read_bytes
    from evaluators.report.run_report import Results
    from exporters.atmc_file import LIMITS, describe, read_atmc

    model, content = read_atmc(file), read_bytes(file, LIMITS.file_bytes)
    totals, measured = describe(content)["totals"], model.manifest.get("metrics")
    return Results(
        sizes(model, content), measured if isinstance(measured, dict) else {}, (totals["kept"], totals["weights"])
    )


def trained_results(file: Path, card: "ModelCard | None") -> "Results":
    """What a training that wrote `file` has made."""
    from evaluators.report.run_report import Results

    return Results({"trained network": file.stat().st_size}, {"trained": card.metrics} if card else {})
