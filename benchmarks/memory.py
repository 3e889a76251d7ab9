"""Memory of an adversarial training step and of checkpoints; ResNet-18, about ten minutes on one core.

    python benchmarks/memory.py [--width 64] [--batch-size 128]
    python benchmarks/memory.py --width 16 --batch-size 32   # to try it: two minutes

Each competitor runs in a process of its own, with one step of PGD: the passes of an attack come one after the other, so
more of them need no more memory. Two measures of the same two steps: the peak of the process's resident memory above
that after the imports; and the peak of the bytes that torch's allocator has handed out, by its profiler.
Writes benchmarks/results/memory.json.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from networks import resnet18
from pipeline import processor
from resident import above
from training import (
    AUTO,
    CASES,
    CPU,
    FP32,
    PRUNING,
    QUANTISING,
    UPDATING,
    Case,
    Step,
    atmc_loop,
    dense_step,
    engine_step,
    schedules,
    users_step,
)

from atmc_tool.compute import Compute
from atmc_tool.config import AttackConfig, CompressConfig
from atmc_tool.data.data_set import Augmentation
from atmc_tool.memory import bytes_per_image

USER, DENSE, ATMC = "user's loop", "engine, dense", "ATMC"
CHECKPOINT = "checkpoint"
MEGABYTE = 1e6


def steps(name: str, case: Case, compute: Compute) -> tuple[Step, Step]:
    """A first step of the competitor, which makes the optimiser's state, and the one that is measured."""
    if name == USER:
        step = users_step(case)
        return step, step
    if name == DENSE:
        step = dense_step(case, compute)
        return step, step
    loop = atmc_loop(case, schedules(case)[1], compute)
    first, second = (PRUNING, PRUNING) if name.endswith("pruning") else (QUANTISING, UPDATING)
    return engine_step(loop, first), engine_step(loop, second)


def allocated(work: Callable[[], object]) -> int:
    """Peak of the bytes that torch's allocator has handed out since `work` began."""
    with torch.autograd.profiler.profile(profile_memory=True) as profile:
        work()
    assert profile.kineto_results is not None
    events = [event for event in profile.kineto_results.events() if event.name() == "[memory]"]
    held = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        held += event.nbytes()
        peak = max(peak, held)
    return peak


def step_memory(name: str, case: Case, compute: Compute) -> dict[str, Any]:
    """Both measures of the competitor, in bytes."""

    def both() -> None:
        first, second = steps(name, case, compute)
        first()
        second()

    return {"resident": above(both), "allocated": allocated(both)}


def of_an_image(case: Case, compute: Compute) -> dict[str, float]:
    """What `compute.micro_batch` reckons with, and what is so: bytes for an image, and copies of the parameters.

    kept: by `bytes_per_image`; peak: what one more image adds to the peak of ATMC's step while it prunes
    """
    network = case.build()
    few, more = case.batch_size // 2, case.batch_size
    peaks = [step_memory(f"{ATMC}, pruning", replace(case, batch_size=n), compute)["allocated"] for n in (few, more)]
    peak = (peaks[1] - peaks[0]) / (more - few)
    fixed = (peaks[0] - few * peak) / (4 * sum(parameter.numel() for parameter in network.parameters()))
    kept = bytes_per_image(network, case.shape, compute.dtype, CPU)
    return {"kept": kept, "peak": peak, "ratio": peak / kept, "copies": fixed}


def checkpoint_cost(case: Case, compute: Compute) -> dict[str, Any]:
    """Seconds, bytes and memory of saving and loading ATMC's state while it quantises, beside the seconds of a step."""
    loop = atmc_loop(case, schedules(case)[1], compute)
    engine_step(loop, QUANTISING)()
    started = time.perf_counter()
    engine_step(loop, UPDATING)()
    step_seconds = time.perf_counter() - started
    with tempfile.TemporaryDirectory(dir=Path.cwd()) as folder:
        loop.folder = Path(folder)
        seconds: dict[str, list[float]] = {"save": [], "load": []}
        memory: dict[str, int] = {}
        for _ in range(5):
            for what, work in (("save", loop._save), ("load", loop._load)):
                started = time.perf_counter()
                memory[what] = above(work)
                seconds[what].append(time.perf_counter() - started)
        (path,) = loop.folder.glob("checkpoints/*.ckpt")
        size = path.stat().st_size
    saving = statistics.median(seconds["save"])
    return {
        "bytes": size,
        "seconds": {what: [round(each, 3) for each in all_of_it] for what, all_of_it in seconds.items()},
        "resident": memory,
        "step_seconds": step_seconds,
        "share_of_time": saving / (CompressConfig().checkpoint_steps * step_seconds),
    }


