"""`atmc-tool export`: from model.atmc to the file that runs. Needs no torch."""

from collections.abc import Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from atmc_tool.cli.options import PATH, as_json, config_sources, data, given, run_folder, verbosity
from atmc_tool.errors import UsageError

if TYPE_CHECKING:
    from atmc_tool.compressed import CompressedModel
    from exporters.channel_removal import Removal
    from exporters.factored_execution import Factored


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
@run_folder
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

    Filters and channels that do nothing are left out, and with --onnx layers of low rank run as two, where that makes
    the file smaller or faster. --data and --data-dir matter for --int8 alone; by default the run's own data. The
    dense weights for the original network's code: atmc-tool unpack.
    """
    from atmc_tool.cli.render import show_line
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
    if not int8 and {"data.name", "data.dir"} & {*given(click.get_current_context())}:
        raise UsageError(
            "--data and --data-dir are for --int8, whose ranges come from images", expected="--int8 with it"
        )
    if output is not None and len(names) > 1:
        raise UsageError("-o names one file", expected="--onnx or --int8 with it", got="both")
    if output is not None and output.suffix != ".onnx":
        raise UsageError("-o is no ONNX file", expected="a name that ends in .onnx", got=output)
    found = locate(source, resolve().run, MODEL)
    targets = {name: output or found.with_suffix(name.removeprefix(Path(MODEL).stem)) for name in names}
    check_free(targets.values(), overwrite)
    model, content = read_atmc(found), read_bytes(found, LIMITS.file_bytes)
    digest, files, changes = sha256(content), {found: content}, {}
    for name, path in targets.items():
        if name == ONNX:
            files[path], changes[path] = exported(model, digest, dense=onnx_format == "dense")
        else:
            from atmc_tool.cli.calibration import exported_int8
            from exporters.channel_removal import remove_channels

            files[path] = exported_int8(remove_channels(model)[0], digest, found, resolve)
    for path in targets.values():
        write_atomic(path, files[path])
    facts = {path: {name: asdict(change) for name, change in each.items()} for path, each in changes.items()}
    show_files("Exported", files, as_json, facts)
    for path, each in changes.items():
        for change in each.values() if not as_json else ():
            show_line(f"{path}: {change}")


def exported(
    model: "CompressedModel", source_digest: str, *, dense: bool = False
) -> tuple[bytes, "dict[str, Removal | Factored]"]:
    """`model`, whose file has `source_digest`, as an ONNX file, and what was `removed` and `factored` in it.

    dense: with plain weights
    """
    from exporters.channel_removal import remove_channels
    from exporters.factored_execution import factor_execution
    from exporters.onnx_file import build_onnx

    changes: dict[str, Removal | Factored] = {}
    content = build_onnx(model, source_digest, dense=dense)
    small, removal = remove_channels(model)
    if removal is not None:
        cut = build_onnx(small, source_digest, dense=dense)
        # what constants add to weights costs bytes, no more of them than there is speed to gain
        if len(cut) <= removal.times * len(content):
            model, content, changes["removed"] = small, cut, removal
    split, factored = factor_execution(model)
    if factored is not None:
        content, changes["factored"] = build_onnx(split, source_digest, dense=dense), factored
    return content, changes


def check_free(paths: Iterable[Path], overwrite: bool) -> None:
    """Refuse to write over a file that is there, unless told to.

    Raises:
        UsageError: one of `paths` exists.
    """
    for path in paths:
        if path.exists() and not overwrite:
            raise UsageError(f"{path} exists", hint="--overwrite replaces it, -o names another file")


def show_files(
    title: str, files: Mapping[Path, bytes], as_json: bool, more: Mapping[Path, Mapping[str, Any]] | None = None
) -> None:
    """Size and digest of the file that was read, the first, and of those that were written; `more` in JSON alone."""
    from atmc_tool.cli.render import show_json, show_table
    from atmc_tool.files import sha256

    facts = {str(path): {"bytes": len(content), "sha256": sha256(content)} for path, content in files.items()}
    if as_json:
        added = {str(path): each for path, each in (more or {}).items()}
        source, *others = ({"path": path, **fact, **added.get(path, {})} for path, fact in facts.items())
        show_json({"source": source, "files": others})
    else:
        show_table(title, ["file", "bytes", "sha256"], [[path, *fact.values()] for path, fact in facts.items()])
