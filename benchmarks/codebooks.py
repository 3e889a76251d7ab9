"""The codebook projection of a large layer beside sorting its weights once; writes benchmarks/results/codebooks.json.

    python benchmarks/codebooks.py

2.4 million weights, all kept, to 256 values: the first projection, and one that starts from the codebook of weights
that have moved by 1 % since, as between two updates of a training. In turn, on one thread; medians of the ratios.
"""

import json
import platform
import statistics
import time
from importlib.metadata import version
from pathlib import Path

import torch

from atmc_tool.codebooks import positions, quantize
from atmc_tool.machine import machine
from atmc_tool.methods.quantizer import WARM_ITERATIONS

WEIGHTS, BITS, ROUNDS = 2_400_000, 8, 9
RESULT = Path(__file__).parent / "results" / "codebooks.json"


def main() -> None:
    """Measure and write the result."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    weights = torch.randn(WEIGHTS) * 0.05
    kept = positions(torch.ones(WEIGHTS, dtype=torch.bool))
    _, centres = quantize(weights, kept, BITS)
    seconds: dict[str, list[float]] = {"sort": [], "first": [], "warm": []}
    for _ in range(ROUNDS):
        moved = weights + 0.0005 * torch.randn(WEIGHTS)
        for name, work in (
            ("sort", lambda moved=moved: moved.sort()),
            ("warm", lambda moved=moved: quantize(moved, kept, BITS, centres, WARM_ITERATIONS)),
            ("first", lambda moved=moved: quantize(moved, kept, BITS)),
        ):
            started = time.perf_counter()
            work()
            seconds[name].append(time.perf_counter() - started)
    ratios = {
        name: statistics.median(t / s for t, s in zip(seconds[name], seconds["sort"], strict=True))
        for name in ("warm", "first")
    }
    result = {
        "command": "python benchmarks/codebooks.py",
        "machine": machine(torch.device("cpu")),
        "python": platform.python_version(),
        "torch": version("torch"),
        "weights": WEIGHTS,
        "values": 2**BITS,
        "median seconds": {name: round(statistics.median(times), 4) for name, times in seconds.items()},
        "median of seconds / seconds of sorting": {name: round(ratio, 2) for name, ratio in ratios.items()},
    }
    RESULT.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