def apart(arguments: argparse.Namespace, name: str, precision: str) -> dict[str, Any]:
    """The measurement `name` by a process of its own."""
    size = ["--width", str(arguments.width), "--batch-size", str(arguments.batch_size)]
    command = [sys.executable, __file__, *size, "--only", name, "--precision", precision]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE, text=True)
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def main() -> None:
    """Measure, print the tables and write the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--only", help=argparse.SUPPRESS)
    parser.add_argument("--precision", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    attack_steps = AttackConfig().steps if arguments.only == CHECKPOINT else 1
    augmentation = Augmentation(shift=4, flip=True)
    case = Case(
        lambda: resnet18(arguments.width), (3, 32, 32), arguments.batch_size, 8 / 255, augmentation, attack_steps
    )
    if arguments.only:
        compute = FP32 if arguments.precision == "fp32" else AUTO
        only = arguments.only
        print(json.dumps(checkpoint_cost(case, compute) if only == CHECKPOINT else step_memory(only, case, compute)))
        return
    images: dict[str, Any] = {}
    for name, each in CASES.items():
        for precision, compute in (("fp32", FP32), ("auto", AUTO)):
            facts = of_an_image(replace(each, attack_steps=1), compute)
            images[f"{name}, {precision}"] = facts
            print(f"an image, {name}, {precision}: " + ", ".join(f"{key} {n:.4g}" for key, n in facts.items()))
    lines = []
    print(f"{'MB (÷ user’s loop, ÷ engine, dense)':40}{'resident':>24}{'allocated':>24}")
    for precision in ("fp32", "auto"):
        for name in (USER, DENSE, f"{ATMC}, pruning", f"{ATMC}, quantising"):
            if (name, precision) == (USER, "auto"):
                continue
            line = {"name": name, "precision": precision, **apart(arguments, name, precision)}
            lines.append(line)
            user, dense = lines[0], next((each for each in lines[1:] if each["precision"] == precision), line)
            cells = ""
            for measure in ("resident", "allocated"):
                line[f"{measure}_ratios"] = ratios = [line[measure] / each[measure] for each in (user, dense)]
                cells += f"{line[measure] / MEGABYTE:10.0f} ({ratios[0]:.2f}, {ratios[1]:.2f})"
            print(f"{name + ', ' + precision:40}{cells}", flush=True)
    checkpoint = apart(arguments, CHECKPOINT, "auto")
    print(
        f"checkpoint: {checkpoint['bytes'] / MEGABYTE:.0f} MB, saved in {checkpoint['seconds']['save']} s, "
        f"loaded in {checkpoint['seconds']['load']} s; "
        + ", ".join(f"{what} {size / MEGABYTE:.0f} MB more" for what, size in checkpoint["resident"].items())
        + f"; a step {checkpoint['step_seconds']:.1f} s, checkpoints {checkpoint['share_of_time']:.3%} of the time"
    )
    result = {
        "command": f"python benchmarks/memory.py {' '.join(sys.argv[1:])}".strip(),
        "machine": processor(),
        "threads": 1,
        "network": f"ResNet-18 of width {arguments.width}, 32 × 32",
        "batch_size": arguments.batch_size,
        "precision_auto": "bf16" if AUTO.dtype == torch.bfloat16 else "fp32",
        "python": platform.python_version(),
        "versions": {package: version(package) for package in ("torch", "numpy")},
        "steps": lines,
        "checkpoint": checkpoint,
        "images": images,
    }
    path = Path(__file__).parent / "results" / "memory.json"
    path.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
