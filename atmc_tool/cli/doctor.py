"""`atmc-tool doctor`: what is installed here, what works, what is missing."""

import os
import platform
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import click

from atmc_tool import __version__
from atmc_tool.cli.options import as_json, verbosity
from atmc_tool.errors import AtmcError, MissingEnvironmentError

# Distribution → what does not run without it.
NEEDED = {
    "click": "everything",
    "numpy": "everything",
    "pydantic": "everything",
    "PyYAML": "everything",
    "rich": "everything",
    "array-api-compat": "train, compress, verify",
    "onnx": "compress, export, verify",
    "safetensors": "train, compress, export, verify",
    "scipy": "verify",
    "torch": "train, compress",
    "onnxscript": "compress",
    "scikit-learn": "the data set digits",
    "pillow": "image folders",
    "pooch": "downloads",
    "Jinja2": "reports",
    "matplotlib": "reports",
}
RUNTIMES = ("onnxruntime", "onnxruntime-gpu")
# What `export` and `verify` can't do without; the rest is needed on machines that train.
ESSENTIAL = {"click", "numpy", "pydantic", "PyYAML", "rich", "array-api-compat", "onnx", "safetensors", "scipy"}


@click.command("doctor", epilog="Example: atmc-tool doctor --json")
@as_json
@verbosity
def command(as_json: bool) -> None:
    """Show what is installed, what works, what is missing.

    Exits with 3 where something that export and verify need is missing.
    """
    facts = examine()
    if as_json:
        from atmc_tool.cli.render import show_json

        show_json(facts)
    else:
        _show(facts)
    if facts["missing_essentials"]:
        missing = ", ".join(facts["missing_essentials"])
        raise MissingEnvironmentError(f"missing packages: {missing}", hint="install atmc-tool again with pip")


def examine() -> dict[str, Any]:
    """The facts that `doctor` shows, as JSON."""
    packages = {name: _version(name) for name in (*NEEDED, *RUNTIMES)}
    missing = [name for name in sorted(ESSENTIAL) if packages[name] is None]
    if not any(packages[name] for name in RUNTIMES):
        missing.append("onnxruntime")
    return {
        "atmc_tool": __version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpus": _usable_cpus(),
        "packages": packages,
        "torch_devices": _torch_devices() if packages["torch"] else [],
        "onnxruntime_providers": {} if missing else {name: _session_error(name) or "works" for name in ("cpu", "cuda")},
        "data_dir": _data_dir(),
        "missing_essentials": missing,
    }


def _version(distribution: str) -> str | None:
    try:
        return version(distribution)
    except PackageNotFoundError:
        return None


def _usable_cpus() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _torch_devices() -> list[str]:
    import torch

    from atmc_tool.compute import has_bfloat16

    names = {"cpu": f"cpu, {torch.get_num_threads()} threads"}
    names |= {f"cuda:{i}": f"cuda:{i} {torch.cuda.get_device_name(i)}" for i in range(torch.cuda.device_count())}
    return [f"{name}, bfloat16" if has_bfloat16(torch.device(device)) else name for device, name in names.items()]


def _session_error(provider: str) -> str | None:
    """Why no session of onnxruntime can be made on `provider`; None where one was made and runs there.

    A provider that the package lists may still fail to load, so only a session tells.
    """
    from onnx import TensorProto, helper

    from evaluators.classifier import OrtClassifier

    image = helper.make_tensor_value_info("input", TensorProto.FLOAT, ["N", 1, 1, 2])
    logits = helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["N", 2])
    graph = helper.make_graph([helper.make_node("Flatten", ["input"], ["logits"])], "probe", [image], [logits])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    try:
        OrtClassifier(model, provider=provider)
    except AtmcError as error:
        return str(error)
    return None


def _data_dir() -> dict[str, Any]:
    named = os.environ.get("ATMC_DATA_DIR")
    return {
        "ATMC_DATA_DIR": named,
        "found": bool(named) and Path(named or "").is_dir(),
    }


def _show(facts: dict[str, Any]) -> None:
    from atmc_tool.cli.render import show_line, show_table

    show_line(
        f"atmc-tool {facts['atmc_tool']}, Python {facts['python']} ({sys.executable}), {facts['cpus']} CPUs, "
        f"{facts['platform']}"
    )
    packages = facts["packages"]
    rows = [[name, packages[name] or "missing", use] for name, use in NEEDED.items()]
    runtime = next((f"{name} {packages[name]}" for name in RUNTIMES if packages[name]), "missing")
    rows.append(["onnxruntime", runtime, "verify"])
    show_table("Packages", ["package", "version", "needed for"], rows)
    for device in facts["torch_devices"]:
        show_line(f"torch device: {device}")
    for provider, state in facts["onnxruntime_providers"].items():
        show_line(f"onnxruntime {provider}: {state}")
    data_dir = facts["data_dir"]
    state = (
        "found" if data_dir["found"] else "not found" if data_dir["ATMC_DATA_DIR"] else "not set (digits needs none)"
    )
    show_line(f"data folder ATMC_DATA_DIR: {data_dir['ATMC_DATA_DIR'] or ''} {state}".replace("  ", " "))
