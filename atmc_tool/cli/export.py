"""`atmc-tool export`: from model.atmc to the files that others read. Needs no torch."""

from pathlib import Path
from typing import TYPE_CHECKING

import click

from atmc_tool.cli.options import PATH, as_json, config_sources, setting, verbosity
from atmc_tool.errors import UsageError

if TYPE_CHECKING:
    from atmc_tool.compressed import CompressedModel


@click.command("export", epilog="Example: atmc-tool export --onnx")
@click.argument("source", metavar="[RUN|model.atmc]", type=PATH, required=False)
@click.option("--onnx", is_flag=True, help="One self-contained file of standard operators that decodes its weights.")
@click.option(
    "--format",
    "onnx_format",
    type=click.Choice(["compact", "dense"]),
    help="Of the ONNX file: compact (default) decodes its weights; dense holds them as they are, without functions.",
)
@click.option("--safetensors", is_flag=True, help="The plain dense state dict, for the original network's code.")
@click.option("-o", "--output", type=PATH, help="Default: model.onnx or model.safetensors beside model.atmc.")
@click.option("--overwrite", is_flag=True, help="Replace the output where it is already there.")
@setting("run", "--run", type=PATH, help="The run folder; default: atmc-run, or what atmc.yaml says.")
@config_sources
@as_json
@verbosity
def command(
    source: Path | None,
    onnx: bool,
    onnx_format: str | None,
    safetensors: bool,
    output: Path | None,
    overwrite: bool,
    as_json: bool,
) -> None:
    """Export model.atmc to ONNX, or to a dense safetensors file."""
    from atmc_tool.cli.render import show_json, show_table
    from atmc_tool.cli.run_folder import MODEL, locate
    from atmc_tool.cli.settings import resolve
    from atmc_tool.files import read_bytes, sha256, write_atomic
    from exporters.atmc_file import LIMITS, read_atmc

    suffixes = [suffix for suffix, wanted in ((".onnx", onnx), (".safetensors", safetensors)) if wanted]
    if not suffixes:
        raise UsageError("export to what?", expected="--onnx or --safetensors")
    if onnx_format and not onnx:
        raise UsageError("--format is of the ONNX file", expected="--onnx with it")
    if output is not None and len(suffixes) > 1:
        raise UsageError("-o names one file", expected="--onnx or --safetensors with it", got="both")
    found = locate(source, resolve().run, MODEL)
    outputs = {suffix: output or found.with_suffix(suffix) for suffix in suffixes}
    for path in outputs.values():
        if path.exists() and not overwrite:
            raise UsageError(f"{path} exists", hint="--overwrite replaces it, -o names another file")
    model, content = read_atmc(found), read_bytes(found, LIMITS.file_bytes)
    digest, dense = sha256(content), onnx_format == "dense"
    files = {found: content, **{path: exported(model, suffix, digest, dense) for suffix, path in outputs.items()}}
    for path in outputs.values():
        write_atomic(path, files[path])
    facts = {str(path): {"bytes": len(file), "sha256": sha256(file)} for path, file in files.items()}
    if as_json:
        source_facts, *others = ({"path": path, **fact} for path, fact in facts.items())
        show_json({"source": source_facts, "files": others})
    else:
        rows = [[path, fact["bytes"], fact["sha256"]] for path, fact in facts.items()]
        show_table("Exported", ["file", "bytes", "sha256"], rows)


def exported(model: "CompressedModel", suffix: str, source_digest: str, dense: bool = False) -> bytes:
    """`model`, whose file has `source_digest`, as `.onnx`, which `dense` is about, or `.safetensors`."""
    if suffix == ".safetensors":
        from exporters.dense import dense_safetensors

        return dense_safetensors(model)
    from exporters.onnx_file import build_onnx

    return build_onnx(model, source_digest, dense=dense)
