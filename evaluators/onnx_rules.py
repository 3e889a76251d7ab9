"""Gradient rules of ONNX operators, one small function each.

A rule gets the graph to add nodes to, the operator's node, the name of d = dL/d(output 0), and the position of one
input; it returns the name of dL/d(that input), which has that input's shape. A new operator is a function and a line
in RULES.
"""

import sys
from collections.abc import Callable, Mapping
from math import prod
from typing import NamedTuple

import numpy as np
from onnx import NodeProto, TensorProto

from atmc_tool.errors import AtmcError
from evaluators.onnx_graph import GraphBuilder, attributes
from evaluators.onnx_window_rules import average_pool, convolution, convolution_transpose, global_max_pool, max_pool


class Rule(NamedTuple):
    """`gradient(graph, node, d, position)`, which covers the first `n_inputs` inputs; no other may need a gradient."""

    gradient: Callable[[GraphBuilder, NodeProto, str, int], str]
    n_inputs: int


def _unary(gradient: Callable[[GraphBuilder, NodeProto, str], str]) -> Rule:
    """The rule of an operator whose first input alone may depend on the image."""
    return Rule(lambda graph, node, d, _: gradient(graph, node, d), 1)


def _unbroadcast(graph: GraphBuilder, d: str, source: str, result: str) -> str:
    """d, of the shape of `result`, summed over the axes along which `source` was repeated."""
    small, large = graph.shape(source), graph.shape(result)
    extra = len(large) - len(small)
    repeated = [extra + i for i, size in enumerate(small) if size == 1 and large[extra + i] != 1]
    if extra or repeated:
        d = graph.op("ReduceSum", d, graph.integers([*range(extra), *repeated]), keepdims=1)
    return graph.op("Reshape", d, graph.op("Shape", source)) if extra else d


def _masked(graph: GraphBuilder, d: str, condition: str, like: str) -> str:
    """d where the boolean value `condition` holds, zero elsewhere. (Cast and Mul: 1.4 to 2 times faster than Where.)"""
    return graph.op("Mul", d, graph.op("Cast", condition, to=graph.element_type(like)))


def _identity(_graph: GraphBuilder, _node: NodeProto, d: str) -> str:
    return d


def _cast(graph: GraphBuilder, node: NodeProto, d: str) -> str:
    return graph.op("Cast", d, to=graph.element_type(node.input[0]))


def _add(graph: GraphBuilder, node: NodeProto, d: str, position: int) -> str:
    return _unbroadcast(graph, d, node.input[position], node.output[0])


def _subtract(graph: GraphBuilder, node: NodeProto, d: str, position: int) -> str:
    return _add(graph, node, graph.op("Neg", d) if position else d, position)


def _multiply(graph: GraphBuilder, node: NodeProto, d: str, position: int) -> str:
    return _add(graph, node, graph.op("Mul", d, node.input[1 - position]), position)


def _divide(graph: GraphBuilder, node: NodeProto, d: str, position: int) -> str:
    """y = a / b: dL/da = d / b, dL/db = −d y / b."""
    d = graph.op("Div", d, node.input[1])
    return _add(graph, node, graph.op("Mul", graph.op("Neg", d), node.output[0]) if position else d, position)


def _relu(graph: GraphBuilder, node: NodeProto, d: str) -> str:
    """Masked by the output, so that onnxruntime can still fuse the Relu with what comes before it."""
    y = node.output[0]
    return _masked(graph, d, graph.op("Greater", y, graph.floats(0, y)), y)


def _leaky_relu(graph: GraphBuilder, node: NodeProto, d: str) -> str:
    x = node.input[0]
    slope = graph.floats(attributes(node).get("alpha", 0.01), x)
    return graph.op("Mul", d, graph.op("Where", graph.op("Greater", x, graph.floats(0, x)), graph.floats(1, x), slope))


def _sigmoid(graph: GraphBuilder, node: NodeProto, d: str) -> str:
    """d y (1 − y)"""
    y = node.output[0]
    return graph.op("Mul", graph.op("Mul", d, y), graph.op("Sub", graph.floats(1, y), y))


def _tanh(graph: GraphBuilder, node: NodeProto, d: str) -> str:
    """d (1 − y²)"""
    y = node.output[0]
    return graph.op("Mul", d, graph.op("Sub", graph.floats(1, y), graph.op("Mul", y, y)))


def _clip(graph: GraphBuilder, node: NodeProto, d: str) -> str:
    """d where min ≤ x ≤ max, the bounds included as in torch.clamp."""
    x = node.input[0]
    for comparison, bound in zip(("GreaterOrEqual", "LessOrEqual"), node.input[1:], strict=False):
        if bound:
            d = _masked(graph, d, graph.op(comparison, x, bound), x)
    return d


