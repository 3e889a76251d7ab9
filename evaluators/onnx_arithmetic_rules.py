"""Gradient rules of operators that work element by element, and what they share: broadcasting, masks."""

from math import pi, sqrt

from onnx import NodeProto

from evaluators.onnx_graph import GraphBuilder


def unbroadcast(graph: GraphBuilder, d: str, source: str, result: str) -> str:
    """d, of the shape of `result`, summed over the axes along which `source` was repeated."""
    small, large = graph.shape(source), graph.shape(result)
    extra = len(large) - len(small)
    repeated = [extra + i for i, size in enumerate(small) if size == 1 and large[extra + i] != 1]
    if extra or repeated:
        d = graph.op("ReduceSum", d, graph.integers([*range(extra), *repeated]), keepdims=1)
    return graph.op("Reshape", d, graph.op("Shape", source)) if extra else d


def masked(graph: GraphBuilder, d: str, condition: str, like: str) -> str:
    """d where the boolean value `condition` holds, zero elsewhere. (Cast and Mul: 1.4 to 2 times faster than Where.)"""
    return graph.op("Mul", d, graph.op("Cast", condition, to=graph.element_type(like)))


def identity(_graph: GraphBuilder, _node: NodeProto, d: str) -> str:
    return d


def cast(graph: GraphBuilder, node: NodeProto, d: str) -> str:
    return graph.op("Cast", d, to=graph.element_type(node.input[0]))


def add(graph: GraphBuilder, node: NodeProto, d: str, position: int) -> str:
    return unbroadcast(graph, d, node.input[position], node.output[0])


def mean(graph: GraphBuilder, node: NodeProto, d: str, position: int) -> str:
    return add(graph, node, graph.op("Mul", d, graph.floats(1 / len(node.input), d)), position)


def subtract(graph: GraphBuilder, node: NodeProto, d: str, position: int) -> str:
    return add(graph, node, graph.op("Neg", d) if position else d, position)


def multiply(graph: GraphBuilder, node: NodeProto, d: str, position: int) -> str:
    return add(graph, node, graph.op("Mul", d, node.input[1 - position]), position)


def divide(graph: GraphBuilder, node: NodeProto, d: str, position: int) -> str:
    """y = a / b: dL/da = d / b, dL/db = −d y / b."""
    d = graph.op("Div", d, node.input[1])
    return add(graph, node, graph.op("Mul", graph.op("Neg", d), node.output[0]) if position else d, position)


def clip(graph: GraphBuilder, node: NodeProto, d: str) -> str:
    """d where min ≤ x ≤ max, the bounds included as in torch.clamp."""
    x = node.input[0]
    for comparison, bound in zip(("GreaterOrEqual", "LessOrEqual"), node.input[1:], strict=False):
        if bound:
            d = masked(graph, d, graph.op(comparison, x, bound), x)
    return d


def negate(graph: GraphBuilder, _node: NodeProto, d: str) -> str:
    return graph.op("Neg", d)


def absolute(graph: GraphBuilder, node: NodeProto, d: str) -> str:
    return graph.op("Mul", d, graph.op("Sign", node.input[0]))


def reciprocal(graph: GraphBuilder, node: NodeProto, d: str) -> str:
    """−d y²"""
    y = node.output[0]
    return graph.op("Neg", graph.op("Mul", d, graph.op("Mul", y, y)))


def square_root(graph: GraphBuilder, node: NodeProto, d: str) -> str:
    """d / (2 y)"""
    y = node.output[0]
    return graph.op("Div", d, graph.op("Add", y, y))


def power(graph: GraphBuilder, node: NodeProto, d: str) -> str:
    """y = x^p: d p x^(p − 1); p does not depend on the image and may be an integer."""
    x, p = node.input
    slope = graph.op("Mul", graph.op("CastLike", p, x), graph.op("Pow", x, graph.op("Sub", p, graph.floats(1, p))))
    return unbroadcast(graph, graph.op("Mul", d, slope), x, node.output[0])


def exponential(graph: GraphBuilder, node: NodeProto, d: str) -> str:
    return graph.op("Mul", d, node.output[0])


def logarithm(graph: GraphBuilder, node: NodeProto, d: str) -> str:
    return graph.op("Div", d, node.input[0])


def error_function(graph: GraphBuilder, node: NodeProto, d: str) -> str:
    """d 2/√π exp(−x²)"""
    x = node.input[0]
    bell = graph.op("Exp", graph.op("Neg", graph.op("Mul", x, x)))
    return graph.op("Mul", d, graph.op("Mul", bell, graph.floats(2 / sqrt(pi), x)))


def extreme(graph: GraphBuilder, node: NodeProto, d: str, position: int) -> str:
    """Max and Min: d where this input is it, the first of equal ones, so that a clamp passes d on at its bound."""
    x, greater = node.input[position], node.op_type == "Max"
    strictly, at_least = ("Greater", "GreaterOrEqual") if greater else ("Less", "LessOrEqual")
    for other, name in enumerate(node.input):
        if other != position:
            d = masked(graph, d, graph.op(strictly if other < position else at_least, x, name), x)
    return unbroadcast(graph, d, x, node.output[0])


def where(graph: GraphBuilder, node: NodeProto, d: str, position: int) -> str:
    condition = node.input[0] if position == 1 else graph.op("Not", node.input[0])
    return add(graph, node, masked(graph, d, condition, node.output[0]), position)
