"""`atmc-tool diff`: what two compressed networks differ in."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from atmc_tool.cli.options import PATH, as_json, verbosity

DIFFERENT = 1  # the exit code, as of diff


@click.command("diff", epilog="Example: atmc-tool diff old/model.atmc new/model.atmc")
@click.argument("first", metavar="RUN|A.atmc", type=PATH)
@click.argument("second", metavar="RUN|B.atmc", type=PATH)
@as_json
@verbosity
def command(first: Path, second: Path, as_json: bool) -> None:
    """Say what two compressed networks differ in: layers, kept, bits, bytes, values, digests, recorded metrics.

    Exits with 0 where the files are equal byte for byte, with 1 where they differ, and with 4 where one can't be read.
    """
    from atmc_tool.cli.difference import compare_files
    from atmc_tool.cli.render import show_json
    from atmc_tool.cli.run_folder import MODEL, locate

    facts = compare_files(*(locate(path, path, MODEL) for path in (first, second)))
    if as_json:
        show_json(facts)
    else:
        _show(facts)
    if not facts["equal"]:
        click.get_current_context().exit(DIFFERENT)


def _show(facts: Mapping[str, Any]) -> None:
    from atmc_tool.cli.render import show_line, show_table

    for name, file in zip("AB", facts["files"], strict=True):
        show_line(f"{name}: {file['path']}, {file['bytes']:,} bytes, level {file['level']}, sha256 {file['sha256']}")
    changed = [layer for layer in facts["layers"] if layer["change"] != "none"]
    if changed:
        columns = ["tensor", "change", "shape", "kept", "bits", "bytes", "elements that differ", "largest difference"]
        show_table("Tensors, A → B", columns, [_row(layer) for layer in changed])
        show_line(f"{len(changed)} of {len(facts['layers'])} tensors differ")
    if facts["graph"]:
        show_line("the graphs differ")
    if facts["facts"]:
        rows = [[name, *map(_plain, pair)] for name, pair in facts["facts"].items()]
        show_table("Recorded facts", ["fact", "A", "B"], rows, figures=False)
    show_line(verdict(facts), bold=True)


def verdict(facts: Mapping[str, Any]) -> str:
    """What the files are to each other, in a few words."""
    if facts["equal"]:
        return "equal, byte for byte"
    if facts["same_network"]:
        return "different files, the same network: every tensor and the graph are equal"
    return "different networks"


def _row(layer: Mapping[str, Any]) -> list[object]:
    a, b = (layer[side] or {} for side in ("first", "second"))
    shapes = ["×".join(map(str, side["shape"])) or "1" if side else None for side in (a, b)]
    cells = [_pair(*shapes), *(_pair(a.get(key), b.get(key)) for key in ("kept", "bits", "bytes"))]
    return [layer["name"], layer["change"], *cells, layer.get("differing"), layer.get("largest_difference")]


def _pair(a: object, b: object) -> object:
    """`a → b`; where both are the same, that."""
    return a if a == b else f"{_plain(a)} → {_plain(b)}"


def _plain(value: object) -> str:
    return "–" if value is None else f"{value:,}" if isinstance(value, int) else str(value)
