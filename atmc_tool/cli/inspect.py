"""`atmc-tool inspect`: what a file is."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from atmc_tool.cli.options import PATH, as_json, verbosity

SHOWN_ELSEWHERE = {"path", "kind", "bytes", "sha256", "layers", "empty", "artefacts", "files"}


@click.command("inspect", epilog="Example: atmc-tool inspect atmc-run/model.atmc")
@click.argument("file", metavar="FILE", type=PATH)
@click.option("--trust-pickle", is_flag=True, help="Load a whole pickled module, which runs code in the file.")
@as_json
@verbosity
def command(file: Path, trust_pickle: bool, as_json: bool) -> None:
    """Say what a file is: shapes, kept, bits, bytes, digests.

    FILE is a model.pt, .safetensors, .atmc, .onnx or a run folder.
    """
    from atmc_tool.cli.inspection import inspect_path
    from atmc_tool.cli.render import show_json

    facts = inspect_path(file, trust_pickle)
    if as_json:
        show_json(facts)
    else:
        _show(facts)


def _show(facts: Mapping[str, Any]) -> None:
    from atmc_tool.cli.render import show_line, show_table

    if "files" in facts:
        show_line(f"{facts['path']}: {facts['kind']}, checkpoints: {', '.join(facts['checkpoints']) or 'none'}")
        rows = [[file["path"], file["bytes"], file["sha256"]] for file in facts["files"]]
        show_table("Files", ["file", "bytes", "sha256"], rows)
        for artefact in facts["artefacts"]:
            _show(artefact)
        return
    show_line(f"{facts['path']}: {facts['kind']}, {facts['bytes']:,} bytes, sha256 {facts['sha256']}", bold=True)
    for line in _lines({key: value for key, value in facts.items() if key not in SHOWN_ELSEWHERE}):
        show_line(line)
    figures = ("kept", "values", "bits", "bytes")
    rows = [
        [layer["name"], "×".join(map(str, layer["shape"])) or "1", *(layer.get(key) for key in figures)]
        for layer in facts["layers"]
    ]
    show_table("Layers", ["name", "shape", "kept", "distinct values", "bits", "bytes"], rows)
    for name, units in facts.get("empty", {}).items():
        parts = [f"{len(unit['which'])} of {unit['of']} {what.removeprefix('empty_')}" for what, unit in units.items()]
        show_line(f"empty in {name}: {', '.join(parts)}")


def _lines(facts: Mapping[str, Any], prefix: str = "") -> list[str]:
    """One line for every group of values, one for every value that is in none; nothing for what is empty."""
    lines: list[str] = []
    for key, value in facts.items():
        if isinstance(value, Mapping) and any(isinstance(part, Mapping) for part in value.values()):
            lines += _lines(value, f"{prefix}{key}.")
        elif isinstance(value, Mapping):
            parts = [f"{name} {_plain(part)}" for name, part in value.items() if not _empty(part)]
            lines += [f"{prefix}{key}: {', '.join(parts)}"] if parts else []
        elif not _empty(value):
            lines.append(f"{prefix}{key}: {_plain(value)}")
    return lines


def _empty(value: object) -> bool:
    return value is None or value in ("", [])


def _plain(value: object) -> str:
    if isinstance(value, list):
        return f"({', '.join(_plain(part) for part in value)})"
    return f"{value:.6g}" if isinstance(value, float) else str(value)
