"""Gradient rules of activations: functions of one element, and softmax."""

from math import pi, sqrt

from onnx import NodeProto

from atmc_tool.errors import AtmcError
from evaluators.onnx_arithmetic_rules import masked
from evaluators.onnx_graph import GraphBuilder, attributes


def relu(graph: GraphBuilder, node: NodeProto, d: str) -> str:
    """Masked by the output, so that onnxruntime can still fuse the Relu with what comes before it."""
    y = node.output[0]
    return masked(graph, d, graph.op("Greater", y, graph.floats(0, y)), y)


def leaky_relu(graph: GraphBuilder, node: NodeProto, d: str) -> str:
    x = node.input[0]
    return _two_sided(graph, d, x, 1, graph.floats(attributes(node).get("alpha", 0.01), x))


def prelu(graph: GraphBuilder, node: NodeProto, d: str) -> str:
    """The slopes are parameters."""
    x, slope = node.input
    return _two_sided(graph, d, x, 1, slope)


def elu(graph: GraphBuilder, node: NodeProto, d: str) -> str:
    """Below zero y = α (exp(x) − 1): d (y + α)"""
    x, y = node.input[0], node.output[0]
    return _two_sided(graph, d, x, 1, graph.op("Add", y, graph.floats(attributes(node).get("alpha", 1.0), x)))


def celu(graph: GraphBuilder, node: NodeProto, d: str) -> str:
    """Below zero y = α (exp(x/α) − 1): d (y/α + 1)"""
    x, one = node.input[0], graph.floats(1, node.input[0])
    scaled = graph.op("Div", node.output[0], graph.floats(attributes(node).get("alpha", 1.0), x))
    return _two_sided(graph, d, x, 1, graph.op("Add", scaled, one))


def selu(graph: GraphBuilder, node: NodeProto, d: str) -> str:
    """γ d above zero; below it y = γ α (exp(x) − 1): d (y + γ α)"""
    x, values = node.input[0], attributes(node)
    alpha, gamma = values.get("alpha", 1.67326319217681884765625), values.get("gamma", 1.05070102214813232421875)
    return _two_sided(graph, d, x, gamma, graph.op("Add", node.output[0], graph.floats(alpha * gamma, x)))


def _two_sided(graph: GraphBuilder, d: str, x: str, above: float, below: str) -> str:
    """d `above` where x > 0, d `below` elsewhere."""
    positive = graph.op("Greater", x, graph.floats(0, x))
    return graph.op("Mul", d, graph.op("Where", positive, graph.floats(above, x), below))


def dropout(graph: GraphBuilder, node: NodeProto, d: str) -> str:
    """Nothing is dropped but in training mode."""
    if len(node.input) > 2 and node.input[2] and graph.known(node.input[2]):
        raise AtmcError(f"Dropout {node.name!r} is in training mode", hint="export the network in eval mode")
    return d


def sigmoid(graph: GraphBuilder, node: NodeProto, d: str) -> str:
    """d y (1 − y)"""
    y = node.output[0]
    return graph.op("Mul", graph.op("Mul", d, y), graph.op("Sub", graph.floats(1, y), y))


def tanh(graph: GraphBuilder, node: NodeProto, d: str) -> str:
    """d (1 − y²)"""
    y = node.output[0]
    return graph.op("Mul", d, graph.op("Sub", graph.floats(1, y), graph.op("Mul", y, y)))


def hard_sigmoid(graph: GraphBuilder, node: NodeProto, d: str) -> str:
    """d α where 0 < y < 1"""
    y = node.output[0]
    inside = graph.op("And", graph.op("Greater", y, graph.floats(0, y)), graph.op("Less", y, graph.floats(1, y)))
    return masked(graph, graph.op("Mul", d, graph.floats(attributes(node).get("alpha", 0.2), y)), inside, y)


def hard_swish(graph: GraphBuilder, node: NodeProto, d: str) -> str:
    """y = x h(x), h = clip(x/6 + 1/2, 0, 1): d (h + x/6 where |x| < 3)"""
    x, zero, one = node.input[0], graph.floats(0, node.input[0]), graph.floats(1, node.input[0])
    sixth = graph.op("Mul", x, graph.floats(1 / 6, x))
    gate = graph.op("Clip", graph.op("Add", sixth, graph.floats(0.5, x)), zero, one)
    inside = graph.op("Less", graph.op("Abs", x), graph.floats(3, x))
    return graph.op("Mul", d, graph.op("Add", gate, masked(graph, sixth, inside, x)))


def softplus(graph: GraphBuilder, node: NodeProto, d: str) -> str:
    return graph.op("Mul", d, graph.op("Sigmoid", node.input[0]))


def mish(graph: GraphBuilder, node: NodeProto, d: str) -> str:
    """y = x t, t = tanh(softplus(x)): d (t + x σ(x) (1 − t²))"""
    x = node.input[0]
    t = graph.op("Tanh", graph.op("Softplus", x))
    rest = graph.op("Sub", graph.floats(1, x), graph.op("Mul", t, t))
    return graph.op("Mul", d, graph.op("Add", t, graph.op("Mul", graph.op("Mul", x, graph.op("Sigmoid", x)), rest)))


def gelu(graph: GraphBuilder, node: NodeProto, d: str) -> str:
    """y = x Φ(x): d (Φ(x) + x Φ'(x)), where Φ is the normal distribution or its approximation by tanh.

    Hendrycks and Gimpel 2016 (arXiv:1606.08415): Φ ≈ (1 + tanh(u)) / 2, u = √(2/π) (x + 0.044715 x³).
    """
    x = node.input[0]
    half, one, squared = graph.floats(0.5, x), graph.floats(1, x), graph.op("Mul", x, x)
    if attributes(node).get("approximate", "none") == "tanh":
        cubic = graph.op("Add", one, graph.op("Mul", squared, graph.floats(0.044715, x)))
        t = graph.op("Tanh", graph.op("Mul", graph.op("Mul", x, cubic), graph.floats(sqrt(2 / pi), x)))
        steep = graph.op("Add", one, graph.op("Mul", squared, graph.floats(3 * 0.044715, x)))
        inner = graph.op("Mul", graph.op("Sub", one, graph.op("Mul", t, t)), steep)
        density = graph.op("Mul", inner, graph.floats(sqrt(2 / pi) / 2, x))
    else:
        t = graph.op("Erf", graph.op("Mul", x, graph.floats(sqrt(0.5), x)))
        bell = graph.op("Exp", graph.op("Mul", squared, graph.floats(-0.5, x)))
        density = graph.op("Mul", bell, graph.floats(1 / sqrt(2 * pi), x))
    share = graph.op("Mul", half, graph.op("Add", one, t))
    return graph.op("Mul", d, graph.op("Add", share, graph.op("Mul", x, density)))


def softmax(graph: GraphBuilder, node: NodeProto, d: str) -> str:
    """y (d − Σ d y)"""
    y, axis = node.output[0], attributes(node).get("axis", -1)
    mean = graph.op("ReduceSum", graph.op("Mul", d, y), graph.integers([axis]), keepdims=1)
    return graph.op("Mul", y, graph.op("Sub", d, mean))


def log_softmax(graph: GraphBuilder, node: NodeProto, d: str) -> str:
    """d − exp(y) Σ d"""
    y, axis = node.output[0], attributes(node).get("axis", -1)
    total = graph.op("ReduceSum", d, graph.integers([axis]), keepdims=1)
    return graph.op("Sub", d, graph.op("Mul", graph.op("Exp", y), total))
