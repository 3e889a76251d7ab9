"""Gradient rules of quantisation: straight through (Bengio et al. 2013, arXiv:1308.3432).

Rounding has no gradient of use, so it counts as the identity. Clipping is what it is: no gradient outside the range.
"""

from collections.abc import Mapping

from onnx import NodeProto, TensorProto

from atmc_tool.errors import AtmcError
from evaluators.onnx_arithmetic_rules import masked
from evaluators.onnx_graph import GraphBuilder, attributes

RANGES: Mapping[int, tuple[int, int]] = {
    TensorProto.INT8: (-128, 127),
    TensorProto.UINT8: (0, 255),
    TensorProto.INT16: (-32768, 32767),
    TensorProto.UINT16: (0, 65535),
}


def quantize(graph: GraphBuilder, node: NodeProto, d: str) -> str:
    """y = clip(round(x / s) + z, low, high): d / s where low − ½ ≤ x / s + z ≤ high + ½"""
    x, kind = node.input[0], graph.element_type(node.output[0])
    if kind not in RANGES:
        raise AtmcError(f"no gradient rule for {node.op_type} to {TensorProto.DataType.Name(kind)}")
    scale = _spread(graph, node, node.input[1])
    steps = graph.op("Div", x, scale)
    if len(node.input) > 2 and node.input[2]:
        zero_point = graph.op("Cast", node.input[2], to=graph.element_type(x))
        steps = graph.op("Add", steps, _spread(graph, node, zero_point, like=node.input[2]))
    low, high = RANGES[kind]
    above = graph.op("GreaterOrEqual", steps, graph.floats(low - 0.5, x))
    inside = graph.op("And", above, graph.op("LessOrEqual", steps, graph.floats(high + 0.5, x)))
    return masked(graph, graph.op("Div", d, scale), inside, x)


def dequantize(graph: GraphBuilder, node: NodeProto, d: str) -> str:
    """y = (x − z) s: d s"""
    return graph.op("Mul", d, _spread(graph, node, node.input[1]))


def _spread(graph: GraphBuilder, node: NodeProto, name: str, like: str = "") -> str:
    """The scale or zero point `name` so that it broadcasts along the node's axis; `like` has its shape."""
    shape, rank = graph.shape(like or name), len(graph.shape(node.input[0]))
    if len(shape) > 1:
        raise AtmcError(f"no gradient rule for {node.op_type} in blocks (output {node.output[0]!r})")
    if not shape or shape == (1,):
        return name
    axis = attributes(node).get("axis", 1) % rank
    return graph.op("Unsqueeze", name, graph.integers([i for i in range(rank) if i != axis]))
