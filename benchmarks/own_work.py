"""ATMC's own work (materialising factors, projecting, codebooks) as a share of a training step's processor time.

    python benchmarks/own_work.py

LeNet and ResNet-18 of full width at batch 128, PGD-7, one thread; the default (W itself, latent projection) and the
procedure as published (W = U V + C, projected after every step), pruning and quantising, with one update of the
codebooks in every five steps. What the engine does for a dense network too, such as laying weights out for
convolutions, is in it. Writes benchmarks/results/own-work.json. ResNet-18 takes some ten minutes.
"""

import argparse
import json
import platform
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from ledger import Ledger
from networks import resnet18
from training import AUTO, CASES, INTERVAL, PRUNING, QUANTISING, UPDATING, Case, atmc_loop, engine_step, schedules

from atmc_tool.data.data_set import Augmentation
from atmc_tool.machine import machine

OWN = ("materialising", "projecting", "codebooks")
NETWORKS = {
    "lenet-relu": CASES["lenet-relu"],
    "resnet18-64": Case(lambda: resnet18(64), (3, 32, 32), 128, 8 / 255, Augmentation(shift=4, flip=True)),
}
RESULT = Path(__file__).parent / "results" / "own-work.json"


def shares(case: Case, rounds: int) -> dict[str, Any]:
    """Variant and part → seconds of a step, and the share of each stage of ATMC's own and of all three."""
    result = {}
    for variant, schedule in zip(("default", "published"), schedules(case)[1:], strict=True):
        for part, kinds in (("pruning", {PRUNING: 1.0}), ("quantising", {QUANTISING: 0.8, UPDATING: 0.2})):
            loop = atmc_loop(case, schedule, AUTO)
            stages: dict[str, float] = {}
            with Ledger(time.process_time) as clock:
                for at, weight in kinds.items():
                    step = engine_step(loop, at)
                    step()  # warm-up: caches, the first codebooks
                    clock.take()
                    total = time.process_time()
                    for _ in range(rounds):
                        step()
                    total = time.process_time() - total
                    found = {**clock.take(), "step": total}
                    for stage in (*OWN, "step"):
                        stages[stage] = stages.get(stage, 0.0) + weight * found.get(stage, 0.0) / rounds
            own = {stage: round(100 * stages[stage] / stages["step"], 2) for stage in OWN}
            result[f"{variant}, {part}"] = {
                "seconds of a step": round(stages["step"], 3),
                "% of it": {**own, "all three": round(sum(own.values()), 2)},
            }
            print(f"{variant}, {part}: {json.dumps(result[f'{variant}, {part}'])}", flush=True)
    return result


def main() -> None:
    """Measure and write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=list(NETWORKS))
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    result = {
        "command": f"python benchmarks/own_work.py --rounds {arguments.rounds}",
        "machine": machine(torch.device("cpu")),
        "python": platform.python_version(),
        "torch": version("torch"),
        "interval": INTERVAL,
        "networks": {name: shares(NETWORKS[name], arguments.rounds) for name in arguments.networks},
    }
    RESULT.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
