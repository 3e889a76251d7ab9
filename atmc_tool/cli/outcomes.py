"""The runs of a comparison as results, read from the files that they left, and the files of results themselves."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from atmc_tool import __version__
from atmc_tool.budget import compressible
from atmc_tool.cli.comparison import Job, Plan
from atmc_tool.cli.measurement import measure
from atmc_tool.cli.output_folder import OutputFolder
from atmc_tool.cli.run_folder import REPORT, RunFolder
from atmc_tool.cli.start import Start, copied
from atmc_tool.cli.subject import versions
from atmc_tool.devices import select_device
from atmc_tool.distributed import Ranks
from atmc_tool.errors import InputError
from atmc_tool.files import read_bytes, write_atomic
from atmc_tool.grid import DENSE
from atmc_tool.machine import machine
from atmc_tool.metrics import METRICS, read_metrics
from atmc_tool.models.reading import read_model
from atmc_tool.tied import own_state
from evaluators.comparison import Outcome, Run, points, to_csv
from evaluators.report.comparison_report import Comparison, comparison_figure, comparison_report
from exporters.atmc_file import LIMITS, describe, read_atmc
from exporters.dense import dense_bytes

MAX_REPORT_BYTES = 1 << 24
RESULTS, TABLE, PAGE, FIGURE = "results.json", "results.csv", "compare.html", "compare.svg"


def run_of(job: Job, outcome: Outcome | None, error: str | None = None) -> Run:
    """`job` with what it has made, or why it failed."""
    compress = None if job.cell is None else job.config.compress
    return Run(
        name=job.name,
        label=job.label,
        method=job.label if compress is None else compress.method,
        budget=None if job.cell is None else job.cell.budget.text,
        bits=None if compress is None else compress.bits,
        seed=job.seed,
        steps=job.cost.steps,
        passes=job.cost.passes,
        passes_per_image=job.cost.per_image,
        outcome=outcome,
        error=error,
    )


def outcome_of(plan: Plan, job: Job) -> Outcome:
    """What the finished `job` has made.

    Raises:
        InputError: its files are damaged or do not say what was measured.
    """
    seconds = _seconds(job.folder)
    if job.cell is None:
        card = read_model(job.result).card
        found = _dense_outcome(plan.start, {} if card is None else card.metrics, seconds, job.result)
        best = max((share for share in _validation(job.folder) if share is not None), default=None)
        return replace(found, validation_robust=best)
    model, content = read_atmc(job.result), read_bytes(job.result, LIMITS.file_bytes)
    totals = describe(content)["totals"]
    metrics = model.manifest.get("metrics", {}).get("compressed", {})
    return Outcome(
        kept=totals["kept"],
        weights=totals["weights"],
        dense_bytes=dense_bytes(model),
        nominal_bytes=-(-totals["nominal_bits"] // 8),
        file_bytes=len(content),
        seconds=seconds,
        worst_case=_worst_case(job) if job.verify else None,
        validation_robust=_validation(job.folder)[-1],
        **_measured(metrics, job.result),
    )


def given_dense(plan: Plan) -> Run:
    """The given dense network, measured as all runs are."""
    start, seed = plan.start, plan.grid.seeds[0]
    device = select_device(start.config.device, Ranks())
    state = copied(own_state(start.network), device)
    start.network.to(device)
    mean, std, data = start.card.mean, start.card.std, start.data
    evaluation = start.config.evaluation
    facts = measure(start.network, state, mean, std, data, start.threat_model, evaluation, "the dense network", Ranks())
    outcome = _dense_outcome(start, facts, None, plan.grid.dense or Path())
    return Run(DENSE, DENSE, DENSE, None, None, seed, None, None, None, outcome)


def _dense_outcome(start: Start, metrics: Mapping[str, Any], seconds: float | None, file: Path) -> Outcome:
    weights = sum(weight.numel() for weight in compressible(start.network)[0].values())
    size = 4 * sum(tensor.numel() for tensor in own_state(start.network).values())
    return Outcome(weights, weights, size, size, size, seconds=seconds, **_measured(metrics, file))


def _measured(metrics: Mapping[str, Any], file: Path) -> dict[str, Any]:
    """The measured facts under the names of `Outcome`."""
    same = ("clean_accuracy", "robust_accuracy", "attack", "norm", "eps", "restarts", "n")
    try:
        return {
            **{name: metrics[name] for name in same},
            "attack_steps": metrics["steps"],
            "attack_seed": metrics["seed"],
        }
    except KeyError as error:
        raise InputError(f"{file} does not say what was measured", got=f"no {error}") from error


def _worst_case(job: Job) -> float | None:
    """Accuracy under all attacks on the exported file; None where `verify` could not attack it."""
    path = job.folder.path / REPORT
    try:
        robust = json.loads(read_bytes(path, MAX_REPORT_BYTES))["robust"]
        return None if robust is None else float(robust["accuracy"])
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path} is damaged", hint="remove it and go on with --resume") from error


def _validation(folder: RunFolder) -> list[float | None]:
    """Robust accuracy on held-out training images, epoch by epoch, after a None for none at all."""
    return [None, *(line.get("validation_robust") for line in read_metrics(folder.path / METRICS))]


def _seconds(folder: RunFolder) -> float | None:
    lines = read_metrics(folder.path / METRICS)
    return lines[-1].get("seconds") if lines else None


def write_results(
    plan: Plan, runs: Sequence[Run], folder: OutputFolder, grid: str, command: str, threads: int | None
) -> dict[str, Any]:
    """Write results.json, results.csv, compare.html and compare.svg; the content of the first.

    threads: of a run, where they are not those of this process
    """
    facts = machine(select_device(plan.start.config.device, Ranks()))
    facts |= {} if threads is None else {"threads": threads}
    results = {
        "atmc_tool": __version__,
        "command": command,
        "versions": versions(),
        "machine": facts,
        "data": {"name": plan.start.data.name, "sha256": plan.start.data.digest},
        "planned": plan.planned,
        "runs": [run.to_json() for run in runs],
        "points": [point.to_json() for point in points(runs)],
    }
    comparison = Comparison(
        name=folder.name,
        runs=runs,
        planned=plan.planned,
        labels=[entry.label for entry in plan.grid.methods],
        facts={
            "command": command,
            "data": plan.start.data.name,
            "network": plan.start.card.arch,
            **{name: str(value) for name, value in facts.items()},
            **versions(),
        },
        grid=grid,
    )
    write_atomic(folder.path / RESULTS, (json.dumps(results, indent=2) + "\n").encode())
    write_atomic(folder.path / TABLE, to_csv(runs).encode())
    write_atomic(folder.path / PAGE, comparison_report(comparison))
    figure = comparison_figure(comparison)
    if figure is not None:
        write_atomic(folder.path / FIGURE, figure.encode())
    return results
