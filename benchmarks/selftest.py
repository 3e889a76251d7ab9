"""Does the gate pass what is honest and fail what is not? Writes benchmarks/results/selftest.json.

    python benchmarks/selftest.py --honest 20 --planted 3
    python benchmarks/selftest.py --data cifar10-jpeg --honest 1 --planted 1

Trains `--honest` small networks, one for each seed, and verifies each exported file: every verdict that fails is a
false alarm. Plants all faults of `atmc-tool selftest` into the first `--planted` of them. Images in colour, whose
channels can be swapped, are those of cifar10-jpeg.zip below ATMC_DATA_DIR. Works in
build/benchmarks/selftest-<data>-<seed>; steps whose output is there are not run again. What selftest.json says of the
other data stays.
"""

import argparse
import json
import platform
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from atmc_tool.machine import processor

ROOT = Path(__file__).parents[1]
RESULT = ROOT / "benchmarks" / "results" / "selftest.json"
GATE_FAILED = 5  # a result too


@dataclass(frozen=True)
class Networks:
    """How the networks of one data set are trained and compressed: options, and atmc.yaml where it is not empty."""

    train: str
    compress: str
    settings: str = ""

    @property
    def lines(self) -> Mapping[str, str]:
        """What a step makes → the step."""
        return {
            "model.pt": f"train {self.train} --seed {{seed}} -o model.pt --overwrite",
            "atmc-run/model.atmc": f"compress model.pt {self.compress} --seed {{seed}} --overwrite",
            "atmc-run/model.onnx": "export --onnx",
            "atmc-run/verify.json": "verify",
        }


NETWORKS = {
    "digits": Networks("--data digits --arch digits-cnn --eps 0.1 --max-steps 150", "--max-steps 120"),
    "cifar10-jpeg": Networks(
        "--data cifar10-jpeg --arch resnet18-8 --eps 4/255 --max-steps 400",
        "--keep 0.1 --max-steps 120",
        "{data: {limit: 10000}, attack: {steps: 3}, evaluation: {n: 256}}\n",
    ),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", choices=list(NETWORKS), default="digits")
    parser.add_argument("--honest", type=int, default=20)
    parser.add_argument("--planted", type=int, default=3)
    arguments = parser.parse_args()
    data, networks = arguments.data, NETWORKS[arguments.data]
    runs = [honest(data, seed) for seed in range(arguments.honest)]
    faults = {seed: planted(data, seed) for seed in range(arguments.planted)}
    missed = [f"{fault['name']}, seed {seed}" for seed in faults for fault in faults[seed] if fault["caught"] is False]
    result = {
        "command": f"python benchmarks/selftest.py --data {data} --honest {arguments.honest} "
        f"--planted {arguments.planted}",
        "settings": networks.settings.strip(),
        "commands": [f"atmc-tool {line}" for line in (*networks.lines.values(), "selftest")],
        "machine": {**processor(), "python": platform.python_version(), "onnxruntime": version("onnxruntime-gpu")},
        "false_alarms": sum(not run["passed"] for run in runs),
        "missed": missed,
        "honest": runs,
        "planted": {str(seed): each for seed, each in faults.items()},
    }
    before = json.loads(RESULT.read_text()) if RESULT.is_file() else {}
    RESULT.write_text(json.dumps({**before, data: result}, indent=1, ensure_ascii=False) + "\n")
    print(f"{result['false_alarms']} of {len(runs)} honest networks fail; missed faults: {', '.join(missed) or 'none'}")
    if missed or result["false_alarms"]:
        sys.exit(1)


def honest(data: str, seed: int) -> dict[str, Any]:
    """The verdict on the network of this seed."""
    folder, networks = folder_of(data, seed), NETWORKS[data]
    folder.mkdir(parents=True, exist_ok=True)
    if networks.settings:
        (folder / "atmc.yaml").write_text(networks.settings)
    for output, line in networks.lines.items():
        if not (folder / output).exists():
            done = atmc(line.format(seed=seed), folder)
            if done.returncode not in (0, GATE_FAILED):
                sys.exit(done.returncode)
    report = json.loads((folder / "atmc-run" / "verify.json").read_text())
    statuses = {check["name"]: check["status"] for check in report["verdict"]["checks"]}
    return {
        "seed": seed,
        "n": report["clean"]["n"],
        "passed": report["verdict"]["passed"],
        "clean": report["clean"]["accuracy"],
        "robust": report["robust"]["accuracy"],
        **{status: [name for name in statuses if statuses[name] == status] for status in ("failed", "warning")},
    }


def planted(data: str, seed: int) -> list[dict[str, Any]]:
    """What the gate said of each fault in the network of this seed."""
    faults: list[dict[str, Any]] = json.loads(atmc("selftest --json", folder_of(data, seed)).stdout)["faults"]
    return [{key: fault[key] for key in ("name", "caught", "failed", "reason")} for fault in faults]


def atmc(line: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """`atmc-tool LINE` in `folder`, what it prints on stdout kept."""
    return subprocess.run(
        [sys.executable, "-m", "atmc_tool", *line.split()], cwd=folder, stdout=subprocess.PIPE, text=True, check=False
    )


def folder_of(data: str, seed: int) -> Path:
    return ROOT / "build" / "benchmarks" / f"selftest-{data}-{seed}"


if __name__ == "__main__":
    main()
