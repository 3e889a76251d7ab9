"""Do searched strategies help after training? Writes benchmarks/results/search.json.

    python benchmarks/search.py --data cifar10-jpeg.zip --folder search-runs --workers 2

Every network is trained against PGD once for each seed. On it every algorithm looks for a strategy: channels to 25 % of
the weights, single weights to 1 %, the searches with the same number of evaluations, built-in allocations as they are.
HYDRA and R-ADMM then compress the same dense network by each strategy with the same steps and attack. Accuracies are
those of `compress`, on test images, which no search has seen. Seeds change training data's split and order, the dense
network, the search and the compression.

Everything is in run folders under --folder; what is there is not done again, so it can be stopped and started at will.
"""

import argparse
import contextlib
import json
import os
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import yaml
from scipy.stats import t

from atmc_tool.trials import Failure, Local, opened_pool

RESULT = Path(__file__).parent / "results" / "search.json"
VGG = f"{Path(__file__).resolve()}:narrow_vgg"
ALGORITHMS = ("uniform", "erk", "lamp", "global", "random", "tpe", "ddpg", "harp")
SETTINGS = {"channel": 0.25, "irregular": 0.01}  # structure → share of the weights
METHODS = ("hydra", "admm")
REFERENCE = "uniform"


def narrow_vgg() -> Any:
    """Eight convolutions of 3 × 3 of 12 to 96 channels with batch norm, pooled four times, and a linear layer."""
    from torch import nn

    layers: list[nn.Module] = []
    before = 3
    for channels, convolutions in ((12, 2), (24, 2), (48, 2), (96, 2)):
        for _ in range(convolutions):
            layers += [nn.Conv2d(before, channels, 3, padding=1), nn.BatchNorm2d(channels), nn.ReLU()]
            before = channels
        layers.append(nn.MaxPool2d(2))
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(before, 10))


@dataclass(frozen=True)
class Job:
    """A command line of atmc-tool. made: the file that it leaves; folder: what it can go on from, with its option."""

    kind: str
    line: tuple[str, ...]
    made: str
    folder: str


@dataclass(frozen=True)
class Cell:
    """A place of the table, for one seed."""

    network: str
    structure: str
    algorithm: str
    seed: int


def run(job: Job) -> float:
    """Seconds that `job` took; 0 where it was done before."""
    from atmc_tool.cli import main

    if Path(job.made).is_file():
        return 0.0
    begun = (Path(job.folder) / ("search.yaml" if job.line[0] == "search" else "config.yaml")).is_file()
    started = time.monotonic()
    log = Path(f"{job.folder}.log")
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("a") as file, contextlib.redirect_stdout(file), contextlib.redirect_stderr(file):
        try:
            main([*job.line, *(["--resume"] if begun else [])])
        except SystemExit as stopped:
            if stopped.code:
                raise RuntimeError(f"atmc-tool {' '.join(job.line)}: exit code {stopped.code}, see {log}") from None
    return time.monotonic() - started


