"""Gradient rules of the operators that slide a window over the image: convolution and pooling."""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from onnx import NodeProto

from atmc_tool.errors import AtmcError
from evaluators.onnx_graph import GraphBuilder, attributes
from evaluators.onnx_product_rules import along_axis

# onnxruntime's blocked convolution (NCHWc) is faster than ConvTranspose where channels fill its blocks.
_BLOCK_IN, _BLOCK_OUT = 16, 8


class _Windows(NamedTuple):
    """How windows lie over an image, one number per spatial axis.

    size, n: elements of the image, and windows; kernel, stride, dilation of a window; begin, end: padding
    """

    size: list[int]
    n: list[int]
    kernel: list[int]
    stride: list[int]
    dilation: list[int]
    begin: list[int]
    end: list[int]

    @property
    def extent(self) -> list[int]:
        """Elements from the first to the last of a window."""
        return [(k - 1) * d + 1 for k, d in zip(self.kernel, self.dilation, strict=True)]

    @property
    def overhang(self) -> list[int]:
        """Padded elements behind the last window; negative where it reaches beyond them (ceil_mode)."""
        return [
            size + begin + end - (n - 1) * stride - extent
            for size, n, stride, begin, end, extent in zip(
                self.size, self.n, self.stride, self.begin, self.end, self.extent, strict=True
            )
        ]


