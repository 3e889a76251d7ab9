"""`atmc-tool export`: from model.atmc to the files that others read. Needs no torch."""

from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from atmc_tool.cli.options import PATH, as_json, config_sources, setting, verbosity
from atmc_tool.errors import UsageError

if TYPE_CHECKING:
    from atmc_tool.compressed import CompressedModel
    from exporters.channel_removal import Removal


@click.command("export", epilog="Example: atmc-tool export --onnx")
@click.argument("source", metavar="[RUN|model.atmc]", type=PATH, required=False)
@click.option("--onnx", is_flag=True, help="One self-contained file of standard operators that decodes its weights.")
@click.option("--safetensors", is_flag=True, help="The plain dense state dict, for the original network's code.")
@click.option("--shrink", is_flag=True, help="Safetensors without the filters and channels that do nothing.")
@click.option("-o", "--output", type=PATH, help="Default: model.onnx or model.safetensors beside model.atmc.")
@click.option("--overwrite", is_flag=True, help="Replace the output where it is already there.")
@setting("run", "--run", type=PATH, help="The run folder; default: atmc-run, or what atmc.yaml says.")
@config_sources
@as_json
@verbosity
def command(
    source: Path | None,
    onnx: bool,
    safetensors: bool,
    shrink: bool,
    output: Path | None,
    overwrite: bool,
    as_json: bool,
) -> None:
    """Export model.atmc to ONNX, or to a dense safetensors file.

    Filters and channels that do nothing are left out of the ONNX file where that makes it smaller or faster.
    """
    from atmc_tool.cli.render import show_json, show_line, show_table
    from atmc_tool.cli.run_folder import MODEL, locate
    from atmc_tool.cli.settings import resolve
    from atmc_tool.files import read_bytes, sha256, write_atomic
    from exporters.atmc_file import LIMITS, read_atmc

    suffixes = [suffix for suffix, wanted in ((".onnx", onnx), (".safetensors", safetensors)) if wanted]
    if not suffixes:
        raise UsageError("export to what?", expected="--onnx or --safetensors")
    if shrink and not safetensors:
        raise UsageError("--shrink is about the dense state dict", expected="--safetensors with it")
    if output is not None and len(suffixes) > 1:
        raise UsageError("-o names one file", expected="--onnx or --safetensors with it", got="both")
    found = locate(source, resolve().run, MODEL)
    outputs = {suffix: output or found.with_suffix(suffix) for suffix in suffixes}
    for path in outputs.values():
        if path.exists() and not overwrite:
            raise UsageError(f"{path} exists", hint="--overwrite replaces it, -o names another file")
    model, content = read_atmc(found), read_bytes(found, LIMITS.file_bytes)
    made = {path: exported(model, suffix, sha256(content), shrink) for suffix, path in outputs.items()}
    files = {found: content, **{path: file for path, (file, _) in made.items()}}
    for path in outputs.values():
        write_atomic(path, files[path])
    facts: dict[str, dict[str, Any]] = {
        str(path): {"bytes": len(file), "sha256": sha256(file)} for path, file in files.items()
    }
    removals = {str(path): removal for path, (_, removal) in made.items() if removal is not None}
    if as_json:
        for name, removal in removals.items():
            facts[name]["removed"] = asdict(removal)
        source_facts, *others = ({"path": name, **fact} for name, fact in facts.items())
        show_json({"source": source_facts, "files": others})
    else:
        rows = [[name, fact["bytes"], fact["sha256"]] for name, fact in facts.items()]
        show_table("Exported", ["file", "bytes", "sha256"], rows)
        for name, removal in removals.items():
            show_line(f"{name}: {removal}")


def exported(
    model: "CompressedModel", suffix: str, source_digest: str, shrink: bool = False
) -> tuple[bytes, "Removal | None"]:
    """`model`, whose file has `source_digest`, as a file that ends in `suffix`, and what was removed from it.

    suffix: `.onnx`, without the channels that do nothing where that pays, or `.safetensors`, without them to `shrink`
    """
    from exporters.channel_removal import remove_channels

    if suffix == ".safetensors":
        from exporters.dense import dense_safetensors

        small, removal = remove_channels(model) if shrink else (model, None)
        if removal is not None:  # the card's network has other shapes
            small = replace(small, manifest={key: fact for key, fact in small.manifest.items() if key != "card"})
        return dense_safetensors(small), removal
    from exporters.onnx_file import build_onnx

    whole, (small, removal) = build_onnx(model, source_digest), remove_channels(model)
    if removal is None:
        return whole, None
    content = build_onnx(small, source_digest)
    # what constants add to weights costs bytes, no more of them than there is speed to gain
    return (content, removal) if len(content) <= removal.times * len(whole) else (whole, None)
