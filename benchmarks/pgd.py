"""PGD in onnxruntime against PGD in torch, image for image; writes benchmarks/results/pgd.json.

    python benchmarks/pgd.py

Random weights, for speed does not depend on what a network has learnt. In each round each contender attacks the same
batch by PGD of ten steps on the cross-entropy, in turn, each round beginning with another one; times are processor
time on one thread, so that other work on the machine counts less. Contenders: this tool on the exported file; the loop
that a user of torch writes; and this tool on the torch network. That all do the same is seen after one step, for ten
steps of an untrained network carry rounding far.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from atmc_tool.attacks.pgd import pgd
from atmc_tool.compressed import CompressedModel
from atmc_tool.machine import machine
from atmc_tool.models import resolve_architecture
from atmc_tool.torch_classifier import TorchClassifier
from evaluators.classifier import OrtClassifier
from exporters.onnx_file import build_onnx
from exporters.onnx_skeleton import trace_skeleton

EPS, STEPS, ROUNDS = 8 / 255, 10, 5
# name → image, images in a batch
NETWORKS = {
    "lenet": ((1, 28, 28), 128),
    "resnet18-16": ((3, 32, 32), 64),
    "mobilenet-v2": ((3, 32, 32), 32),
}
RESULT = Path(__file__).parent / "results" / "pgd.json"


def plain(network: nn.Module, images: Tensor, labels: Tensor, steps: int) -> Tensor:
    """PGD as a user of torch writes it."""
    x = images.clone()
    for _ in range(steps):
        x.requires_grad_()
        loss = F.cross_entropy(network(x), labels)
        (gradient,) = torch.autograd.grad(loss, x)
        with torch.no_grad():
            x = x + 2.5 * EPS / STEPS * gradient.sign()
            x = torch.clamp(torch.min(torch.max(x, images - EPS), images + EPS), 0, 1)
    return x


def contenders(name: str) -> dict[str, Callable[[int], Any]]:
    """Name → an attack on one batch by a number of steps."""
    shape, n = NETWORKS[name]
    torch.manual_seed(0)
    network = resolve_architecture(name).build(10).eval()
    state = {key: tensor.numpy() for key, tensor in network.state_dict().items()}
    skeleton = trace_skeleton(network, shape, 10, (0.0,), (1.0,))
    content = build_onnx(CompressedModel({}, state, skeleton, {}), "0" * 64, dense=True)
    file, ours = (
        OrtClassifier(content, "cpu", threads=1),
        TorchClassifier(network, network.state_dict(), (0.0,), (1.0,)),
    )
    images: NDArray[np.float32] = np.random.default_rng(0).random((n, *shape), np.float32)
    labels = np.arange(n) % 10
    x, y = torch.from_numpy(images), torch.from_numpy(labels)
    size = 2.5 * EPS / STEPS

    def in_torch(steps: int) -> Tensor:
        with torch.no_grad():
            return pgd(ours, x, y, EPS, steps=steps, step_size=size)

    return {
        "onnxruntime": lambda steps: pgd(file, images, labels, EPS, steps=steps, step_size=size),
        "torch, plain loop": lambda steps: plain(network, x, y, steps),
        "torch, this tool": in_torch,
    }


def measure(name: str, rounds: int) -> dict[str, Any]:
    """Milliseconds per image and step, medians, and medians of the ratios within a round."""
    attacks = contenders(name)
    first = {key: np.asarray(attack(1)) for key, attack in attacks.items()}
    agreeing = np.isclose(first["onnxruntime"], first["torch, plain loop"], rtol=0, atol=1e-6)
    times: dict[str, list[float]] = {key: [] for key in attacks}
    for round_ in range(rounds):
        order = list(attacks)[round_ % 3 :] + list(attacks)[: round_ % 3]
        for key in order:
            start = time.process_time()
            attacks[key](STEPS)
            times[key].append(time.process_time() - start)
    images = NETWORKS[name][1]
    ort = times["onnxruntime"]
    return {
        "batch": images,
        "pixels of the first step equal in the file and the plain loop": float(agreeing.mean()),
        "ms per image and step": {k: 1000 * statistics.median(t) / images / STEPS for k, t in times.items()},
        "onnxruntime is faster, times": {
            key: {
                "median": statistics.median(t / o for t, o in zip(each, ort, strict=True)),
                "quartiles": statistics.quantiles([t / o for t, o in zip(each, ort, strict=True)])[::2],
            }
            for key, each in times.items()
            if key != "onnxruntime"
        },
    }


def main() -> None:
    """Measure and write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=list(NETWORKS))
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    result: dict[str, Any] = {
        "command": f"python benchmarks/pgd.py --rounds {arguments.rounds}",
        "machine": machine(torch.device("cpu")),
        "versions": {"torch": torch.__version__, "onnxruntime": onnxruntime.__version__},
        "steps": STEPS,
        "networks": {},
    }
    for name in arguments.networks:
        result["networks"][name] = measure(name, arguments.rounds)
        print(name, json.dumps(result["networks"][name], indent=1), flush=True)
    if arguments.networks == list(NETWORKS):
        RESULT.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
