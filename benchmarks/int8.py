"""Speed, loading, memory and bytes of ResNet-18 dense, self-decoding and in int8; writes benchmarks/results/int8.json.

    python benchmarks/int8.py

ResNet-18 of width 64 on 3 × 32 × 32 images, random weights of which the largest 5 % are kept in 16 values, for speed
does not depend on what a network has learnt. By `evaluators.latency`, as `atmc-tool bench`: one thread, three processes
of each file, interleaved rounds.
"""

import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch
from torch import Tensor

from atmc_tool.compressed import CompressedModel, CompressedWeight, sparsify
from atmc_tool.machine import machine
from atmc_tool.models import ARCHITECTURES
from evaluators.latency import measure, speed
from exporters.atmc_file import encode_model
from exporters.int8 import int8_onnx
from exporters.onnx_file import build_onnx
from exporters.onnx_skeleton import trace_skeleton

KEEP, VALUES, SHAPE = 0.05, 16, (3, 32, 32)
BATCHES, ROUNDS, CALIBRATION = (1, 32), 7, 64
RESULT = Path(__file__).parent / "results" / "int8.json"


def pruned(weight: Tensor) -> CompressedWeight:
    """The largest entries, rounded to even steps."""
    dense = weight.detach().numpy().reshape(len(weight), -1)
    step = np.abs(dense).max() / (VALUES / 2)
    rounded = np.sign(dense) * np.maximum(1, np.round(np.abs(dense) / step)) * step
    kept = np.where(np.abs(dense) >= np.quantile(np.abs(dense), 1 - KEEP), rounded, 0).astype(np.float32)
    main = "V" if kept.shape[0] <= kept.shape[1] else "U"
    return CompressedWeight(tuple(weight.shape), {main: sparsify(kept, quantized=True)})


def main() -> None:
    """Measure and write the result."""
    torch.manual_seed(0)
    network = ARCHITECTURES["resnet18"].build().eval()
    weights = {name: pruned(p) for name, p in network.named_parameters() if p.ndim >= 2}
    rest = {name: tensor.numpy() for name, tensor in network.state_dict().items() if name not in weights}
    model = CompressedModel(weights, rest, trace_skeleton(network, SHAPE, 10, (0.0,), (1.0,)), {})
    images = np.random.default_rng(0).random((CALIBRATION, *SHAPE), np.float32)
    digest = "0" * 64
    files = {
        "dense": build_onnx(model, digest, dense=True),
        "self-decoding": build_onnx(model, digest),
        "int8": int8_onnx(model, digest, images, {}),
    }
    with tempfile.TemporaryDirectory() as folder:
        paths = [Path(folder) / f"{name}.onnx" for name in files]
        for path, content in zip(paths, files.values(), strict=True):
            path.write_bytes(content)
        measured = dict(zip(files, measure(paths, BATCHES, threads=1, rounds=ROUNDS), strict=True))
    dense = measured["dense"]
    result: dict[str, Any] = {
        "command": "python benchmarks/int8.py",
        "machine": machine(torch.device("cpu")),
        "onnxruntime": onnxruntime.__version__,
        "bytes of model.atmc": len(encode_model(model)),
        "speed against dense": {
            name: [speed(dense.timings[batch], each.timings[batch]).to_json() for batch in BATCHES]
            for name, each in measured.items()
            if name != "dense"
        },
        "files": {name: each.to_json() for name, each in measured.items()},
    }
    RESULT.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps({key: value for key, value in result.items() if key != "files"}, indent=1))


if __name__ == "__main__":
    main()