def _windows(graph: GraphBuilder, node: NodeProto, kernel: list[int]) -> _Windows:
    values, spatial = attributes(node), range(2, 2 + len(kernel))
    size, n = graph.sizes(node.input[0], spatial), graph.sizes(node.output[0], spatial)
    stride, dilation = (values.get(name, [1] * len(kernel)) for name in ("strides", "dilations"))
    pads = values.get("pads", [0] * 2 * len(kernel))
    windows = _Windows(size, n, kernel, stride, dilation, pads[: len(kernel)], pads[len(kernel) :])
    mode = values.get("auto_pad", "NOTSET")
    if mode in ("NOTSET", "VALID"):
        return windows
    total = [max(0, -missing) for missing in windows.overhang]
    half, rest = [t // 2 for t in total], [t - t // 2 for t in total]
    return windows._replace(begin=half, end=rest) if mode == "SAME_UPPER" else windows._replace(begin=rest, end=half)


def _scatter(graph: GraphBuilder, d: str, weight: str, channels: tuple[int, int], windows: _Windows, group: int) -> str:
    """The transpose of the convolution with `weight`, (*channels, ...) = (outputs, inputs / group, ...), applied to d.

    ConvTranspose does it for all. For stride 1 a plain Conv with weights flipped and transposed does it too, faster
    by a third (4 times where it is depthwise) on CPUs where the channels fill the blocks of onnxruntime.
    """
    outputs, inputs = channels
    before = [extent - 1 - pad for extent, pad in zip(windows.extent, windows.begin, strict=True)]
    after = [extent - 1 - pad for extent, pad in zip(windows.extent, windows.end, strict=True)]
    blocked = inputs * group % _BLOCK_IN == 0 and outputs % _BLOCK_OUT == 0
    if blocked and set(windows.stride) == {1} and min(before + after + windows.overhang) >= 0:
        flipped = _flip(graph, weight, [outputs, inputs, *windows.kernel], group)
        return graph.op("Conv", d, flipped, pads=before + after, dilations=windows.dilation, group=group)
    return graph.op(
        "ConvTranspose",
        d,
        weight,
        strides=windows.stride,
        dilations=windows.dilation,
        group=group,
        pads=windows.begin + [pad - min(0, rest) for pad, rest in zip(windows.end, windows.overhang, strict=True)],
        output_padding=[max(0, rest) for rest in windows.overhang],
    )


def _flip(graph: GraphBuilder, weight: str, shape: list[int], group: int) -> str:
    """(outputs, inputs / group, ...) → (inputs, outputs / group, ...), reversed along all spatial axes."""
    outputs, inputs, *kernel = shape
    spatial = list(range(2, len(shape)))
    far = [-(2**62)] * len(kernel)
    minus = graph.integers([-1] * len(kernel))
    flipped = graph.op("Slice", weight, minus, graph.integers(far), graph.integers(spatial), minus)
    grouped = graph.op("Reshape", flipped, graph.integers([group, outputs // group, inputs, *kernel]))
    swapped = graph.op("Transpose", grouped, perm=[0, 2, 1, *(axis + 1 for axis in spatial)])
    return graph.op("Reshape", swapped, graph.integers([group * inputs, outputs // group, *kernel]))


def convolution(graph: GraphBuilder, node: NodeProto, d: str) -> str:
    """dL/dx; the weights are constants of the network."""
    weight = node.input[1]
    outputs, inputs, *kernel = graph.sizes(weight, range(len(graph.shape(weight))))
    group = attributes(node).get("group", 1)
    return _scatter(graph, d, weight, (outputs, inputs), _windows(graph, node, kernel), group)


def convolution_transpose(graph: GraphBuilder, node: NodeProto, d: str) -> str:
    """dL/dx: the convolution of d with the same weights, pads, strides and dilations."""
    values = attributes(node)
    kept = {name: values[name] for name in ("pads", "strides", "dilations", "group") if name in values}
    mode = values.get("auto_pad", "NOTSET")
    if mode == "VALID":
        kept.pop("pads", None)
    elif mode != "NOTSET" or "output_shape" in values:
        kept["pads"] = _cut(graph, node, mode)
    return graph.op("Conv", d, node.input[1], **kept)


def _cut(graph: GraphBuilder, node: NodeProto, mode: str) -> list[int]:
    """The pads of a ConvTranspose that states the size of its result, or a mode: what is cut off, the odd one at the
    end for SAME_UPPER, else at the beginning."""
    values, spatial = attributes(node), range(2, len(graph.shape(node.input[0])))
    rank = len(spatial)
    sizes, results, kernel = (graph.sizes(name, spatial) for name in (node.input[0], node.output[0], node.input[1]))
    stride, dilation = (values.get(name, [1] * rank) for name in ("strides", "dilations"))
    more = values.get("output_padding", [0] * rank)
    total = [
        (size - 1) * s + m + (k - 1) * dil + 1 - result
        for size, s, m, k, dil, result in zip(sizes, stride, more, kernel, dilation, results, strict=True)
    ]
    if min(total) < 0:
        raise AtmcError(f"no gradient rule for ConvTranspose {node.name!r} with so large an output")
    half, rest = [t // 2 for t in total], [t - t // 2 for t in total]
    return half + rest if mode == "SAME_UPPER" else rest + half


def average_pool(graph: GraphBuilder, node: NodeProto, d: str) -> str:
    """d over the number of elements that each window averages, given to all of these."""
    values, x = attributes(node), node.input[0]
    windows = _windows(graph, node, values["kernel_shape"])
    (channels,) = graph.sizes(x, [1])
    share = graph.op("Mul", d, graph.floats(1 / _counts(windows, values.get("count_include_pad", 0)), x))
    ones = graph.floats(np.ones((channels, 1, *windows.kernel)), x)
    return _scatter(graph, share, ones, (channels, 1), windows, channels)


def lp_pool(graph: GraphBuilder, node: NodeProto, d: str) -> str:
    """y = (Σ |x|^p)^(1/p) over a window: sign x |x|^(p − 1) Σ d y^(1 − p) over the windows x is in; 0 where y is."""
    values, x, y = attributes(node), node.input[0], node.output[0]
    p = values.get("p", 2)
    windows = _windows(graph, node, values["kernel_shape"])
    (channels,) = graph.sizes(x, [1])
    safe = graph.op("Where", graph.op("Equal", y, graph.floats(0, x)), graph.floats(1, x), y)
    share = graph.op("Mul", d, graph.op("Pow", safe, graph.floats(1 - p, x)))
    ones = graph.floats(np.ones((channels, 1, *windows.kernel)), x)
    spread = _scatter(graph, share, ones, (channels, 1), windows, channels)
    slope = graph.op("Mul", graph.op("Sign", x), graph.op("Pow", graph.op("Abs", x), graph.floats(p - 1, x)))
    return graph.op("Mul", spread, slope)


def _counts(windows: _Windows, include_pad: int) -> NDArray[np.float64]:
    """(windows per axis ...) number of elements in each window; padding counts where `include_pad`, overhang never."""
    counts = np.ones(())
    for size, n, kernel, stride, dilation, begin, end in zip(*windows, strict=True):
        taken = np.arange(n)[:, None] * stride + np.arange(kernel) * dilation - begin
        low, high = (-begin, size + end) if include_pad else (0, size)
        counts = np.multiply.outer(counts, ((taken >= low) & (taken < high)).sum(1))
    return counts


def max_pool(graph: GraphBuilder, node: NodeProto, d: str) -> str:
    """d added at the flat position of each window's maximum, the first of equal ones as in torch."""
    values, x = attributes(node), node.input[0]
    values.pop("storage_order", None)  # that of the forward node's indices, which this rule does not use
    _, indices = graph.ops("MaxPool", x, n_outputs=2, **values)
    return _scatter_flat(graph, d, indices, x)


def _scatter_flat(graph: GraphBuilder, d: str, indices: str, x: str) -> str:
    """Zeros of the shape of x, with d added at the flat positions `indices`."""
    line = graph.integers([-1])
    zeros = graph.op("Expand", graph.floats([0], x), graph.op("Reshape", graph.op("Size", x), line))
    flat = graph.op(
        "ScatterElements", zeros, graph.op("Reshape", indices, line), graph.op("Reshape", d, line), reduction="add"
    )
    return graph.op("Reshape", flat, graph.op("Shape", x))


def global_max_pool(graph: GraphBuilder, node: NodeProto, d: str) -> str:
    """d at the first maximum of each channel."""
    x = node.input[0]
    kernel = graph.sizes(x, range(2, len(graph.shape(x))))
    _, indices = graph.ops("MaxPool", x, n_outputs=2, kernel_shape=kernel)
    return _scatter_flat(graph, d, indices, x)


def resize(graph: GraphBuilder, node: NodeProto, d: str) -> str:
    """Interpolation along an axis is a matrix, what the operator makes of the identity: d times its transpose."""
    x, values = node.input[0], attributes(node)
    crops = values.get("coordinate_transformation_mode") == "tf_crop_and_resize"
    if len(graph.shape(x)) != 4 or crops or "axes" in values:
        raise AtmcError(
            f"no gradient rule for Resize {node.name!r}", hint="resize (N, C, H, W) to a size or by a scale"
        )
    by_scales = len(node.input) > 2 and bool(node.input[2])
    for axis, (size, result) in enumerate(
        zip(graph.sizes(x, (2, 3)), graph.sizes(node.output[0], (2, 3)), strict=True)
    ):
        identity = graph.floats(np.eye(size).reshape((1, size, size, 1) if axis == 0 else (1, size, 1, size)), x)
        if by_scales:
            factors = np.ones(4, np.float32)
            factors[axis + 2] = graph.known(node.input[2])[axis + 2]
            matrix = graph.op("Resize", identity, "", graph.constant(factors, np.float32), **values)
        else:
            shape = (1, size, result, 1) if axis == 0 else (1, size, 1, result)
            matrix = graph.op("Resize", identity, "", "", graph.integers(shape), **values)
        flat = graph.op("Reshape", matrix, graph.integers([size, result]))
        d = along_axis(graph, flat, d, last=axis == 1)
    return d
