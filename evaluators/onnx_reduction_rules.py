"""Gradient rules of reductions, and of normalisations, which are made of them."""

from math import prod

import numpy as np
from numpy.typing import NDArray
from onnx import NodeProto

from atmc_tool.errors import AtmcError
from evaluators.onnx_graph import GraphBuilder, attributes


def reduce_sum(graph: GraphBuilder, node: NodeProto, d: str) -> str:
    return graph.op("Expand", _kept(graph, node, d), graph.op("Shape", node.input[0]))


def reduce_mean(graph: GraphBuilder, node: NodeProto, d: str) -> str:
    count = prod(graph.sizes(node.input[0], reduced_axes(graph, node)))
    return reduce_sum(graph, node, graph.op("Mul", d, graph.floats(1 / count, node.input[0])))


def reduce_extreme(graph: GraphBuilder, node: NodeProto, d: str) -> str:
    """ReduceMax and ReduceMin: d shared equally by all equal ones, as torch.amax does."""
    x, axes = node.input[0], reduced_axes(graph, node)
    found = graph.op("Equal", x, _kept(graph, node, node.output[0]))
    ones = graph.op("Cast", found, to=graph.element_type(x))
    count = graph.op("ReduceSum", ones, graph.integers(axes), keepdims=1, noop_with_empty_axes=1)
    return graph.op("Mul", ones, graph.op("Div", _kept(graph, node, d), count))


def reduce_l2(graph: GraphBuilder, node: NodeProto, d: str) -> str:
    """d x / y; zero where the norm y is zero, as in torch."""
    x, y = node.input[0], _kept(graph, node, node.output[0])
    divisor = graph.op("Where", graph.op("Equal", y, graph.floats(0, x)), graph.floats(1, x), y)
    return graph.op("Mul", x, graph.op("Div", _kept(graph, node, d), divisor))


def reduce_log_sum_exp(graph: GraphBuilder, node: NodeProto, d: str) -> str:
    """d exp(x − y)"""
    share = graph.op("Exp", graph.op("Sub", node.input[0], _kept(graph, node, node.output[0])))
    return graph.op("Mul", _kept(graph, node, d), share)


def reduce_prod(graph: GraphBuilder, node: NodeProto, d: str) -> str:
    """d times the product of the others: y / x, and where one x is zero, of those that are not; of two, zero."""
    x, axes = node.input[0], graph.integers(reduced_axes(graph, node))
    kept = {"keepdims": 1, "noop_with_empty_axes": 1}
    zero, none, one = graph.op("Equal", x, graph.floats(0, x)), graph.floats(0, x), graph.floats(1, x)
    full = graph.op("Where", zero, one, x)
    zeros = graph.op("ReduceSum", graph.op("Cast", zero, to=graph.element_type(x)), axes, **kept)
    product = _kept(graph, node, graph.op("ReduceProd", full, *node.input[1:], **attributes(node)))
    elsewhere = graph.op("Sub", zeros, graph.op("Cast", zero, to=graph.element_type(x)))
    others = graph.op("Where", graph.op("Equal", elsewhere, none), graph.op("Div", product, full), none)
    return graph.op("Mul", _kept(graph, node, d), others)


def cumulative_sum(graph: GraphBuilder, node: NodeProto, d: str) -> str:
    """d summed from the other end."""
    values = attributes(node)
    return graph.op(
        "CumSum", d, node.input[1], exclusive=values.get("exclusive", 0), reverse=1 - values.get("reverse", 0)
    )


def _kept(graph: GraphBuilder, node: NodeProto, value: str) -> str:
    """`value`, of the shape of the reduction's output, with the axes that were reduced as axes of size 1."""
    axes = reduced_axes(graph, node)
    if axes and not attributes(node).get("keepdims", 1):
        return graph.op("Unsqueeze", value, graph.integers(axes))
    return value


def global_average_pool(graph: GraphBuilder, node: NodeProto, d: str) -> str:
    x = node.input[0]
    count = prod(graph.sizes(x, range(2, len(graph.shape(x)))))
    return graph.op("Expand", graph.op("Mul", d, graph.floats(1 / count, x)), graph.op("Shape", x))


def batch_normalization(graph: GraphBuilder, node: NodeProto, d: str) -> str:
    """d scale / √(variance + epsilon), per channel; mean and variance are constants of the network."""
    if attributes(node).get("training_mode", 0):
        raise AtmcError(f"BatchNormalization {node.name!r} is in training mode", hint="export the network in eval mode")
    x, scale, variance = node.input[0], node.input[1], node.input[4]
    epsilon = graph.floats(attributes(node).get("epsilon", 1e-5), variance)
    factor = graph.op("Div", scale, graph.op("Sqrt", graph.op("Add", variance, epsilon)))
    return graph.op("Mul", d, _per_channel(graph, factor, len(graph.shape(x)) - 2))