class Plan:
    """The jobs of the experiment, by their stage: each stage needs what those before it leave."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        self.arguments, self.folder = arguments, Path(arguments.folder)
        self.settings = self.folder / "settings.yaml"

    def cells(self) -> Iterator[Cell]:
        """All cells."""
        a = self.arguments
        for seed in range(a.seeds):
            for network in a.networks:
                for structure in a.structures:
                    for algorithm in a.algorithms:
                        yield Cell(network, structure, algorithm, seed)

    def write_settings(self) -> None:
        """What all commands share; images of a file are decoded once."""
        a = self.arguments
        data = {"name": str(Path(a.data).resolve()) if Path(a.data).exists() else a.data, "limit": a.limit}
        if a.image_size:
            data["image_size"] = a.image_size
        if Path(a.data).is_file():
            data = {"name": str((self.folder / "images.npz").resolve())}
        settings = {
            "data": data,
            "threat_model": {"eps": a.eps},
            "attack": {"steps": a.training_attack_steps},
            "evaluation": {"n": a.test_images, "steps": 20, "restarts": 1},
            "train": {"batch_size": a.batch_size},
            "compress": {"batch_size": a.batch_size},
        }
        self.folder.mkdir(parents=True, exist_ok=True)
        text = yaml.safe_dump(settings)
        if self.settings.is_file() and self.settings.read_text() != text:
            raise SystemExit(f"{self.settings} is of another experiment: choose another --folder")
        self.settings.write_text(text)
        if Path(a.data).is_file() and not (self.folder / "images.npz").is_file():
            write_images(a, self.folder / "images.npz")

    def _base(self, network: str, seed: int) -> Path:
        return self.folder / Path(network.split(":")[-1]).name / f"seed{seed}"

    def _dense(self, network: str, seed: int) -> Path:
        return self._base(network, seed) / "dense.pt"

    def _common(self, network: str) -> list[str]:
        return ["--arch", network, "-c", str(self.settings), "-q"]

    def search_folder(self, cell: Cell) -> Path:
        """Of a search."""
        return self._base(cell.network, cell.seed) / cell.structure / cell.algorithm

    def run_folder(self, cell: Cell, method: str) -> Path:
        """Of a compression."""
        return self._base(cell.network, cell.seed) / cell.structure / f"{cell.algorithm}-{method}"

    def dense_jobs(self) -> list[Job]:
        """Trainings."""
        jobs = []
        for network in self.arguments.networks:
            for seed in range(self.arguments.seeds):
                made = self._dense(network, seed)
                line = ["train", *self._common(network), "--epochs", str(self.arguments.epochs), "--seed", str(seed)]
                jobs.append(Job("dense", (*line, "-o", str(made)), str(made), str(made.with_suffix(".train"))))
        return jobs

    def search_jobs(self) -> list[Job]:
        """Searches."""
        a, jobs = self.arguments, []
        for cell in self.cells():
            folder, keep = self.search_folder(cell), str(SETTINGS[cell.structure])
            common = [str(self._dense(cell.network, cell.seed)), *self._common(cell.network), "--keep", keep]
            common += ["--structure", cell.structure, "-o", str(folder)]
            line = ["search", *common, "--algorithm", cell.algorithm, "--seed", str(cell.seed)]
            line += ["--evaluations", str(a.evaluations), "--images", str(a.images), "--batch", "4"]
            line += ["--attack-steps", str(a.attack_steps)]
            if cell.algorithm == "harp":
                line += ["--set", f"compress.epochs={a.harp_epochs}"]
            jobs.append(Job(f"search {cell.algorithm}", tuple(line), str(folder / "results.json"), str(folder)))
        return jobs

    def compress_jobs(self) -> list[Job]:
        """Compressions by every strategy."""
        jobs = []
        for cell in self.cells():
            strategy = self.search_folder(cell) / "strategy.yaml"
            for method in self.arguments.methods:
                folder = self.run_folder(cell, method)
                line = ["compress", str(self._dense(cell.network, cell.seed)), *self._common(cell.network)]
                line += ["--method", method, "--strategy", str(strategy), "--epochs", str(self.arguments.tune_epochs)]
                made = str(folder / "model.atmc")
                jobs.append(Job(f"compress {method}", (*line, "-o", str(folder)), made, str(folder)))
        return jobs


def write_images(arguments: argparse.Namespace, path: Path) -> None:
    """`limit` training images of the data, chosen by seed 0, and as many test images, of one size, as `path`."""
    import numpy as np

    from atmc_tool.data import load_data

    size = arguments.image_size or None
    data = load_data(str(Path(arguments.data)), seed=0, limit=arguments.limit, image_size=size)
    parts = [part.read() for part in (data.train, data.validation, data.test)]
    np.savez(
        path,
        x_train=np.concatenate([parts[0].images, parts[1].images]),
        y_train=np.concatenate([parts[0].labels, parts[1].labels]),
        x_test=parts[2].images,
        y_test=parts[2].labels,
    )


def accuracies(path: Path) -> dict[str, float]:
    """What the file of a compression says of itself."""
    from exporters.atmc_file import describe, read_atmc

    metrics = read_atmc(path).manifest["metrics"]
    return {
        "clean": metrics["compressed"]["clean_accuracy"],
        "robust": metrics["compressed"]["robust_accuracy"],
        "dense clean": metrics["dense"]["clean_accuracy"],
        "dense robust": metrics["dense"]["robust_accuracy"],
        "kept": describe(path.read_bytes())["totals"]["density"],
    }


def reward(folder: Path) -> float | None:
    """Of the strategy in a search's folder, as the search measured it."""
    path = folder / "results.json"
    return json.loads(path.read_text())["best"]["outcome"]["reward"] if path.is_file() else None


def spread(values: Sequence[float]) -> dict[str, float | None]:
    """Mean and standard deviation of a sample."""
    return {"mean": mean(values), "sd": stdev(values) if len(values) > 1 else None}


def table(plan: Plan) -> list[dict[str, Any]]:
    """A row for each network, structure, method and algorithm with runs that are done.

    `minus uniform`: differences to the uniform strategy of the same seed. `within noise`: a t-test of
    paired differences does not tell their mean from 0 at 5 % (two-sided). There are many such comparisons: one in
    twenty is outside by chance.
    """
    found: dict[tuple[str, str, str, str], dict[int, dict[str, Any]]] = defaultdict(dict)
    for cell in plan.cells():
        for method in plan.arguments.methods:
            path = plan.run_folder(cell, method) / "model.atmc"
            if path.is_file():
                facts = {**accuracies(path), "reward": reward(plan.search_folder(cell))}
                name = Path(cell.network.split(":")[-1]).name
                found[name, cell.structure, method, cell.algorithm][cell.seed] = facts
    rows = []
    for (network, structure, method, algorithm), seeds in found.items():
        row: dict[str, Any] = {"network": network, "structure": structure, "keep": SETTINGS[structure]}
        row |= {"method": method, "strategy": algorithm, "seeds": sorted(seeds), "runs": seeds}
        row |= {key: spread([seeds[s][key] for s in sorted(seeds)]) for key in ("clean", "robust", "kept")}
        row |= {
            f"dense {key}": spread([seeds[s][f"dense {key}"] for s in sorted(seeds)]) for key in ("clean", "robust")
        }
        other = found.get((network, structure, method, REFERENCE), {})
        both = sorted(set(seeds) & set(other))
        if algorithm != REFERENCE and both:
            for key in ("clean", "robust"):
                gain = spread([seeds[s][key] - other[s][key] for s in both])
                row[f"{key} minus {REFERENCE}"] = gain
                sd, average = gain["sd"], gain["mean"]
                assert average is not None
                row[f"{key} within noise"] = (
                    None if sd is None else abs(average) < t.ppf(0.975, len(both) - 1) * sd / len(both) ** 0.5
                )
        rows.append(row)
    return rows


