"""Random graphs with empty filters and channels, straight as ONNX skeletons, and networks with the usual structures."""

import itertools
from collections.abc import Callable, Mapping

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from onnx import NodeProto, TensorProto, helper, numpy_helper
from torch import Tensor, nn

from atmc_tool.compressed import CompressedModel, CompressedWeight, sparsify


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
        x = F.pad(F.max_pool2d(x, 3), (0, 1, 1, 0)).flatten(1)
        return self.head(F.silu(self.hidden(x)))


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


class Residual(nn.Module):
    """Blocks of ResNets: an identity, a convolution as the shortcut, and a shortcut that pads channels with zeros."""

    def __init__(self) -> None:
        super().__init__()
        widths = [8, 8, 8, 12, 16]
        self.stem = nn.Conv2d(3, 8, 3, padding=1, bias=False)
        self.convs = nn.ModuleList(nn.Conv2d(a, b, 3, padding=1, bias=False) for a, b in itertools.pairwise(widths))
        self.norms = nn.ModuleList(nn.BatchNorm2d(n) for n in widths)
        self.shortcut = nn.Conv2d(8, 12, 1, stride=2)
        self.head = nn.Linear(widths[-1], 10)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norms[0](self.stem(x)))
        x = F.relu(x + self.norms[2](self.convs[1](F.relu(self.norms[1](self.convs[0](x))))))
        x = F.relu(self.shortcut(x) + F.max_pool2d(self.norms[3](self.convs[2](x)), 2))
        y = F.relu(self.norms[4](self.convs[3](x)))
        x = y[:, :, ::2, ::2] + F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 2, 2))
        return self.head(F.adaptive_avg_pool2d(x, 1).flatten(1))


