"""`atmc-tool export`: from model.atmc to the file that runs. Needs no torch."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import click

from atmc_tool.cli.options import PATH, as_json, config_sources, data, setting, verbosity
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
@click.option("--int8", is_flag=True, help="A larger file that computes in int8; its ranges come from training images.")
@data
@click.option("-o", "--output", type=PATH, help="Default: model.onnx or model.int8.onnx beside model.atmc.")
@click.option("--overwrite", is_flag=True, help="Replace the output where it is already there.")
@setting("run", "--run", type=PATH, help="The run folder; default: atmc-run, or what atmc.yaml says.")
@config_sources
@as_json
@verbosity
def command(
    source: Path | None,
    onnx: bool,
    onnx_format: str | None,
    int8: bool,
    output: Path | None,
    overwrite: bool,
    as_json: bool,
) -> None:
    """Export model.atmc to ONNX.

    --data and --data-dir matter for --int8 alone; by default the run's own data. The dense weights for the original
    network's code: atmc-tool unpack.
    """
    from atmc_tool.cli.run_folder import INT8, MODEL, ONNX, locate
    from atmc_tool.cli.settings import resolve
    from atmc_tool.files import read_bytes, sha256, write_atomic
    from exporters.atmc_file import LIMITS, read_atmc

    names = [name for name, wanted in ((ONNX, onnx), (INT8, int8)) if wanted]
    if onnx_format and not onnx:
        raise UsageError("--format is of the ONNX file", expected="--onnx with it")
    if not names:
        hint = "atmc-tool unpack gives the dense weights"
        raise UsageError("export to what?", expected="--onnx or --int8", hint=hint)
    if output is not None and len(names) > 1:
        raise UsageError("-o names one file", expected="--onnx or --int8 with it", got="both")
    found = locate(source, resolve().run, MODEL)
    targets = {name: output or found.with_suffix(name.removeprefix(Path(MODEL).stem)) for name in names}
    check_free(targets.values(), overwrite)
    model, content = read_atmc(found), read_bytes(found, LIMITS.file_bytes)
    digest, files = sha256(content), {found: content}
    for name, path in targets.items():
        if name == ONNX:
            files[path] = exported(model, digest, dense=onnx_format == "dense")
        else:
            from atmc_tool.cli.calibration import exported_int8

            files[path] = exported_int8(model, digest, found, resolve)
    for path in targets.values():
        write_atomic(path, files[path])
    show_files("Exported", files, as_json)


def exported(model: "CompressedModel", source_digest: str, *, dense: bool = False) -> bytes:
    """`model`, whose file has `source_digest`, as an ONNX file; `dense`: with plain weights."""
    from exporters.onnx_file import build_onnx

    return build_onnx(model, source_digest, dense=dense)


def check_free(paths: Iterable[Path], overwrite: bool) -> None:
    """Refuse to write over a file that is there, unless told to.

    Raises:
        UsageError: one of `paths` exists.
    """
    for path in paths:
        if path.exists() and not overwrite:
            raise UsageError(f"{path} exists", hint="--overwrite replaces it, -o names another file")


def show_files(title: str, files: Mapping[Path, bytes], as_json: bool) -> None:
    """Size and digest of the file that was read, the first, and of those that were written."""
    from atmc_tool.cli.render import show_json, show_table
    from atmc_tool.files import sha256

    facts = {str(path): {"bytes": len(content), "sha256": sha256(content)} for path, content in files.items()}
    if as_json:
        source, *others = ({"path": path, **fact} for path, fact in facts.items())
        show_json({"source": source, "files": others})
    else:
        show_table(title, ["file", "bytes", "sha256"], [[path, *fact.values()] for path, fact in facts.items()])
