"""Train, compress, export and verify by the command line, over seeds; writes benchmarks/results/<name>.json.

    python benchmarks/pipeline.py digits --seeds 0 1 2
    python benchmarks/pipeline.py mnist --seeds 0

Works in build/benchmarks/<name>-<seed>; steps whose output is there are not run again, so it can be resumed.
"""

import argparse
import json
import platform
import statistics
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from atmc_tool.machine import machine
from exporters.atmc_file import read_atmc
from exporters.dense import dense_bytes, gzip_dense_bytes

ROOT = Path(__file__).parents[1]
EXPERIMENTS = {
    "digits": ("--data digits --arch digits-cnn --eps 0.1", "--keep 0.05 --bits 4"),
    "mnist": ("--preset mnist", "--preset mnist"),
}
PACKAGES = ("torch", "numpy", "onnx", "onnxruntime-gpu", "scikit-learn")
GATE_FAILED = 5  # a result too: the verdict is written
MEASURED = ("clean_accuracy", "robust_accuracy")


def run(name: str, seed: int) -> dict[str, Any]:
    """The four commands for one seed, and what they measured on the test set."""
    train, compress = EXPERIMENTS[name]
    folder = ROOT / "build" / "benchmarks" / f"{name}-{seed}"
    folder.mkdir(parents=True, exist_ok=True)
    lines = {
        "model.pt": f"train {train} --seed {seed} -o model.pt --overwrite",
        "atmc-run/model.atmc": f"compress model.pt {compress} --seed {seed} --overwrite",
        "atmc-run/model.onnx": "export --onnx",
        "atmc-run/verify.json": "verify",
    }
    for output, line in lines.items():
        if not (folder / output).exists():
            print(f"$ atmc-tool {line}", file=sys.stderr)
            done = subprocess.run([sys.executable, "-m", "atmc_tool", *line.split()], cwd=folder, check=False)
            if done.returncode not in (0, GATE_FAILED):
                sys.exit(done.returncode)
    model = read_atmc(folder / "atmc-run" / "model.atmc")
    report = json.loads((folder / "atmc-run" / "verify.json").read_text())
    metrics = model.manifest["metrics"]
    seconds = [
        json.loads(path.read_text().splitlines()[-1])["seconds"]
        for path in (folder / "model.train" / "metrics.jsonl", folder / "atmc-run" / "metrics.jsonl")
    ]
    return {
        "seed": seed,
        "commands": [f"atmc-tool {line}" for line in lines.values()],
        "bytes": {
            "dense": dense_bytes(model),
            "gzip_of_pruned_dense": gzip_dense_bytes(model),
            "model.atmc": (folder / "atmc-run" / "model.atmc").stat().st_size,
            "model.onnx": (folder / "atmc-run" / "model.onnx").stat().st_size,
        },
        "kept": sum(f.kept for weight in model.weights.values() for f in weight.factors.values()),
        "dense": metrics["dense"],
        "compressed": metrics["compressed"],
        "onnxruntime": {
            "clean": report["clean"],
            "attacks": report["attacks"],
            "robust": report["robust"],
            "verdict": report["verdict"]["passed"],
        },
        "training_seconds": {"train": seconds[0], "compress": seconds[1]},
    }


def processor() -> str:
    """Name of the processor, and how many cores there are."""
    facts = machine(torch.device("cpu"))
    return f"{facts['processor']}, {facts['cores']} cores"


def main() -> None:
    """Run the seeds and write the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", choices=EXPERIMENTS)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    arguments = parser.parse_args()
    runs = [run(arguments.name, seed) for seed in arguments.seeds]
    summary = {
        f"{kind} {key}": [round(f([r[kind][key] for r in runs]), 4) for f in (statistics.mean, min, max)]
        for kind in ("dense", "compressed")
        for key in MEASURED
    }
    summary["onnxruntime worst case"] = [
        round(f([r["onnxruntime"]["robust"]["accuracy"] for r in runs]), 4) for f in (statistics.mean, min, max)
    ]
    result = {
        "command": f"python benchmarks/pipeline.py {arguments.name} --seeds {' '.join(map(str, arguments.seeds))}",
        "machine": processor(),
        "python": platform.python_version(),
        "versions": {package: version(package) for package in PACKAGES},
        "summary (mean, min, max)": summary,
        "runs": runs,
    }
    path = ROOT / "benchmarks" / "results" / f"{arguments.name}.json"
    path.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result["summary (mean, min, max)"], indent=1))


if __name__ == "__main__":
    main()
