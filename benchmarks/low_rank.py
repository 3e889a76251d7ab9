"""Layers of low rank run as two: dense ÷ factored latency beside the prediction by count of operations.

    python benchmarks/low_rank.py [--rounds 15]   # about two minutes on one core

ResNet-18 (CIFAR stem, width 64) and VGG-16, random weights, each weight replaced by its best approximation of a
quarter of its full rank, as `compress --method alr` starts; 32 × 32 images, onnxruntime on one thread, interleaved,
median of the ratios within a round. Writes benchmarks/results/low_rank.json.
"""

import argparse
import json
import platform
import statistics
import sys
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import torch
from pipeline import processor

from atmc_tool.budget import compressible
from atmc_tool.compressed import CompressedModel, CompressedWeight, sparsify
from atmc_tool.models import find_architecture
from exporters.factored_execution import factor_execution
from exporters.onnx_file import build_onnx
from exporters.onnx_skeleton import trace_skeleton

ROOT = Path(__file__).parents[1]
NETWORKS = ("resnet18", "vgg16")
BATCHES = (1, 8)
SHARE = 0.25  # of the full rank


def low_rank(matrix: torch.Tensor) -> CompressedWeight:
    """The best approximation of `matrix`, a weight, of a quarter of its rank, as V + U V (or U + U V)."""
    m, n = len(matrix), matrix[0].numel()
    rank = max(1, round(SHARE * min(m, n)))
    left, values, right = torch.linalg.svd(matrix.reshape(m, n), full_matrices=False)
    a, b = left[:, :rank] * values[:rank].sqrt(), values[:rank].sqrt()[:, None] * right[:rank]
    if m <= n:
        main, side = torch.zeros(m, n), torch.zeros(m, m)
        main[:rank], side[:, :rank] = b, a - torch.eye(m)[:, :rank]
        parts = {"U": side, "V": main}
    else:
        main, side = torch.zeros(m, n), torch.zeros(n, n)
        main[:, :rank], side[:rank] = a, b - torch.eye(n)[:rank]
        parts = {"U": main, "V": side}
    factors = {name: sparsify(part.numpy(), quantized=False) for name, part in parts.items()}
    return CompressedWeight(tuple(matrix.shape), factors)


def network(name: str) -> CompressedModel:
    """The network `name` with weights of low rank."""
    architecture = find_architecture(name)
    assert architecture is not None
    torch.manual_seed(0)
    module = architecture.build(10).eval()
    chosen, _ = compressible(module)
    weights = {key: low_rank(weight.detach()) for key, weight in chosen.items()}
    rest = {key: tensor.numpy() for key, tensor in module.state_dict().items() if key not in weights}
    return CompressedModel(weights, rest, trace_skeleton(module, (3, 32, 32), 10, [0.0], [1.0]), {})


def session(content: bytes) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    return ort.InferenceSession(content, options, providers=["CPUExecutionProvider"])


def seconds(runner: ort.InferenceSession, images: np.ndarray) -> float:
    """Processor time of one call, the least of three."""
    times = []
    for _ in range(3):
        started = time.process_time()
        runner.run(None, {"input": images})
        times.append(time.process_time() - started)
    return min(times)


def measure(name: str, rounds: int) -> dict[str, Any]:
    """Ratios of one network and what was predicted."""
    model = network(name)
    split, factored = factor_execution(model)
    assert factored is not None
    dense, two = (session(build_onnx(each, "0" * 64, dense=True)) for each in (model, split))
    result: dict[str, Any] = {"network": name, "layers": len(factored.ranks), "predicted": factored.times}
    for batch in BATCHES:
        images = np.random.default_rng(0).random((batch, 3, 32, 32), np.float32)
        before, after = (runner.run(None, {"input": images})[0] for runner in (dense, two))
        ratios = [seconds(dense, images) / seconds(two, images) for _ in range(rounds)]
        result[f"batch {batch}"] = {
            "dense ÷ two layers": statistics.median(ratios),
            "least": min(ratios),
            "most": max(ratios),
            "logit difference": float(np.abs(before - after).max() / np.abs(before).max()),
        }
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15)
    rounds = parser.parse_args().rounds
    torch.set_num_threads(1)
    result = {
        "command": f"python benchmarks/low_rank.py {' '.join(sys.argv[1:])}".strip(),
        "machine": {"processor": processor(), "python": platform.python_version()},
        "versions": {package: version(package) for package in ("onnx", "numpy", "torch")}
        | {"onnxruntime": ort.__version__},
        "networks": [measure(name, rounds) for name in NETWORKS],
    }
    print(json.dumps(result, indent=2))
    (ROOT / "benchmarks" / "results" / "low_rank.json").write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
