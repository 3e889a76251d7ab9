"""Old ONNX files in torch, in float64: a reference for gradients that shares no code with the tool.

It has the operators of the networks that the onnx package tests runtimes with, as opset 9 states them.
"""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, numpy_helper
from torch import Tensor

from evaluators.onnx_graph import attributes


class TorchNetwork:
    """An ONNX network as a function of images, float64 (N, C, H, W) → float64 (N, classes); autograd runs through it.

    Raises:
        ValueError: when called, of an operator that is not known here.
    """

    def __init__(self, model: ModelProto) -> None:
        self._model = model
        arrays = {t.name: torch.from_numpy(np.array(numpy_helper.to_array(t))) for t in model.graph.initializer}
        self._weights = {name: a.double() if a.is_floating_point() else a for name, a in arrays.items()}
        self._image = next(info.name for info in model.graph.input if info.name not in arrays)

    def __call__(self, images: Tensor, computed: Mapping[str, NDArray[Any]] = MappingProxyType({})) -> Tensor:
        """The logits. computed: values in float32 that choose, where given, at each Relu and MaxPool that reads them;
        without it, a value near zero or a near tie may fall to the other side than in float32."""
        return self._run(images, computed, fits=False)

    def fit_batch_norms(self, images: Tensor) -> ModelProto:
        """The ONNX network with the statistics of its values on `images` in its batch norms, and here as well."""
        with torch.no_grad():
            self._run(images, {}, fits=True)
        fitted = ModelProto()
        fitted.CopyFrom(self._model)
        for tensor in fitted.graph.initializer:
            dtype = numpy_helper.to_array(tensor).dtype
            tensor.CopyFrom(numpy_helper.from_array(self._weights[tensor.name].numpy().astype(dtype), tensor.name))
        return fitted

    def _run(self, images: Tensor, computed: Mapping[str, NDArray[Any]], *, fits: bool) -> Tensor:
        values = {**self._weights, self._image: images}
        for node in self._model.graph.node:
            if fits and node.op_type == "BatchNormalization":
                x = values[node.input[0]]
                for name, statistic in zip(node.input[3:], (x.mean((0, 2, 3)), x.var((0, 2, 3))), strict=True):
                    # As float32, which the file holds; a channel of one value keeps its old variance.
                    usable = statistic if name == node.input[3] else torch.where(statistic > 0, statistic, values[name])
                    values[name] = self._weights[name] = usable.float().double()
            x = [values[name] for name in node.input]
            if node.op_type in ("Relu", "MaxPool"):
                chooser = torch.from_numpy(computed[node.input[0]]) if node.input[0] in computed else x[0]
                values[node.output[0]] = _chosen(node, x[0], chooser)
            else:
                values[node.output[0]] = _compute(node, x)
        return values[self._model.graph.output[0].name]


def _chosen(node: NodeProto, x: Tensor, chooser: Tensor) -> Tensor:
    """Relu or MaxPool of x, which elements pass being decided by `chooser`, of the shape of x."""
    if node.op_type == "Relu":
        return torch.where(chooser > 0, x, 0)
    a = attributes(node)
    top, left, bottom, right = a.get("pads", [0, 0, 0, 0])
    sides, least = (left, right, top, bottom), float("-inf")
    _, found = F.max_pool2d(
        F.pad(chooser, sides, value=least), a["kernel_shape"], a.get("strides", [1, 1]), return_indices=True
    )
    return F.pad(x, sides, value=least).flatten(2).gather(2, found.flatten(2)).reshape(found.shape)


def _compute(node: NodeProto, x: list[Tensor]) -> Tensor:
    """The first output of the node."""
    a, kind, first = attributes(node), node.op_type, x[0]
    if kind in ("Conv", "AveragePool"):
        top, left, bottom, right = a.get("pads", [0, 0, 0, 0])
        sides, strides = (left, right, top, bottom), a.get("strides", [1, 1])
        if kind == "Conv":
            bias = x[2] if len(x) > 2 else None
            return F.conv2d(F.pad(first, sides), x[1], bias, strides, 0, a.get("dilations", 1), a.get("group", 1))
        sums, counts = (F.avg_pool2d(F.pad(v, sides), a["kernel_shape"], strides) for v in (first, first * 0 + 1))
        return sums / counts  # padding does not count
    if kind == "LRN":
        size, channels = a["size"], first.shape[1]
        squares = F.pad(first * first, (0, 0, 0, 0, (size - 1) // 2, size // 2))
        total = torch.stack([squares[:, i : i + channels] for i in range(size)]).sum(0)
        scale: Tensor = (a.get("bias", 1.0) + a["alpha"] / size * total) ** a["beta"]
        return first / scale
    if kind == "BatchNormalization":
        scale, bias, mean, variance = x[1:]
        return F.batch_norm(first, mean, variance, scale, bias, eps=a.get("epsilon", 1e-5))
    if kind == "Gemm":
        product = (first.T if a.get("transA") else first) @ (x[1].T if a.get("transB") else x[1])
        return a.get("alpha", 1.0) * product + a.get("beta", 1.0) * x[2]
    return _simple(kind, a, x)


def _simple(kind: str, a: dict[str, list[int]], x: list[Tensor]) -> Tensor:
    first = x[0]
    if kind == "GlobalAveragePool":
        return first.mean((2, 3), keepdim=True)
    if kind in ("Dropout", "Identity"):
        return first
    if kind in ("Add", "Sum"):
        return torch.stack(torch.broadcast_tensors(*x)).sum(0)
    if kind == "Mul":
        return first * x[1]
    if kind == "Concat":
        return torch.cat(x, int(np.int64(a["axis"])))
    if kind == "Transpose":
        return first.permute(a["perm"])
    if kind == "Unsqueeze":
        for axis in sorted(a["axes"]):
            first = first.unsqueeze(axis)
        return first
    if kind == "Softmax":  # of no use to the logits before it
        return torch.softmax(first.flatten(1), 1)
    if kind == "Flatten":
        return first.flatten(1)
    if kind == "Reshape":
        return first.reshape([first.shape[i] if size == 0 else size for i, size in enumerate(x[1].tolist())])
    raise ValueError(f"unknown operator {kind}")
