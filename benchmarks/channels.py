"""How much faster onnxruntime runs a network without its empty filters or channels; benchmarks/results/channels.json.

    python benchmarks/channels.py

Networks of random weights and batch norms, in 15 values per layer; in every convolution the half of the filters (or of
the input channels) with the smaller L2 norms is emptied. Both files come from one model.atmc: one as it is, which
onnxruntime decodes to the dense network, one without what does nothing. One thread; rounds interleaved, in processor
time. Takes three minutes.
"""

import argparse
import json
import platform
import statistics
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import torch
from numpy.typing import NDArray
from pipeline import processor
from torch import nn

from atmc_tool.compressed import CompressedModel, CompressedWeight, sparsify
from atmc_tool.models import resolve_architecture
from exporters.channel_removal import remove_channels
from exporters.onnx_file import build_onnx
from exporters.onnx_skeleton import trace_skeleton

RESULT = Path(__file__).parent / "results" / "channels.json"
SHAPE = (3, 32, 32)
CASES = (("resnet18", 0), ("resnet18", 1), ("vgg16", 0), ("mobilenet-v2", 0))  # network, axis of what is emptied
LEVELS = 7  # of either sign


def randomized(network: nn.Module) -> nn.Module:
    """He-normal weights; batch norms as trained networks have them: scales about 1, shifts of either sign."""
    generator = torch.Generator().manual_seed(0)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d) and module.running_mean is not None and module.running_var is not None:
            nn.init.normal_(module.weight, 1, 0.2, generator=generator)
            nn.init.normal_(module.bias, 0, 0.2, generator=generator)
            nn.init.normal_(module.running_mean, 0, 0.2, generator=generator)
            nn.init.uniform_(module.running_var, 0.5, 1.5, generator=generator)
        elif isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, generator=generator)
    return network.eval()


def emptied(weight: NDArray[np.float32], axis: int) -> NDArray[np.float32]:
    """Rounded to equal steps, and zero in the half of the indices of `axis` that has the smaller norms."""
    step = np.abs(weight).max() / LEVELS
    rounded = np.round(weight / step) * step
    norms = np.sqrt((weight**2).sum(axis=tuple(set(range(weight.ndim)) - {axis})))
    keep = norms >= np.median(norms) if len(norms) > SHAPE[0] else np.ones(len(norms), np.bool_)
    return (rounded * np.expand_dims(keep, tuple(set(range(weight.ndim)) - {axis}))).astype(np.float32)


def compressed(name: str, axis: int) -> CompressedModel:
    """The network as a model.atmc would hold it."""
    network = randomized(resolve_architecture(name).build())
    weights = {}
    for key, parameter in network.named_parameters():
        if parameter.ndim == 4:
            dense = emptied(parameter.detach().numpy(), axis)
            empty = CompressedWeight(dense.shape, {})
            factor = sparsify(dense.reshape(empty.matrix_shape), quantized=True)
            weights[key] = CompressedWeight(empty.shape, {empty.main: factor})
    rest = {key: tensor.numpy() for key, tensor in network.state_dict().items() if key not in weights}
    return CompressedModel(weights, rest, trace_skeleton(network, SHAPE, 10, (0.5,) * 3, (0.25,) * 3), {})


def session(content: bytes) -> ort.InferenceSession:
    """On one thread of the CPU."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    return ort.InferenceSession(content, options, ["CPUExecutionProvider"])


def measured(name: str, axis: int, rounds: int) -> dict[str, Any]:
    """Sizes, the largest difference of a logit, and per batch size milliseconds and the ratio of every round."""
    model = compressed(name, axis)
    start = time.process_time()
    small, removal = remove_channels(model)
    seconds = time.process_time() - start
    assert removal is not None
    files = [build_onnx(each, "0" * 64) for each in (model, small)]
    sessions = [session(content) for content in files]
    result: dict[str, Any] = {
        "network": name,
        "emptied": "half of the filters" if axis == 0 else "half of the input channels",
        "removed": removal.removed,
        "filters": removal.filters,
        "times fewer multiplications": round(removal.times, 3),
        "seconds of removing": round(seconds, 2),
        "bytes of model.onnx": [len(content) for content in files],
        "batches": {},
    }
    for batch in (1, 8):
        images = np.random.default_rng(0).random((batch, *SHAPE), dtype=np.float32)
        logits = [each.run(None, {"input": images})[0] for each in sessions]
        milliseconds: list[list[float]] = [[], []]
        for _ in range(rounds):
            for each, times in zip(sessions, milliseconds, strict=True):
                start = time.process_time()
                each.run(None, {"input": images})
                times.append(1000 * (time.process_time() - start))
        ratios = sorted(dense / cut for dense, cut in zip(*milliseconds, strict=True))
        result["batches"][str(batch)] = {
            "milliseconds, dense and cut": [round(statistics.median(times), 2) for times in milliseconds],
            "times faster": round(statistics.median(ratios), 2),
            "quartiles": [round(ratios[len(ratios) // 4], 2), round(ratios[3 * len(ratios) // 4], 2)],
            "largest difference of a logit": float(np.abs(logits[0] - logits[1]).max()),
            "largest logit": float(np.abs(logits[0]).max()),
        }
    return result


def main() -> None:
    """Measure, print and write the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=31)
    arguments = parser.parse_args()
    lines = []
    for name, axis in CASES:
        lines.append(measured(name, axis, arguments.rounds))
        print(json.dumps(lines[-1]), flush=True)
    result = {
        "command": f"python benchmarks/channels.py --rounds {arguments.rounds}",
        "machine": processor(),
        "threads": 1,
        "python": platform.python_version(),
        "versions": {package: version(package) for package in ("onnxruntime-gpu", "torch", "numpy")},
        "networks": lines,
    }
    RESULT.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