class Inverted(nn.Module):
    """Inverted residuals as in MobileNet-V2: expansion, depthwise convolution, projection, all with batch norms."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 3, 2, 1, bias=False)
        self.expand = nn.ModuleList(nn.Conv2d(6, 24, 1, bias=False) for _ in range(2))
        self.depth = nn.ModuleList(nn.Conv2d(24, 24, 3, padding=1, groups=24, bias=False) for _ in range(2))
        self.project = nn.ModuleList(nn.Conv2d(24, 6, 1, bias=False) for _ in range(2))
        self.norms = nn.ModuleList(nn.BatchNorm2d(n) for n in [24, 24, 6] * 2)
        self.head = nn.Linear(6, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for i in range(2):
            y = F.relu6(self.norms[3 * i](self.expand[i](x)))
            x = x + self.norms[3 * i + 2](self.project[i](F.relu6(self.norms[3 * i + 1](self.depth[i](y)))))
        return self.head(x.mean((2, 3)))


NETWORKS: Mapping[str, Callable[[], nn.Module]] = {
    "plain": Plain,
    "dense": Dense,
    "grouped": Grouped,
    "residual": Residual,
    "inverted": Inverted,
}


def weight(dense: NDArray[np.float32], quantized: bool) -> CompressedWeight:
    """`dense` as one factor."""
    empty = CompressedWeight(dense.shape, {})
    return CompressedWeight(empty.shape, {empty.main: sparsify(dense.reshape(empty.matrix_shape), quantized=quantized)})


class RandomNetwork:
    """A graph of random operators on (3, 8, 8) images; every weight has lost some filters and some channels."""

    def __init__(self, seed: int) -> None:
        self.rng = np.random.default_rng(seed)
        self.nodes: list[NodeProto] = []
        self.constants: list[TensorProto] = []
        self.parameters: dict[str, NDArray[np.float32]] = {}
        self.values: list[tuple[str, int, int]] = [("input", 3, 8)]  # name, channels, height and width
        for _ in range(self.rng.integers(4, 11)):
            steps = [self.convolution, self.convolution, self.norm, self.unary, self.unary, self.pool, self.pair]
            late = self.rng.integers(max(0, len(self.values) - 3), len(self.values))
            steps[self.rng.integers(len(steps))](*self.values[late])

    def model(self) -> CompressedModel:
        """The network with a head of two linear layers over the last values."""
        features, width = [], 0
        for name, channels, size in self.values[-2:]:
            if self.rng.random() < 0.5:
                features.append(self.node("ReduceMean", name, self.constant([2, 3]), keepdims=0))
                width += channels
            else:
                features.append(self.node("Reshape", name, self.constant([-1, channels * size * size])))
                width += channels * size * size
        joined = self.node("Concat", *features, axis=1)
        hidden = self.linear(joined, width, 6, "")
        self.linear(self.node("Relu", hidden), 6, 4, "logits")
        inputs = [helper.make_tensor_value_info("input", TensorProto.FLOAT, ["N", 3, 8, 8])]
        inputs += [helper.make_tensor_value_info(n, TensorProto.FLOAT, a.shape) for n, a in self.parameters.items()]
        output = helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["N", 4])
        graph = helper.make_graph(self.nodes, "g", inputs, [output], self.constants)
        proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
        weights = {
            name: weight(array, quantized=array.size <= 250)
            for name, array in self.parameters.items()
            if name.endswith("weight")
        }
        rest = {name: array for name, array in self.parameters.items() if name not in weights}
        return CompressedModel(weights, rest, proto.SerializeToString(), {})

    def node(self, operator: str, *inputs: str, name: str = "", **attributes: object) -> str:
        name = name or f"v{len(self.nodes)}"
        self.nodes.append(helper.make_node(operator, inputs, [name], **attributes))
        return name

    def constant(self, values: object) -> str:
        name = f"c{len(self.constants)}"
        self.constants.append(numpy_helper.from_array(np.asarray(values), name))
        return name

    def parameter(self, kind: str, array: NDArray[np.float64]) -> str:
        name = f"p{len(self.parameters)}.{kind}"
        self.parameters[name] = array.astype(np.float32)
        return name

    def emptied(self, shape: tuple[int, ...], fan_in: int) -> NDArray[np.float64]:
        array = self.rng.standard_normal(shape) * fan_in**-0.5
        array[self.rng.random(shape[0]) < 0.5] = 0
        array[:, self.rng.random(shape[1]) < 0.3] = 0
        return array

    def some(self, n: int) -> NDArray[np.float64]:
        """A bias: some of it zero, some negative."""
        return self.rng.standard_normal(n) * (self.rng.random(n) < 0.7) * 0.5

    def convolution(self, x: str, channels: int, size: int) -> None:
        groups = int(self.rng.choice([g for g in (1, 1, 2, 3, channels) if channels % g == 0]))
        outputs, kernel = groups * int(self.rng.integers(1, 7 if groups == 1 else 3)), int(self.rng.choice([1, 3]))
        pad, stride = int(self.rng.integers(0, kernel)), int(self.rng.integers(1, 3))
        after = (size + 2 * pad - kernel) // stride + 1
        if after < 1:
            return
        shape = (outputs, channels // groups, kernel, kernel)
        inputs = [x, self.parameter("weight", self.emptied(shape, channels // groups * kernel))]
        if self.rng.random() < 0.6:
            inputs.append(self.parameter("bias", self.some(outputs)))
        name = self.node("Conv", *inputs, group=groups, pads=[pad] * 4, strides=[stride] * 2, kernel_shape=[kernel] * 2)
        self.values.append((name, outputs, after))

    def norm(self, x: str, channels: int, size: int) -> None:
        gamma = self.rng.standard_normal(channels) * (self.rng.random(channels) < 0.7)
        arrays = [gamma, self.some(channels), self.some(channels), self.rng.random(channels) + 0.5]
        kinds = ("gamma", "beta", "mean", "var")
        names = [self.parameter(kind, array) for kind, array in zip(kinds, arrays, strict=True)]
        self.values.append((self.node("BatchNormalization", x, *names), channels, size))

    def unary(self, x: str, channels: int, size: int) -> None:
        operator = self.rng.choice(["Relu", "Relu", "Sigmoid", "Clip", "HardSwish", "Softmax", "Mul"])
        if operator == "Clip":
            name = self.node("Clip", x, self.constant(np.float32(0)), self.constant(np.float32(0.4)))
        elif operator == "Softmax":  # has no rule
            name = self.node("Softmax", x, axis=1)
        elif operator == "Mul":
            name = self.node("Mul", x, self.parameter("scale", self.some(channels)[:, None, None]))
        else:
            name = self.node(operator, x)
        self.values.append((name, channels, size))

    def pool(self, x: str, channels: int, size: int) -> None:
        kind = self.rng.integers(4)
        if kind == 0 and size > 1:
            self.values.append((self.node("MaxPool", x, kernel_shape=[2, 2], strides=[2, 2]), channels, size // 2))
        elif kind == 1:
            counted = int(self.rng.integers(2))
            name = self.node("AveragePool", x, kernel_shape=[3, 3], pads=[1] * 4, count_include_pad=counted)
            self.values.append((name, channels, size))
        elif kind == 2:
            before, after, places = self.rng.integers(0, 3, 3)
            pads = self.constant([0, before, places, 0, 0, after, 0, places])
            value = [self.constant(np.float32(0.3))] if self.rng.random() < 0.5 else []
            self.values.append((self.node("Pad", x, pads, *value), channels + int(before + after), size + int(places)))
        elif size > 1:
            bounds = (self.constant([v, v]) for v in (0, size, 2))
            starts, ends, steps = bounds
            axes = self.constant([2, 3])
            self.values.append((self.node("Slice", x, starts, ends, axes, steps), channels, (size + 1) // 2))

    def pair(self, x: str, channels: int, size: int) -> None:
        others = [name for name, c, s in self.values if (c, s) == (channels, size) and name != "input"]
        beside = [(name, c) for name, c, s in self.values if s == size and c + channels < 40]
        if others and self.rng.random() < 0.6:
            operator = self.rng.choice(["Add", "Sub", "Mul", "Max"])
            self.values.append((self.node(operator, x, others[self.rng.integers(len(others))]), channels, size))
        elif beside:
            other, more = beside[self.rng.integers(len(beside))]
            self.values.append((self.node("Concat", x, other, axis=1), channels + more, size))

    def linear(self, x: str, width: int, outputs: int, name: str) -> str:
        if self.rng.random() < 0.5:
            matrix, bias = self.emptied((width, outputs), width), self.some(outputs)
            return self.node("Gemm", x, self.parameter("weight", matrix), self.parameter("bias", bias), name=name)
        return self.node(
            "Gemm", x, self.parameter("weight", self.emptied((outputs, width), width)), name=name, transB=1
        )
