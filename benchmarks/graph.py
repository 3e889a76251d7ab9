"""The exported ONNX file against the same network as a dense one: bytes, load time, peak memory, latency.

    python benchmarks/graph.py [--rounds 7] [--densities 0.2 0.05 0.01]

ResNet-34 with 16 values per layer at random positions, which have no structure that an encoding could use. The dense
file is that of `export --onnx --format dense`. Each load is a process of its own that has made another session before,
dense and compact one after the other; the peak is that of its resident memory above that before the load. Latency is of
one image, in one process with both sessions, one run of each after the other. One thread; medians, and medians of the
ratios within a round. Writes benchmarks/results/graph.json.
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
from collections import Counter
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from graph_load import session
from pipeline import processor

from atmc_tool.compressed import CompressedModel, CompressedWeight, sparsify
from atmc_tool.models import ARCHITECTURES
from exporters.onnx_file import build_onnx
from exporters.onnx_skeleton import trace_skeleton

IMAGE = (3, 224, 224)
VALUES = 16
FORMATS = ("dense", "compact")


def compressed(density: float) -> CompressedModel:
    """ResNet-34 with a share `density` of every weight kept at random, of 16 values; scaled to keep the variance."""
    network = ARCHITECTURES["resnet34"].build()
    skeleton = trace_skeleton(network, IMAGE, 10, (0.0,), (1.0,))
    rng = np.random.default_rng(0)
    weights, rest = {}, {}
    for name, tensor in network.state_dict().items():
        array = tensor.numpy()
        if array.ndim < 2:
            rest[name] = array
            continue
        positions = rng.choice(array.size, round(density * array.size), replace=False)
        values = rng.standard_normal(VALUES).astype(np.float32) * array.std() / np.float32(density) ** 0.5
        dense = np.zeros(array.size, np.float32)
        dense[positions] = rng.choice(values, len(positions))
        factor = sparsify(dense.reshape(len(array), -1), quantized=True)
        weights[name] = CompressedWeight(array.shape, {CompressedWeight(array.shape, {}).main: factor})
    return CompressedModel(weights, rest, skeleton, {})


def load_apart(path: Path) -> dict[str, float]:
    """Seconds and peak of resident memory, in bytes, of one load by a process of its own."""
    command = [sys.executable, str(Path(__file__).with_name("graph_load.py")), str(path)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    result: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return result


def latencies(files: dict[str, Path], rounds: int) -> dict[str, list[float]]:
    """Seconds of one image by format, interleaved, after two that are not counted."""
    sessions = {name: session(str(path)) for name, path in files.items()}
    image = np.random.default_rng(0).random((1, *IMAGE), dtype=np.float32)
    seconds: dict[str, list[float]] = {name: [] for name in files}
    for _ in range(rounds + 2):
        for name, each in sessions.items():
            started = time.perf_counter()
            each.run(None, {"input": image})
            seconds[name].append(time.perf_counter() - started)
    return {name: each[2:] for name, each in seconds.items()}


def ratio(measured: dict[str, list[float]]) -> float:
    """Median over the rounds of compact ÷ dense."""
    return statistics.median(c / d for c, d in zip(measured["compact"], measured["dense"], strict=True))


def operators(path: Path, folder: Path) -> dict[str, int]:
    """How many operators of each kind are left after the optimisations that do not depend on the processor."""
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    options.optimized_model_filepath = str(folder / "optimized.onnx")
    options.log_severity_level = 3
    ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return dict(sorted(Counter(n.op_type for n in onnx.load(folder / "optimized.onnx").graph.node).items()))


def measure(density: float, rounds: int, folder: Path) -> dict[str, Any]:
    """All that is measured of one density."""
    model = compressed(density)
    files = {name: folder / f"{name}.onnx" for name in FORMATS}
    for name, path in files.items():
        path.write_bytes(build_onnx(model, "0" * 64, dense=name == "dense"))
    left = {name: operators(path, folder) for name, path in files.items()}
    weights = 4 * sum(int(np.prod(weight.shape)) for weight in model.weights.values())
    rest = sum(array.nbytes for array in model.rest.values())
    proto = onnx.load(files["compact"])
    del model
    loads = [{name: load_apart(path) for name, path in files.items()} for _ in range(rounds)]
    seconds, peaks = ({name: [each[name][what] for each in loads] for name in FORMATS} for what in ("seconds", "peak"))
    latency = latencies(files, 3 * rounds)
    return {
        "density": density,
        "bytes": {name: path.stat().st_size for name, path in files.items()},
        "weight_bytes": weights,
        "other_parameter_bytes": rest,
        "decoders": dict(Counter(node.op_type for node in proto.graph.node if node.domain)),
        "function_bytes": sum(function.ByteSize() for function in proto.functions),
        "same_operators_once_loaded": left["compact"] == left["dense"],
        "operators": left["compact"],
        "load_seconds": seconds,
        "load_ratio": ratio(seconds),
        "peak_bytes": peaks,
        "peak_over_weights": {name: statistics.median(each) / weights for name, each in peaks.items()},
        "latency_seconds": {name: statistics.median(each) for name, each in latency.items()},
        "latency_ratio": ratio(latency),
    }


def main() -> None:
    """Measure, print a line for each density and write the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--densities", type=float, nargs="+", default=[0.2, 0.05, 0.01])
    arguments = parser.parse_args()
    lines = []
    for density in arguments.densities:
        with tempfile.TemporaryDirectory() as folder:
            line = measure(density, arguments.rounds, Path(folder))
        lines.append(line)
        peaks = line["peak_over_weights"]
        print(
            f"{density:.0%}: {line['bytes']['compact']:,} bytes of {line['bytes']['dense']:,}, "
            f"load {line['load_ratio']:.2f} × dense, "
            f"peak {peaks['compact']:.2f} × weights (dense {peaks['dense']:.2f}), "
            f"latency {line['latency_ratio']:.3f} × dense, same operators: {line['same_operators_once_loaded']}",
            flush=True,
        )
    result = {
        "command": f"python benchmarks/graph.py {' '.join(sys.argv[1:])}".strip(),
        "machine": processor(),
        "load_average": os.getloadavg(),
        "threads": 1,
        "network": "ResNet-34",
        "image": IMAGE,
        "values": VALUES,
        "rounds": arguments.rounds,
        "python": platform.python_version(),
        "versions": {package: version(package) for package in ("numpy", "onnx", "onnxruntime-gpu")},
        "densities": lines,
    }
    path = Path(__file__).parent / "results" / "graph.json"
    path.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