def _softmax(graph: GraphBuilder, node: NodeProto, d: str) -> str:
    """y (d − Σ d y)"""
    y, axis = node.output[0], attributes(node).get("axis", -1)
    mean = graph.op("ReduceSum", graph.op("Mul", d, y), graph.integers([axis]), keepdims=1)
    return graph.op("Mul", y, graph.op("Sub", d, mean))


def _log_softmax(graph: GraphBuilder, node: NodeProto, d: str) -> str:
    """d − exp(y) Σ d"""
    y, axis = node.output[0], attributes(node).get("axis", -1)
    total = graph.op("ReduceSum", d, graph.integers([axis]), keepdims=1)
    return graph.op("Sub", d, graph.op("Mul", graph.op("Exp", y), total))


def _batch_normalization(graph: GraphBuilder, node: NodeProto, d: str) -> str:
    """d scale / √(variance + epsilon), per channel; mean and variance are constants of the network."""
    if attributes(node).get("training_mode", 0):
        raise AtmcError(f"BatchNormalization {node.name!r} is in training mode", hint="export the network in eval mode")
    x, scale, variance = node.input[0], node.input[1], node.input[4]
    epsilon = graph.floats(attributes(node).get("epsilon", 1e-5), variance)
    factor = graph.op("Div", scale, graph.op("Sqrt", graph.op("Add", variance, epsilon)))
    return graph.op("Mul", d, graph.op("Reshape", factor, graph.integers([-1] + [1] * (len(graph.shape(x)) - 2))))


def _gemm(graph: GraphBuilder, node: NodeProto, d: str, position: int) -> str:
    """Y = alpha A' B' + beta C, where ' transposes if transA or transB."""
    a = attributes(node)
    alpha, beta, trans_a, trans_b = a.get("alpha", 1.0), a.get("beta", 1.0), a.get("transA", 0), a.get("transB", 0)
    if position == 2:
        summed = _unbroadcast(graph, d, node.input[2], node.output[0])
        return graph.op("Mul", summed, graph.floats(beta, node.input[2]))
    other = node.input[1 - position]
    if position == 0 and trans_a:
        return graph.op("Gemm", other, d, alpha=alpha, transA=trans_b, transB=1)
    if position == 0:
        return graph.op("Gemm", d, other, alpha=alpha, transB=1 - trans_b)
    if trans_b:
        return graph.op("Gemm", d, other, alpha=alpha, transA=1, transB=trans_a)
    return graph.op("Gemm", other, d, alpha=alpha, transA=1 - trans_a)


def _matmul(graph: GraphBuilder, node: NodeProto, d: str, position: int) -> str:
    """dL/dA = d Bᵀ, dL/dB = Aᵀ d over the last two axes, summed over the leading axes that were broadcast."""
    ranks = [len(graph.shape(name)) for name in node.input]
    if min(ranks) < 2:
        raise AtmcError(f"no gradient rule for MatMul {node.name!r} with a vector", hint="use matrices")
    other, rank = node.input[1 - position], ranks[1 - position]
    transposed = graph.op("Transpose", other, perm=[*range(rank - 2), rank - 1, rank - 2])
    product = graph.op("MatMul", *((transposed, d) if position else (d, transposed)))
    return _unbroadcast(graph, product, node.input[position], node.output[0]) if max(ranks) > 2 else product


def _reduce_sum(graph: GraphBuilder, node: NodeProto, d: str) -> str:
    axes = _reduced_axes(graph, node)
    if axes and not attributes(node).get("keepdims", 1):
        d = graph.op("Unsqueeze", d, graph.integers(axes))
    return graph.op("Expand", d, graph.op("Shape", node.input[0]))


def _reduce_mean(graph: GraphBuilder, node: NodeProto, d: str) -> str:
    count = prod(graph.sizes(node.input[0], _reduced_axes(graph, node)))
    return _reduce_sum(graph, node, graph.op("Mul", d, graph.floats(1 / count, node.input[0])))


def _reduced_axes(graph: GraphBuilder, node: NodeProto) -> list[int]:
    """The axes a reduction sums over: an attribute up to opset 17, an input since; none given means all."""
    values, rank = attributes(node), len(graph.shape(node.input[0]))
    given = [int(axis) for axis in graph.known(node.input[1])] if len(node.input) > 1 and node.input[1] else []
    axes = given or values.get("axes", [])
    if not axes and not values.get("noop_with_empty_axes", 0):
        return list(range(rank))
    return [axis % rank for axis in axes]


def _global_average_pool(graph: GraphBuilder, node: NodeProto, d: str) -> str:
    x = node.input[0]
    count = prod(graph.sizes(x, range(2, len(graph.shape(x)))))
    return graph.op("Expand", graph.op("Mul", d, graph.floats(1 / count, x)), graph.op("Shape", x))


