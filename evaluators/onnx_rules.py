"""Gradient rules of ONNX operators, one small function each: the table of them; they live in `onnx_*_rules.py`.

A rule gets the graph to add nodes to, the operator's node, the name of d = dL/d(output 0), and the position of one
input; it returns the name of dL/d(that input), which has that input's shape. A new operator is a function and a line
in RULES.
"""

import sys
from collections.abc import Callable, Mapping
from typing import NamedTuple

from onnx import NodeProto

from evaluators import onnx_activation_rules as activation
from evaluators import onnx_arithmetic_rules as arithmetic
from evaluators import onnx_product_rules as product
from evaluators import onnx_quantization_rules as quantization
from evaluators import onnx_reduction_rules as reduction
from evaluators import onnx_sampling_rules as sampling
from evaluators import onnx_shape_rules as shape
from evaluators import onnx_window_rules as window
from evaluators.onnx_graph import GraphBuilder


class Rule(NamedTuple):
    """`gradient(graph, node, d, position)`, which covers the first `n_inputs` inputs; no other may need a gradient."""

    gradient: Callable[[GraphBuilder, NodeProto, str, int], str]
    n_inputs: int


def _unary(gradient: Callable[[GraphBuilder, NodeProto, str], str]) -> Rule:
    """The rule of an operator whose first input alone may depend on the image."""
    return Rule(lambda graph, node, d, _: gradient(graph, node, d), 1)


RULES: Mapping[str, Rule] = {
    "Abs": _unary(arithmetic.absolute),
    "Add": Rule(arithmetic.add, 2),
    "AveragePool": _unary(window.average_pool),
    "BatchNormalization": _unary(reduction.batch_normalization),
    "Cast": _unary(arithmetic.cast),
    "Celu": _unary(activation.celu),
    "Clip": _unary(arithmetic.clip),
    "Concat": Rule(shape.concat, sys.maxsize),
    "Conv": _unary(window.convolution),
    "ConvTranspose": _unary(window.convolution_transpose),
    "CumSum": _unary(reduction.cumulative_sum),
    "DepthToSpace": _unary(shape.depth_to_space),
    "DequantizeLinear": _unary(quantization.dequantize),
    "Div": Rule(arithmetic.divide, 2),
    "Dropout": _unary(activation.dropout),
    "Einsum": Rule(product.einsum, sys.maxsize),
    "Elu": _unary(activation.elu),
    "Erf": _unary(arithmetic.error_function),
    "Exp": _unary(arithmetic.exponential),
    "Expand": _unary(shape.expand),
    "Flatten": _unary(shape.reshape),
    "Gather": _unary(shape.gather),
    "GatherElements": _unary(shape.gather_elements),
    "GatherND": _unary(shape.gather_nd),
    "Gelu": _unary(activation.gelu),
    "Gemm": Rule(product.gemm, 3),
    "GlobalAveragePool": _unary(reduction.global_average_pool),
    "GlobalMaxPool": _unary(window.global_max_pool),
    "GridSample": Rule(sampling.grid_sample, 2),
    "GroupNormalization": _unary(reduction.group_normalization),
    "HardSigmoid": _unary(activation.hard_sigmoid),
    "HardSwish": _unary(activation.hard_swish),
    "Identity": _unary(arithmetic.identity),
    "InstanceNormalization": _unary(reduction.instance_normalization),
    "LRN": _unary(reduction.local_response_normalization),
    "LayerNormalization": _unary(reduction.layer_normalization),
    "LeakyRelu": _unary(activation.leaky_relu),
    "Log": _unary(arithmetic.logarithm),
    "LogSoftmax": _unary(activation.log_softmax),
    "LpPool": _unary(window.lp_pool),
    "MatMul": Rule(product.matmul, 2),
    "Max": Rule(arithmetic.extreme, sys.maxsize),
    "MaxPool": _unary(window.max_pool),
    "Mean": Rule(arithmetic.mean, sys.maxsize),
    "Min": Rule(arithmetic.extreme, sys.maxsize),
    "Mish": _unary(activation.mish),
    "Mul": Rule(arithmetic.multiply, 2),
    "Neg": _unary(arithmetic.negate),
    "PRelu": _unary(activation.prelu),
    "Pad": _unary(shape.pad),
    "Pow": _unary(arithmetic.power),
    "QuantizeLinear": _unary(quantization.quantize),
    "Reciprocal": _unary(arithmetic.reciprocal),
    "ReduceL2": _unary(reduction.reduce_l2),
    "ReduceLogSumExp": _unary(reduction.reduce_log_sum_exp),
    "ReduceMax": _unary(reduction.reduce_extreme),
    "ReduceMean": _unary(reduction.reduce_mean),
    "ReduceMin": _unary(reduction.reduce_extreme),
    "ReduceProd": _unary(reduction.reduce_prod),
    "ReduceSum": _unary(reduction.reduce_sum),
    "Relu": _unary(activation.relu),
    "Reshape": _unary(shape.reshape),
    "Resize": _unary(window.resize),
    "ScatterElements": Rule(shape.scatter, 3),
    "ScatterND": Rule(shape.scatter, 3),
    "Selu": _unary(activation.selu),
    "Sigmoid": _unary(activation.sigmoid),
    "Slice": _unary(shape.slice_),
    "Softmax": _unary(activation.softmax),
    "Softplus": _unary(activation.softplus),
    "SpaceToDepth": _unary(shape.space_to_depth),
    "Split": _unary(arithmetic.identity),  # of its parts' gradients, which JOINS has put together
    "Sqrt": _unary(arithmetic.square_root),
    "Squeeze": _unary(shape.reshape),
    "Sub": Rule(arithmetic.subtract, 2),
    "Sum": Rule(arithmetic.add, sys.maxsize),
    "Tanh": _unary(activation.tanh),
    "Tile": _unary(shape.tile),
    "Transpose": _unary(shape.transpose),
    "Trilu": _unary(shape.triangle),
    "Unsqueeze": _unary(shape.reshape),
    "Where": Rule(arithmetic.where, 3),
}

# Operators of several outputs: the gradients with respect to each of them, None where there is none, as one `d`.
JOINS: Mapping[str, Callable[[GraphBuilder, NodeProto, list[str | None]], str]] = {"Split": shape.split}
