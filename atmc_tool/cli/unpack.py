"""`atmc-tool unpack`: model.atmc back to the plain dense state dict. Needs torch for .pt alone."""

from dataclasses import replace
from pathlib import Path

import click

from atmc_tool.cli.options import PATH, as_json, config_sources, run_folder, verbosity
from atmc_tool.errors import UsageError


@click.command("unpack", epilog="Example: atmc-tool unpack atmc-run/model.atmc -o model.safetensors")
@click.argument("source", metavar="[RUN|model.atmc]", type=PATH, required=False)
@click.option("-o", "--output", type=PATH, help="A .safetensors or .pt; default: model.safetensors beside model.atmc.")
@click.option("--shrink", is_flag=True, help="Without filters and channels that do nothing, and without the card.")
@click.option("--overwrite", is_flag=True, help="Replace the output where it is already there.")
@run_folder
@config_sources
@as_json
@verbosity
def command(source: Path | None, output: Path | None, shrink: bool, overwrite: bool, as_json: bool) -> None:
    """Unpack model.atmc to the dense weights, for the original network's code.

    The file is a state dict under the network's own names, with the model card, so that `compress` takes it again. The
    same model.atmc gives the same bytes.
    """
    from atmc_tool.cli.export import check_free, show_files
    from atmc_tool.cli.render import show_line
    from atmc_tool.cli.run_folder import MODEL, locate
    from atmc_tool.cli.settings import resolve
    from atmc_tool.files import read_bytes, write_atomic
    from exporters.atmc_file import LIMITS, read_atmc
    from exporters.channel_removal import remove_channels
    from exporters.dense import dense_safetensors, dense_torch

    writers = {".safetensors": dense_safetensors, ".pt": dense_torch}
    if output is not None and output.suffix not in writers:
        raise UsageError(f"can't unpack to {output}", expected=" or ".join(writers), got=output.suffix or "no suffix")
    found = locate(source, resolve().run, MODEL)
    target = output or found.with_suffix(".safetensors")
    check_free([target], overwrite)
    model = read_atmc(found)
    small, removal = remove_channels(model) if shrink else (model, None)
    if removal is not None:  # the card's network has other shapes
        small = replace(small, manifest={key: fact for key, fact in small.manifest.items() if key != "card"})
    content = writers[target.suffix](small)
    write_atomic(target, content)
    show_files("Unpacked", {found: read_bytes(found, LIMITS.file_bytes), target: content}, as_json)
    if removal is not None and not as_json:
        show_line(f"{target}: {removal}")