def _reshape(graph: GraphBuilder, node: NodeProto, d: str) -> str:
    return graph.op("Reshape", d, graph.op("Shape", node.input[0]))


def _expand(graph: GraphBuilder, node: NodeProto, d: str) -> str:
    return _unbroadcast(graph, d, node.input[0], node.output[0])


def _transpose(graph: GraphBuilder, node: NodeProto, d: str) -> str:
    backwards = list(range(len(graph.shape(node.input[0]))))[::-1]
    return graph.op("Transpose", d, perm=np.argsort(attributes(node).get("perm", backwards)).tolist())


def _concat(graph: GraphBuilder, node: NodeProto, d: str, position: int) -> str:
    axis = attributes(node)["axis"]
    ends = np.cumsum([0, *(graph.sizes(name, [axis])[0] for name in node.input)])
    begin, end = graph.integers(ends[[position]]), graph.integers(ends[[position + 1]])
    return graph.op("Slice", d, begin, end, graph.integers([axis]))


def _pad(graph: GraphBuilder, node: NodeProto, d: str) -> str:
    """Padding by −pads: crops what was padded, and pads with zeros what was cropped."""
    if attributes(node).get("mode", "constant") != "constant":
        raise AtmcError(f"no gradient rule for Pad {node.name!r} of mode {attributes(node)['mode']}")
    return graph.op("Pad", d, graph.op("Neg", node.input[1]), "", *node.input[3:])


def _slice(graph: GraphBuilder, node: NodeProto, d: str) -> str:
    """Axis by axis: every element of x takes the element of d that it became, or the zero put after the last one."""
    x, starts, ends = node.input[:3]
    optional = [*node.input[3:], "", ""]
    n_axes = graph.sizes(starts, [0])[0]
    axes = graph.known(optional[0]).tolist() if optional[0] else list(range(n_axes))
    steps = optional[1] or graph.integers([1] * n_axes)
    shape, zero, one = graph.shape(x), graph.integers(0), graph.integers(1)
    for i, axis in enumerate(int(a) % len(shape) for a in axes):
        known = isinstance(shape[axis], int)  # then onnxruntime computes all of `source` at load
        size = graph.integers([shape[axis]]) if known else graph.op("Shape", x, start=axis, end=axis + 1)
        start, end, step = (
            graph.op("Cast", graph.op("Gather", bounds, graph.integers([i])), to=TensorProto.INT64)
            for bounds in (starts, ends, steps)
        )
        all_positions = graph.op("Range", zero, graph.op("Squeeze", size), one)
        kept = graph.op("Slice", all_positions, start, end, graph.integers([0]), step)
        n_kept = graph.op("Shape", kept)
        numbers = graph.op("Range", zero, graph.op("Squeeze", n_kept), one)
        source = graph.op("ScatterElements", graph.op("Expand", n_kept, size), kept, numbers)
        padding = np.zeros((2, len(shape)), np.int64)
        padding[1, axis] = 1
        d = graph.op("Gather", graph.op("Pad", d, graph.integers(padding.reshape(-1))), source, axis=axis)
    return d


RULES: Mapping[str, Rule] = {
    "Add": Rule(_add, 2),
    "AveragePool": _unary(average_pool),
    "BatchNormalization": _unary(_batch_normalization),
    "Cast": _unary(_cast),
    "Clip": _unary(_clip),
    "Concat": Rule(_concat, sys.maxsize),
    "Conv": _unary(convolution),
    "ConvTranspose": _unary(convolution_transpose),
    "Div": Rule(_divide, 2),
    "Expand": _unary(_expand),
    "Flatten": _unary(_reshape),
    "Gemm": Rule(_gemm, 3),
    "GlobalAveragePool": _unary(_global_average_pool),
    "GlobalMaxPool": _unary(global_max_pool),
    "Identity": _unary(_identity),
    "LeakyRelu": _unary(_leaky_relu),
    "LogSoftmax": _unary(_log_softmax),
    "MatMul": Rule(_matmul, 2),
    "MaxPool": _unary(max_pool),
    "Mul": Rule(_multiply, 2),
    "Pad": _unary(_pad),
    "ReduceMean": _unary(_reduce_mean),
    "ReduceSum": _unary(_reduce_sum),
    "Relu": _unary(_relu),
    "Reshape": _unary(_reshape),
    "Sigmoid": _unary(_sigmoid),
    "Slice": _unary(_slice),
    "Softmax": _unary(_softmax),
    "Squeeze": _unary(_reshape),
    "Sub": Rule(_subtract, 2),
    "Tanh": _unary(_tanh),
    "Transpose": _unary(_transpose),
    "Unsqueeze": _unary(_reshape),
}
