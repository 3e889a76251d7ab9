"""Kill a compression at random moments, resume it each time: it must end with an uninterrupted run's file.

    python benchmarks/kills.py --kills 50

Digits, 120 steps, a checkpoint every 5, by the command line in a temporary folder. A kill is aimed at the start (a
random time since the process began), at training (a random time since a new checkpoint) or at a write (a checkpoint,
in the end model.atmc, is being written). SIGKILL each time, so
that the process can do nothing about it. Writes benchmarks/results/kills.json.
"""

import argparse
import hashlib
import json
import os
import platform
import random
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

from pipeline import processor

from atmc_tool.files import leftovers

ROOT = Path(__file__).parents[1]
MEASURE = "--set evaluation.n=20 --set evaluation.steps=1 --set evaluation.restarts=1"
TRAIN = f"train --data digits --arch digits-cnn --eps 0.1 --max-steps 60 --set attack.steps=1 {MEASURE} -q -o model.pt"
COMPRESS = (
    f"compress model.pt --max-steps 120 --set attack.steps=1 --set compress.checkpoint_steps=5 {MEASURE} -q --json"
)
PACKAGES = ("torch", "numpy")
KILLED = -9
AIMS = ("start", "training", "write")
WEIGHTS = (3, 2, 5)
TRAINING_SECONDS = (
    0.2  # at most, from the new checkpoint to the kill: so that 50 kills do not use up the steps too soon
)


def start(line: str, folder: Path) -> subprocess.Popen[str]:
    """`atmc-tool LINE` as a process of its own."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "atmc_tool", *line.split()]
    return subprocess.Popen(command, cwd=folder, env=environment, stdout=subprocess.DEVNULL)


def finish(line: str, folder: Path, run: str = "") -> tuple[float, float]:
    """Seconds until the first checkpoint in `run`, and until `atmc-tool LINE` was done; it must succeed."""
    started = time.monotonic()
    process = start(line, folder)
    while process.poll() is None and not (run and newest(folder / run)):
        time.sleep(0.01)
    first = time.monotonic() - started
    if process.wait():
        sys.exit(f"atmc-tool {line}: exit code {process.returncode}")
    return first, time.monotonic() - started


def unfinished(run: Path) -> set[Path]:
    """Files in the run folder that are being written, or were when their writer was killed."""
    return {*leftovers(run / "checkpoints"), *leftovers(run, "model.atmc")}


def kill(process: subprocess.Popen[str], run: Path, aim: str, seconds: float, before: set[Path]) -> bool:
    """Kill `seconds` after what `aim` says; False: it was done before.

    before: what earlier kills left unfinished
    """
    step = newest(run)
    deadline = time.monotonic() + seconds if aim == "start" else None
    while process.poll() is None:
        if deadline is None and (newest(run) > step if aim == "training" else unfinished(run) - before):
            deadline = time.monotonic() + seconds
        if deadline is not None and time.monotonic() >= deadline:
            process.kill()
            return process.wait() == KILLED
        time.sleep(0.0002 if aim == "write" else 0.002)
    if process.returncode:
        sys.exit(f"a resumed run failed: exit code {process.returncode}")
    return False


def newest(run: Path) -> int:
    """Step of the newest checkpoint, 0 where there is none."""
    return max((int(path.stem.removeprefix("step-")) for path in run.glob("checkpoints/step-*.ckpt")), default=0)


def main() -> None:
    """Run, kill, resume, compare; exit code 1 where the files differ."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    chance = random.Random(arguments.seed)
    kills: list[dict[str, Any]] = []
    ended = 0
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        finish(TRAIN, folder)
        first, whole = finish(f"{COMPRESS} -o whole", folder, "whole")
        run = folder / "cut"
        while len(kills) < arguments.kills:
            aim = chance.choices(AIMS, WEIGHTS)[0]
            seconds = chance.uniform(0, {"start": first, "training": TRAINING_SECONDS, "write": 0.0}[aim])
            resumed = (run / "config.yaml").exists()
            before = unfinished(run)
            process = start("compress model.pt -o cut --resume -q" if resumed else f"{COMPRESS} -o cut", folder)
            if not kill(process, run, aim, seconds, before):
                ended += 1
                continue
            kills.append(
                {
                    "aim": aim,
                    "seconds": round(seconds, 2),
                    "resumed": resumed,
                    "checkpoint": newest(run),
                    "while_writing": [
                        path.name.rsplit(".", 2)[0].removeprefix(".") for path in unfinished(run) - before
                    ],
                    "finished": (run / "model.atmc").exists(),
                }
            )
            print(len(kills), kills[-1], file=sys.stderr, flush=True)
        finish("compress model.pt -o cut --resume -q", folder)
        digests = {
            name: hashlib.sha256((folder / name / "model.atmc").read_bytes()).hexdigest() for name in ("whole", "cut")
        }
        remain = [path.name for path in unfinished(run)]
    result = {
        "command": f"python benchmarks/kills.py --kills {arguments.kills} --seed {arguments.seed}",
        "commands": [f"atmc-tool {line}" for line in (TRAIN, COMPRESS, "compress model.pt -o cut --resume")],
        "machine": processor(),
        "python": platform.python_version(),
        "versions": {package: version(package) for package in PACKAGES},
        "seconds_of_the_uninterrupted_run": round(whole, 1),
        "kills": len(kills),
        "while_a_checkpoint_was_written": sum(any(".ckpt" in n for n in each["while_writing"]) for each in kills),
        "while_model.atmc_was_written": sum("model.atmc" in each["while_writing"] for each in kills),
        "before_the_first_checkpoint": sum(not each["checkpoint"] for each in kills),
        "after_the_last_step": sum(each["checkpoint"] == 120 for each in kills),
        "resumptions_that_ended_before_their_kill": ended,
        "temporary_files_at_the_end": remain,
        "sha256": digests,
        "equal": digests["whole"] == digests["cut"],
        "each": kills,
    }
    path = ROOT / "benchmarks" / "results" / "kills.json"
    path.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps({key: value for key, value in result.items() if key != "each"}, indent=1))
    sys.exit(0 if result["equal"] and not remain else 1)


if __name__ == "__main__":
    main()