def layer_normalization(graph: GraphBuilder, node: NodeProto, d: str) -> str:
    x, rank = node.input[0], len(graph.shape(node.input[0]))
    axes = list(range(attributes(node).get("axis", -1) % rank, rank))
    return _standardized(graph, x, graph.op("Mul", d, node.input[1]), axes, attributes(node).get("epsilon", 1e-5))


def instance_normalization(graph: GraphBuilder, node: NodeProto, d: str) -> str:
    x, axes = node.input[0], list(range(2, len(graph.shape(node.input[0]))))
    d = graph.op("Mul", d, _per_channel(graph, node.input[1], len(axes)))
    return _standardized(graph, x, d, axes, attributes(node).get("epsilon", 1e-5))


def group_normalization(graph: GraphBuilder, node: NodeProto, d: str) -> str:
    """As opset 21 has it, with a scale for each channel."""
    x, values = node.input[0], attributes(node)
    if graph.sizes(node.input[1], [0]) != graph.sizes(x, [1]):
        raise AtmcError(f"no gradient rule for GroupNormalization {node.name!r} before opset 21")
    channels, *spatial = graph.sizes(x, range(1, len(graph.shape(x))))
    groups = values["num_groups"]
    shape = graph.integers([0, groups, channels // groups * prod(spatial)])
    d = graph.op("Reshape", graph.op("Mul", d, _per_channel(graph, node.input[1], len(spatial))), shape)
    epsilon, count = values.get("epsilon", 1e-5), channels // groups * prod(spatial)
    result = _standardized(graph, graph.op("Reshape", x, shape), d, [2], epsilon, count)
    return graph.op("Reshape", result, graph.op("Shape", x))


def local_response_normalization(graph: GraphBuilder, node: NodeProto, d: str) -> str:
    """y = x s^−β, s = k + α/n Σ x² over a window of n channels: d s^−β − 2 α β/n x Σ d y/s over the windows x is in."""
    x, y, values = node.input[0], node.output[0], attributes(node)
    size, alpha, beta = values["size"], values.get("alpha", 1e-4), values.get("beta", 0.75)
    (channels,) = graph.sizes(x, [1])
    distance = np.arange(channels) - np.arange(channels)[:, None]
    windows = (distance >= -((size - 1) // 2)) & (distance <= size // 2)

    def summed(matrix: NDArray[np.bool_], value: str) -> str:
        flat = graph.op("Reshape", value, graph.integers([0, channels, -1]))
        return graph.op("Reshape", graph.op("MatMul", graph.floats(matrix, x), flat), graph.op("Shape", x))

    mean = graph.op("Mul", summed(windows, graph.op("Mul", x, x)), graph.floats(alpha / size, x))
    s = graph.op("Add", mean, graph.floats(values.get("bias", 1.0), x))
    straight = graph.op("Mul", d, graph.op("Pow", s, graph.floats(-beta, x)))
    crossing = graph.op("Mul", x, summed(windows.T, graph.op("Div", graph.op("Mul", d, y), s)))
    return graph.op("Sub", straight, graph.op("Mul", crossing, graph.floats(2 * alpha * beta / size, x)))


def _per_channel(graph: GraphBuilder, values: str, spatial: int) -> str:
    """(C,) → (C, 1, …), one 1 for each of the `spatial` axes."""
    return graph.op("Reshape", values, graph.integers([-1] + [1] * spatial))


def _standardized(
    graph: GraphBuilder, x: str, d: str, axes: list[int], epsilon: float, count: int | None = None
) -> str:
    """dL/dx of z = (x − mean) / s, s = √(variance + epsilon), given d = dL/dz: (d − mean(d) − z mean(d z)) / s.

    Means are over `axes`, which hold `count` elements, where that is not known from the shape of x.
    """
    share = graph.floats(1 / (count or prod(graph.sizes(x, axes))), x)

    def mean(value: str) -> str:
        return graph.op("Mul", graph.op("ReduceSum", value, graph.integers(axes), keepdims=1), share)

    centred = graph.op("Sub", x, mean(x))
    variance = mean(graph.op("Mul", centred, centred))
    s = graph.op("Sqrt", graph.op("Add", variance, graph.floats(epsilon, x)))
    z = graph.op("Div", centred, s)
    straight = graph.op("Sub", d, mean(d))
    return graph.op("Div", graph.op("Sub", straight, graph.op("Mul", z, mean(graph.op("Mul", d, z)))), s)


def reduced_axes(graph: GraphBuilder, node: NodeProto) -> list[int]:
    """The axes a reduction sums over: an attribute up to opset 17, an input since; none given means all."""
    values, rank = attributes(node), len(graph.shape(node.input[0]))
    given = [int(axis) for axis in graph.known(node.input[1])] if len(node.input) > 1 and node.input[1] else []
    axes = given or values.get("axes", [])
    if not axes and not values.get("noop_with_empty_axes", 0):
        return list(range(rank))
    return [axis % rank for axis in axes]
