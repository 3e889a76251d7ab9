"""What comparisons of structures kept, and how the residuals of R-ADMM went; writes benchmarks/results/structures.json.

atmc-tool compare benchmarks/grids/structures-mnist.yaml -o structures-mnist
atmc-tool compare benchmarks/grids/structures-cifar10.yaml -o structures-cifar10
python benchmarks/structures.py mnist=structures-mnist cifar10=structures-cifar10
"""

import argparse
import json
from pathlib import Path
from typing import Any

from exporters.atmc_file import read_atmc

RESULT = Path(__file__).parent / "results" / "structures.json"
RESIDUALS = ("epoch", "primal_residual", "dual_residual", "rho")


def facts(run: Path) -> dict[str, Any]:
    """Kept filters, columns and entries of every layer in the file; the residuals of every epoch of the search."""
    kept = {}
    for name, weight in read_atmc(run / "model.atmc").weights.items():
        nonzero = weight.dense().reshape(weight.matrix_shape) != 0
        counts = {"filters": nonzero.any(1), "columns": nonzero.any(0), "entries": nonzero.ravel()}
        kept[name] = {what: f"{int(mask.sum())}/{mask.size}" for what, mask in counts.items()}
    epochs = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    residuals = [{key: epoch[key] for key in RESIDUALS} for epoch in epochs if "rho" in epoch]
    return {"kept": kept, "residuals": residuals}


def main() -> None:
    """Read the runs and write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("comparisons", nargs="+", metavar="NAME=FOLDER")
    named = dict(pair.split("=", 1) for pair in parser.parse_args().comparisons)
    result = {
        name: {run.name: facts(run) for run in sorted(Path(folder).glob("runs/*"))} for name, folder in named.items()
    }
    RESULT.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
