"""Small networks that between them hold what users' networks hold, and onnxruntime to run them."""

import functools
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from exporters.onnx_skeleton import trace_skeleton

OFF = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
BASIC = ort.GraphOptimizationLevel.ORT_ENABLE_BASIC
EXTENDED = ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
DEFAULT = ort.GraphOptimizationLevel.ORT_ENABLE_ALL


class Residual(nn.Module):
    """Batch norm, a strided shortcut, functional pooling; a convolution with more outputs than inputs (m > n)."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 40, 3, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(40)
        self.down = nn.Conv2d(40, 16, 3, stride=2, padding=1)
        self.bn_down = nn.BatchNorm2d(16)
        self.shortcut = nn.Conv2d(40, 16, 1, stride=2, bias=False)
        self.fc = nn.Linear(16, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn(self.stem(x)))
        x = F.relu(self.bn_down(self.down(x)) + self.shortcut(x))
        return self.fc(F.adaptive_avg_pool2d(x, 1).flatten(1))


class Unusual(nn.Module):
    """No batch norm; groups, dilation, slices, pads, a bare parameter, a buffer outside the state dict, dropout,
    a parameter with two names, one that only training needs, and names as torch gives them to values of the graph."""

    def __init__(self) -> None:
        super().__init__()
        self.relu = nn.Parameter(torch.ones(8, 1, 1))
        self.conv2d = nn.Conv2d(4, 8, 3, groups=2, dilation=2, padding="same")
        self.hidden = nn.Linear(12, 12)
        self.again = nn.Linear(12, 12)
        self.again.weight = self.hidden.weight
        self.head = nn.Linear(12, 10)
        self.auxiliary = nn.Linear(12, 10)
        self.register_buffer("temperature", torch.tensor(2.0))
        self.register_buffer("offset", torch.tensor(0.25), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.conv2d(x) * self.relu + self.offset)
        x = F.pad(F.avg_pool2d(x, 2)[:, :, ::2, ::2], (0, 0, 0, 0, 2, 2)).mean((2, 3))
        x = F.dropout(self.again(torch.tanh(self.hidden(x))), training=self.training)
        return self.head(x) / self.temperature


class Branching(nn.Module):
    """Control flow that ONNX has, with parameters read inside of it; a state dict that does not hold tensors alone."""

    def __init__(self) -> None:
        super().__init__()
        self.bright = nn.Linear(16, 10)
        self.dark = nn.Linear(16, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = x.flatten(1)
        return torch.cond(x.sum() > 0, lambda x: torch.relu(self.bright(x)), lambda x: self.dark(x), (x,))

    def get_extra_state(self) -> dict[str, int]:
        return {"version": 1}

    def set_extra_state(self, state: object) -> None:
        pass


class Linear(nn.Module):
    """One layer."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(75, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(x.view(-1, 75))


# name -> class, shape of an image, mean and std per channel
NETWORKS: dict[str, tuple[type[nn.Module], tuple[int, int, int], tuple[float, ...], tuple[float, ...]]] = {
    "residual": (Residual, (3, 10, 10), (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)),
    "unusual": (Unusual, (4, 8, 8), (0.5,), (0.5,)),
    "linear": (Linear, (3, 5, 5), (0.0,), (1.0,)),
}


def randomized(network: nn.Module, seed: int = 0) -> nn.Module:
    """The network with every parameter and float buffer random, so that no part of it goes without effect."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, tensor in network.state_dict().items():
            if tensor.is_floating_point():
                noise = torch.randn(tensor.shape, generator=generator)
                scale = max(1, tensor[0].numel()) ** -0.5 if tensor.ndim > 1 else 0.3
                tensor.copy_(noise.abs() + 0.5 if name.endswith("running_var") else noise * scale)
    return network


@functools.cache
def traced(name: str) -> tuple[nn.Module, bytes]:
    """A network of NETWORKS with random weights, and its skeleton."""
    build, shape, mean, std = NETWORKS[name]
    network = randomized(build())
    return network, trace_skeleton(network, shape, 10, mean, std)


def torch_logits(
    network: nn.Module, mean: tuple[float, ...], std: tuple[float, ...], images: NDArray[np.float32]
) -> NDArray[np.float32]:
    shift, scale = (torch.tensor(values).reshape(-1, 1, 1) for values in (mean, std))
    with torch.no_grad():
        return network.eval()((torch.from_numpy(images) - shift) / scale).numpy()


def run(
    content: bytes, fed: Mapping[str, NDArray[Any]], outputs: list[str] | None = None, level: Any = DEFAULT
) -> list[Any]:
    options = ort.SessionOptions()
    options.graph_optimization_level = level
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    return ort.InferenceSession(content, options, ["CPUExecutionProvider"]).run(outputs, dict(fed))


def optimized_operators(content: bytes, level: Any, folder: Path) -> Counter[str]:
    """The operators that onnxruntime is left with when it has loaded the model."""
    options = ort.SessionOptions()
    options.graph_optimization_level = level
    options.optimized_model_filepath = str(folder / "optimized.onnx")
    options.log_severity_level = 3
    ort.InferenceSession(content, options, ["CPUExecutionProvider"])
    return Counter(node.op_type for node in onnx.load(folder / "optimized.onnx").graph.node)


def images(shape: tuple[int, int, int], n: int) -> NDArray[np.float32]:
    return np.random.default_rng(n).random((n, *shape), dtype=np.float32)
