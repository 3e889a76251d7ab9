"""Networks with emptied filters and channels compute the same without them; what can't go stays."""

import functools
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import onnx
import pytest
import torch
import torch.nn.functional as F
import user_networks
from onnx_networks import randomized, run
from torch import Tensor, nn

from atmc_tool.compressed import CompressedModel, CompressedWeight, SparseTensor, sparsify
from atmc_tool.errors import InputError
from atmc_tool.models import resolve_architecture
from exporters.channel_removal import remove_channels
from exporters.onnx_file import build_onnx
from exporters.onnx_skeleton import trace_skeleton

DIGEST = "0" * 64
SHAPE = (3, 32, 32)


class Dense(nn.Module):
    """Concatenations as in DenseNet: each layer reads all before it; batch norm before the convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.norms = nn.ModuleList(nn.BatchNorm2d(8 + 6 * i) for i in range(3))
        self.layers = nn.ModuleList(nn.Conv2d(8 + 6 * i, 6, 3, padding=1, bias=False) for i in range(3))
        self.head = nn.Linear(26, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for norm, layer in zip(self.norms, self.layers, strict=True):
            x = torch.cat([x, F.avg_pool2d(layer(F.relu(norm(x))), 3, 1, 1)], 1)
        return self.head(F.max_pool2d(x, 2).mean((2, 3)))


class Grouped(nn.Module):
    """Groups, squeeze and excitation, activations that move zero, a linear layer without bias after a flatten."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 12, 3, padding=1)
        self.grouped = nn.Conv2d(12, 18, 3, padding=1, groups=3)
        self.depthwise = nn.Conv2d(18, 36, 3, groups=18)
        self.squeeze, self.excite = nn.Conv2d(36, 9, 1), nn.Conv2d(9, 36, 1)
        self.scale = nn.Parameter(torch.ones(36, 1, 1))
        self.hidden = nn.Linear(36 * 9, 20, bias=False)
        self.head = nn.Linear(20, 10, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        x = F.gelu(self.grouped(torch.sigmoid(self.stem(x))))
        x = self.depthwise(x)
        x = x * torch.sigmoid(self.excite(F.silu(self.squeeze(x.mean((2, 3), keepdim=True))))) * self.scale
        return self.head(F.elu(self.hidden(F.adaptive_avg_pool2d(F.hardswish(x)[:, :, 2:, 2:], 3).flatten(1))))


class Plain(nn.Module):
    """Biases, padding, average pooling with padding, a flatten into linear layers, a tanh that keeps constants."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 10, 3, padding=1)
        self.second = nn.Conv2d(10, 12, 3, padding=1)
        self.third = nn.Conv2d(12, 8, 3)
        self.hidden, self.head = nn.Linear(8 * 9, 30), nn.Linear(30, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(torch.tanh(self.first(x)), 2)
        x = F.leaky_relu(self.third(F.avg_pool2d(self.second(x), 3, 2, 1) + 0.25))
        return self.head(F.softplus(self.hidden(F.pad(x, (0, 1, 1, 0)).flatten(1))))


BUILDS: Mapping[str, Callable[[], nn.Module]] = {
    "plain": Plain,
    "dense": Dense,
    "grouped": Grouped,
    **{name: resolve_architecture(name).build for name in ("resnet20", "resnet18-8", "resnet50-4", "vgg16-8")},
    "mobilenet-v2": resolve_architecture("mobilenet-v2").build,
}
TAKES: Mapping[str, Callable[[np.random.Generator, tuple[int, ...]], np.ndarray]] = {
    "filters": lambda rng, shape: rng.random((shape[0], *[1] * (len(shape) - 1))) < 0.5,
    "channels": lambda rng, shape: rng.random((1, shape[1], *[1] * (len(shape) - 2))) < 0.5,
    "both": lambda rng, shape: TAKES["filters"](rng, shape) & TAKES["channels"](rng, shape),
}


@functools.cache
def traced(name: str) -> tuple[nn.Module, bytes]:
    network = BUILDS[name]()
    return network, trace_skeleton(network, SHAPE, 10, (0.4, 0.4, 0.5), (0.25,) * 3)


def structured(name: str, take: str, seed: int = 0, quantized: bool = True) -> CompressedModel:
    """The network with random weights of 15 values, of which `take` empties some units."""
    network, skeleton = traced(name)
    randomized(network, seed)
    rng = np.random.default_rng(seed)
    weights = {}
    for name, parameter in network.named_parameters():
        if parameter.ndim < 2 or name == "scale":
            continue
        w = parameter.detach().numpy() * 1.7 * TAKES[take](rng, tuple(parameter.shape))
        largest = max(np.abs(w).max(), 1e-9)
        w = np.round(w / largest * 7) / 7 * largest
        empty = CompressedWeight(tuple(w.shape), {})
        weights[name] = CompressedWeight(
            empty.shape, {empty.main: sparsify(w.reshape(empty.matrix_shape).astype(np.float32), quantized=quantized)}
        )
    rest = {name: tensor.numpy() for name, tensor in network.state_dict().items() if name not in weights}
    return CompressedModel(weights, rest, skeleton, {})


def logits(model: CompressedModel) -> np.ndarray:
    info = onnx.load_from_string(model.skeleton).graph.input[0]
    shape = [d.dim_value for d in info.type.tensor_type.shape.dim][1:]
    x = np.random.default_rng(7).random((3, *shape), dtype=np.float32)
    result: np.ndarray = run(build_onnx(model, DIGEST), {"input": x}, ["logits"])[0]
    return result


def assert_same(model: CompressedModel, small: CompressedModel) -> None:
    expected = logits(model)
    np.testing.assert_allclose(logits(small), expected, rtol=0, atol=1e-5 * max(1, np.abs(expected).max()))


@pytest.mark.parametrize("take", TAKES)
@pytest.mark.parametrize("name", BUILDS)
def test_logits_are_the_same(name: str, take: str) -> None:
    model = structured(name, take)
    small, removal = remove_channels(model)
    assert removal is not None
    print(name, take, removal)
    assert 0 < removal.removed < removal.filters
    assert_same(model, small)