def proxy(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """How well a search's reward foretells clean + robust after training: rank correlations over all strategies."""
    from scipy.stats import spearmanr

    pairs: dict[tuple[str, str, str], list[tuple[float, float]]] = defaultdict(list)
    for row in rows:
        for facts in row["runs"].values():
            if facts["reward"] is not None:
                pairs[row["network"], row["structure"], row["method"]].append(
                    (facts["reward"], facts["clean"] + facts["robust"])
                )
    return [
        {
            **dict(zip(("network", "structure", "method"), key, strict=True)),
            "n": len(found),
            "spearman": float(spearmanr(*zip(*found, strict=True)).statistic),
        }
        for key, found in pairs.items()
        if len(set(found)) > 2
    ]


def arguments() -> argparse.Namespace:
    """Of the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="mnist")
    parser.add_argument("--folder", default="search-runs")
    parser.add_argument("--networks", nargs="+", default=["resnet18-8", VGG])
    parser.add_argument("--structures", nargs="+", choices=SETTINGS, default=list(SETTINGS))
    parser.add_argument("--algorithms", nargs="+", default=list(ALGORITHMS))
    parser.add_argument("--methods", nargs="+", default=list(METHODS))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--evaluations", type=int, default=100)
    parser.add_argument("--images", type=int, default=300, help="of an evaluation")
    parser.add_argument("--attack-steps", type=int, default=7, help="of an evaluation")
    parser.add_argument("--epochs", type=int, default=20, help="of the dense training")
    parser.add_argument("--harp-epochs", type=int, default=4)
    parser.add_argument("--tune-epochs", type=int, default=6, help="of HYDRA and R-ADMM")
    parser.add_argument("--training-attack-steps", type=int, default=3)
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--eps", default="8/255")
    parser.add_argument("--limit", type=int, default=10000, help="training images")
    parser.add_argument("--image-size", type=int, default=16, help="of a folder or zip; 0: as they are")
    parser.add_argument("--test-images", type=int, default=1000)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--result", type=Path, default=RESULT)
    return parser.parse_args()


def main() -> None:
    """Run what is missing, and write the result after every job."""
    from atmc_tool import __version__
    from atmc_tool.machine import processor

    given = arguments()
    plan = Plan(given)
    plan.write_settings()
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # the same numbers with any number of workers
    seconds: dict[str, list[float]] = defaultdict(list)
    before = json.loads(given.result.read_text()).get("seconds", {}) if given.result.is_file() else {}

    def record() -> None:
        rows = table(plan)
        result = {
            "atmc_tool": __version__,
            "machine": processor(),
            "arguments": {k: str(v) if isinstance(v, Path) else v for k, v in vars(given).items()},
            "seconds": {**before, **{kind: round(mean(found), 1) for kind, found in seconds.items()}},
            "rows": rows,
            "proxy": proxy(rows),
        }
        for key in ("folder", "data", "result"):
            result["arguments"][key] = Path(result["arguments"][key]).name
        result["arguments"]["networks"] = [Path(name.split(":")[-1]).name for name in given.networks]
        given.result.parent.mkdir(exist_ok=True)
        given.result.write_text(json.dumps(result, indent=1) + "\n")

    with opened_pool(run, Local(given.workers), print) as pool:
        for jobs in (plan.dense_jobs(), plan.search_jobs(), plan.compress_jobs()):
            for index, took in pool(jobs):
                job = jobs[index]
                text = took.text if isinstance(took, Failure) else f"{took:.0f} s"
                print(f"{job.kind} {job.folder}: {text}", flush=True)
                if isinstance(took, float) and took:
                    seconds[job.kind].append(took)
            record()
    for row in table(plan):
        shown = [f"{100 * row[key]['mean']:.1f} ± {100 * (row[key]['sd'] or 0):.1f}" for key in ("clean", "robust")]
        print(row["network"], row["structure"], row["method"], row["strategy"], *shown, sep="\t")


if __name__ == "__main__":
    main()
