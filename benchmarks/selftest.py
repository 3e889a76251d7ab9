"""Does the gate pass what is honest and fail what is not? Writes benchmarks/results/selftest.json.

    python benchmarks/selftest.py --honest 20 --planted 3

Trains `--honest` small networks on digits, one for each seed, and verifies each exported file: every verdict that fails
is a false alarm. Plants all faults of `atmc-tool selftest` into the first `--planted` of them. Works in
build/benchmarks/selftest-<seed>; steps whose output is there are not run again.
"""

import argparse
import json
import platform
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

from atmc_tool.machine import processor

ROOT = Path(__file__).parents[1]
GATE_FAILED = 5  # a result too
LINES = {
    "model.pt": "train --data digits --arch digits-cnn --eps 0.1 --seed {seed} --max-steps 150 -o model.pt --overwrite",
    "atmc-run/model.atmc": "compress model.pt --seed {seed} --max-steps 120 --overwrite",
    "atmc-run/model.onnx": "export --onnx",
    "atmc-run/verify.json": "verify",
}


def atmc(line: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """`atmc-tool LINE` in `folder`, what it prints on stdout kept."""
    return subprocess.run(
        [sys.executable, "-m", "atmc_tool", *line.split()], cwd=folder, stdout=subprocess.PIPE, text=True, check=False
    )


def honest(seed: int) -> dict[str, Any]:
    """The verdict on the network of this seed."""
    folder = folder_of(seed)
    folder.mkdir(parents=True, exist_ok=True)
    for output, line in LINES.items():
        if not (folder / output).exists():
            done = atmc(line.format(seed=seed), folder)
            if done.returncode not in (0, GATE_FAILED):
                sys.exit(done.returncode)
    report = json.loads((folder / "atmc-run" / "verify.json").read_text())
    statuses = {check["name"]: check["status"] for check in report["verdict"]["checks"]}
    return {
        "seed": seed,
        "passed": report["verdict"]["passed"],
        "clean": report["clean"]["accuracy"],
        "robust": report["robust"]["accuracy"],
        **{status: [name for name in statuses if statuses[name] == status] for status in ("failed", "warning")},
    }


def planted(seed: int) -> list[dict[str, Any]]:
    """What the gate said of each fault in the network of this seed."""
    faults: list[dict[str, Any]] = json.loads(atmc("selftest --json", folder_of(seed)).stdout)["faults"]
    return [{key: fault[key] for key in ("name", "caught", "failed", "reason")} for fault in faults]


def folder_of(seed: int) -> Path:
    return ROOT / "build" / "benchmarks" / f"selftest-{seed}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--honest", type=int, default=20)
    parser.add_argument("--planted", type=int, default=3)
    arguments = parser.parse_args()
    runs = [honest(seed) for seed in range(arguments.honest)]
    faults = {seed: planted(seed) for seed in range(arguments.planted)}
    missed = [f"{fault['name']}, seed {seed}" for seed in faults for fault in faults[seed] if fault["caught"] is False]
    result = {
        "command": f"python benchmarks/selftest.py --honest {arguments.honest} --planted {arguments.planted}",
        "commands": [f"atmc-tool {line}" for line in (*LINES.values(), "selftest")],
        "n": 360,
        "machine": {**processor(), "python": platform.python_version(), "onnxruntime": version("onnxruntime-gpu")},
        "false_alarms": sum(not run["passed"] for run in runs),
        "missed": missed,
        "honest": runs,
        "planted": {str(seed): each for seed, each in faults.items()},
    }
    (ROOT / "benchmarks" / "results" / "selftest.json").write_text(
        json.dumps(result, indent=1, ensure_ascii=False) + "\n"
    )
    print(f"{result['false_alarms']} of {len(runs)} honest networks fail; missed faults: {', '.join(missed) or 'none'}")
    if missed or result["false_alarms"]:
        sys.exit(1)


if __name__ == "__main__":
    main()
