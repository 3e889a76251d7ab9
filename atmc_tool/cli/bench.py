"""`atmc-tool bench`: how fast a file runs beside its dense network. Needs no torch."""

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from atmc_tool.cli.options import PATH, as_json, config_sources, run_folder, verbosity
from atmc_tool.errors import InputError

if TYPE_CHECKING:
    from evaluators.latency import Measured, Speed

DENSE = "dense"
LESS = "less"  # is better


@click.command("bench", epilog="Example: atmc-tool bench atmc-run/model.onnx --batch 1 --batch 32 --threads 1")
@click.argument("artefact", metavar="[RUN|model.onnx|model.atmc]", type=PATH, required=False)
@click.option("--against", default=DENSE, show_default=True, help="The network's dense form, or another ONNX file.")
@click.option(
    "--batch", "batches", type=click.IntRange(1), multiple=True, help="Images in a call; repeatable; default 1."
)
@click.option("--threads", type=click.IntRange(1), help="Threads within an operator; default: as many as cores.")
@click.option("--rounds", type=click.IntRange(2), default=7, show_default=True, help="In each of 3 processes.")
@click.option("--provider", type=click.Choice(["cpu", "cuda"]), default="cpu", show_default=True)
@run_folder
@config_sources
@as_json
@verbosity
def command(
    artefact: Path | None,
    against: str,
    batches: tuple[int, ...],
    threads: int | None,
    rounds: int,
    provider: str,
    as_json: bool,
) -> None:
    """Measure how fast an exported file runs, loads, and how much memory that takes, beside its dense network.

    Both files take turns in processes of their own on the same provider. Says "no speed-up" where the difference lies
    within the spread. A model.atmc is exported for it; the dense form of an ONNX file is made from the model.atmc that
    it states as its source.
    """
    from atmc_tool.cli.render import counted, show_json
    from atmc_tool.cli.run_folder import ONNX, locate
    from atmc_tool.cli.settings import resolve
    from atmc_tool.machine import processor
    from evaluators.latency import VERSION, measure, speed

    run = resolve().run
    path = artefact if artefact is not None and artefact.suffix == ".atmc" else locate(artefact, run, ONNX)
    sizes = sorted({*batches} or {1})
    with tempfile.TemporaryDirectory() as folder, counted("measuring") as progress:
        pair = _pair(path, against, run, Path(folder))
        dense, exported = measure(pair, sizes, provider=provider, threads=threads, rounds=rounds, progress=progress)
    speeds = [speed(dense.timings[batch], exported.timings[batch]) for batch in sizes]
    names = {"against": against, "artefact": str(path)}
    if as_json:
        settings = {"provider": provider, "threads": threads, "rounds": rounds, **processor(), "onnxruntime": VERSION}
        files = {
            side: {"name": names[side], **each.to_json()} for side, each in zip(names, (dense, exported), strict=True)
        }
        show_json({"settings": settings, **files, "speed": [each.to_json() for each in speeds]})
    else:
        _show(names, dense, exported, speeds, provider)


def _pair(path: Path, against: str, run: Path, folder: Path) -> list[Path]:
    """The two ONNX files to measure, the one to compare with first; those that have to be made go into `folder`.

    Raises:
        InputError: a file is missing or damaged, or the model.atmc that `path` was made of is not there.
    """
    from atmc_tool.cli.export import exported
    from atmc_tool.files import read_bytes, sha256, write_atomic
    from exporters.atmc_file import LIMITS, read_atmc
    from exporters.onnx_file import build_onnx

    own, other = path, Path(against)
    if path.suffix == ".atmc" or against == DENSE:
        source = path if path.suffix == ".atmc" else _source(path, run)
        model, digest = read_atmc(source), sha256(read_bytes(source, LIMITS.file_bytes))
        if path.suffix == ".atmc":
            own = folder / "exported.onnx"
            write_atomic(own, exported(model, digest)[0])
        if against == DENSE:
            other = folder / "dense.onnx"
            write_atomic(other, build_onnx(model, digest, dense=True))
    if not other.is_file():
        raise InputError(f"{other} is not there", expected="dense, or an ONNX file", hint="name it by --against")
    return [other, own]


def _source(path: Path, run: Path) -> Path:
    """The model.atmc that the ONNX file `path` was made of.

    Raises:
        InputError: `path` is damaged, or its source is neither beside it nor in the folder `run`.
    """
    from atmc_tool.cli.run_folder import MODEL
    from atmc_tool.files import read_bytes, sha256
    from evaluators.classifier import read_onnx
    from exporters.atmc_file import LIMITS

    stated = {entry.key: entry.value for entry in read_onnx(path).metadata_props}.get("atmc_tool.source_sha256")
    for folder in (path.parent, run):
        found = folder / MODEL
        if found.is_file() and sha256(read_bytes(found, LIMITS.file_bytes)) == stated:
            return found
    hint = "name the model.atmc instead, or another ONNX file by --against"
    raise InputError(f"the {MODEL} that {path} was made of is not there, so there is no dense form of it", hint=hint)


def _show(
    names: Mapping[str, str], against: "Measured", artefact: "Measured", speeds: Sequence["Speed"], provider: str
) -> None:
    from atmc_tool.cli.render import show_line, show_table

    sides = (against.to_json(), artefact.to_json())
    rows: list[list[object]] = [
        ["bytes", LESS, *(side["bytes"] for side in sides)],
        ["loading, ms", LESS, *(1e3 * side["load_seconds"] for side in sides)],
        ["memory while loading, peak, MB", LESS, *(_megabytes(side["load_peak_bytes"]) for side in sides)],
        ["memory in all, peak, MB", LESS, *(_megabytes(side["peak_bytes"]) for side in sides)],
    ]
    for ours, theirs in zip(*(side["batches"] for side in sides), strict=True):
        name = f"batch {ours['batch']}:"
        rows += [[f"{name} {key}, ms", LESS, 1e3 * ours[key], 1e3 * theirs[key]] for key in ("p50", "p95")]
        rows.append([f"{name} images per second", "more", *(side["images_per_second"] for side in (ours, theirs))])
    title = f"{names['artefact']} against {names['against']}, onnxruntime {provider}"
    compared = [[*row, _ratio(row[2], row[3])] for row in rows]
    show_table(title, ["", "better", names["against"], Path(names["artefact"]).name, "quotient"], compared)
    for each in speeds:
        show_line(f"batch {each.batch}: {speed_line(each)}", bold=True)


def speed_line(speed: "Speed") -> str:
    """The verdict with the ratio of the median latencies and its spread over the rounds."""
    spread = f"{speed.ratio:.2f} times as fast (spread over the rounds {speed.low:.2f} to {speed.high:.2f})"
    return f"{speed.verdict}: {spread}"


def _megabytes(size: float | None) -> float | None:
    return None if size is None else size / 1e6


def _ratio(first: object, second: object) -> str | None:
    if not isinstance(first, int | float) or not isinstance(second, int | float) or not first:
        return None
    return f"{second / first:.2f}"
