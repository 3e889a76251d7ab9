"""`atmc-tool quickstart`: the main job on real handwritten digits, through the command line itself."""

import json
import shlex
import subprocess
import sys
from pathlib import Path

import click

from atmc_tool.cli.options import PATH, is_quiet, verbosity
from atmc_tool.errors import UsageError

COMMANDS = (
    "train --data digits --arch digits-cnn --eps 0.1 --seed 0 --epochs 70 -o model.pt --overwrite",
    "compress model.pt --keep 0.05 --bits 4 --epochs 70 --overwrite",
    "export --onnx --overwrite",
    "verify",
)
MARKER = ".atmc-quickstart"  # in folders that this command made, and may make again
MADE_HERE = {"model.pt", "model.train", "atmc-run", MARKER}
GATE_FAILED = 5


@click.command("quickstart", epilog="Example: atmc-tool quickstart -o quickstart")
@click.option("-o", "--output", type=PATH, default=Path("quickstart"), show_default=True, help="Folder to work in.")
@verbosity
def command(output: Path) -> None:
    """Run the main job on real digits, in a few minutes.

    Trains, compresses, exports and verifies through the command line, and shows each command that it runs.
    """
    from atmc_tool.cli.render import show_line

    if output.exists() and not output.is_dir():
        raise UsageError(f"{output} is not a folder", hint="choose another one with -o")
    there = sorted(path.name for path in output.iterdir()) if output.is_dir() else []
    foreign = [name for name in there if name not in MADE_HERE]
    if foreign or (there and MARKER not in there):
        raise UsageError(
            f"{output} holds files of others ({(foreign or there)[0]})", hint="choose an empty folder with -o"
        )
    output.mkdir(parents=True, exist_ok=True)
    (output / MARKER).touch()
    code = 0
    quiet = ["-q"] if is_quiet() else []
    for line in COMMANDS:
        show_line(f"{output}$ atmc-tool {line}", bold=True)
        arguments = [sys.executable, "-m", "atmc_tool", *shlex.split(line), *quiet]
        code = subprocess.run(arguments, cwd=output, check=False).returncode
        if code not in (0, GATE_FAILED):
            break
    else:
        _show(output / "atmc-run")
    click.get_current_context().exit(code)


def _show(run: Path) -> None:
    from atmc_tool.cli.render import show_line, show_table
    from atmc_tool.cli.run_folder import MODEL, ONNX, REPORT
    from atmc_tool.cli.verdict import verdict_line
    from exporters.atmc_file import read_atmc
    from exporters.dense import dense_bytes, gzip_dense_bytes

    model, report = read_atmc(run / MODEL), json.loads((run / REPORT).read_text())
    dense, compressed = (model.manifest["metrics"][name] for name in ("dense", "compressed"))
    sizes = {
        "dense weights": dense_bytes(model),
        "gzip of the pruned dense weights": gzip_dense_bytes(model),
        MODEL: (run / MODEL).stat().st_size,
        ONNX: (run / ONNX).stat().st_size,
    }
    show_table(
        "Size",
        ["file", "bytes", "times smaller"],
        [[name, size, f"{sizes['dense weights'] / size:.1f}"] for name, size in sizes.items()],
    )
    pgd = report["attacks"][0]
    rows = [
        ["clean", dense["clean_accuracy"], compressed["clean_accuracy"], report["clean"]["accuracy"]],
        [
            f"robust ({pgd['name']}, worst of {pgd['parameters']['restarts']}, eps {dense['eps']})",
            dense["robust_accuracy"],
            compressed["robust_accuracy"],
            pgd["accuracy"],
        ],
        ["robust, worst case over all attacks", None, None, report["robust"]["accuracy"]],
    ]
    show_table(
        f"Accuracy on {dense['n']} test images", ["accuracy", "dense", "compressed", f"{ONNX} in onnxruntime"], rows
    )
    show_line(verdict_line(report), bold=True)
    destination = (run / REPORT).resolve()
    show_line(f"report: {destination.with_suffix('.html')}, for programs {destination}")
