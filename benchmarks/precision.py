"""Does training in bfloat16 cost accuracy? Pairs of runs that differ in nothing else, over seeds.

    python benchmarks/precision.py digits mnist cifar --seeds 0 1 2

`mnist` and `cifar` need ATMC_DATA_DIR with MNIST and cifar10-jpeg.zip. Each run trains a dense network and compresses
it; both are measured in float32 on test images under PGD-20, worst of the restarts. Works in
build/benchmarks/precision-<name>-<seed>-<precision>; steps whose output is there are not run again. Writes
benchmarks/results/precision.json: for each network the pairs' differences bf16 − fp32, their mean, and the standard
error of that mean.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

from pipeline import processor

ROOT = Path(__file__).parents[1]
COMMON = "--set evaluation.n=1000 --set evaluation.restarts=2"
EXPERIMENTS = {
    "digits": ("--data digits --arch digits-cnn --eps 0.1", "--keep 0.05 --bits 4"),
    "mnist": (
        "--data mnist --arch lenet-relu --eps 0.2 --set data.limit=6000 --max-steps 300 --set train.eps_warmup=0.4",
        "--keep 0.03 --bits 4 --max-steps 300",
    ),
    "cifar": (
        "--data {data}/cifar10-jpeg.zip --arch resnet20 --eps 4/255 --set data.limit=5000 --max-steps 300 "
        "--set train.batch_size=64",
        "--keep 0.2 --bits 4 --max-steps 200 --set compress.batch_size=64",
    ),
}
PRECISIONS = ("fp32", "bf16")
PACKAGES = ("torch", "numpy")


def run(name: str, seed: int, precision: str) -> dict[str, dict[str, float]]:
    """What is measured: "dense" and "compressed" → accuracies on test images."""
    train, compress = (line.format(data=os.environ.get("ATMC_DATA_DIR", "data")) for line in EXPERIMENTS[name])
    folder = ROOT / "build" / "benchmarks" / f"precision-{name}-{seed}-{precision}"
    folder.mkdir(parents=True, exist_ok=True)
    how = f"{COMMON} --set compute.precision={precision} --seed {seed} -q --overwrite"
    result = folder / "result.json"
    if not result.exists():
        for line in (f"train {train} {how} -o model.pt", f"compress model.pt {compress} {how} --json"):
            done = subprocess.run(
                [sys.executable, "-m", "atmc_tool", *line.split()], cwd=folder, check=False, stdout=subprocess.PIPE
            )
            if done.returncode:
                sys.exit(f"atmc-tool {line}: exit code {done.returncode}")
        result.write_bytes(done.stdout)
    metrics = json.loads(result.read_text())["metrics"]
    return {
        stage: {key: metrics[stage][key] for key in ("clean_accuracy", "robust_accuracy")}
        for stage in ("dense", "compressed")
    }


def compared(name: str, seeds: list[int]) -> dict[str, Any]:
    """The pairs of one experiment, and the differences in points."""
    pairs = []
    for seed in seeds:
        pairs.append({"seed": seed, **{precision: run(name, seed, precision) for precision in PRECISIONS}})
        print(f"{name}: {json.dumps(pairs[-1])}", file=sys.stderr)
    differences = {}
    for stage in ("dense", "compressed"):
        for key in ("clean_accuracy", "robust_accuracy"):
            points = [100 * (pair["bf16"][stage][key] - pair["fp32"][stage][key]) for pair in pairs]
            error = statistics.stdev(points) / len(points) ** 0.5 if len(points) > 1 else None
            mean = statistics.mean(points)
            differences[f"{stage} {key}"] = {"points": points, "mean": mean, "standard_error": error}
    command = f"python benchmarks/precision.py {name} --seeds {' '.join(map(str, seeds))}"
    runs = {"commands": EXPERIMENTS[name], "common": COMMON}
    return {"command": command, **runs, "pairs": pairs, "differences": differences}


def main() -> None:
    """Run what is asked for and write the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="+", choices=EXPERIMENTS)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    arguments = parser.parse_args()
    experiments = {name: compared(name, arguments.seeds) for name in arguments.names}
    path = ROOT / "benchmarks" / "results" / "precision.json"
    known = json.loads(path.read_text())["experiments"] if path.exists() else {}
    result = {
        "machine": processor(),
        "python": platform.python_version(),
        "versions": {package: version(package) for package in PACKAGES},
        "experiments": known | experiments,
    }
    path.write_text(json.dumps(result, indent=1) + "\n")
    for name, experiment in result["experiments"].items():
        for what, difference in experiment["differences"].items():
            print(f"{name:8} {what:26} bf16 − fp32: {difference['mean']:+.2f} ± {difference['standard_error']:.2f}")


if __name__ == "__main__":
    main()
