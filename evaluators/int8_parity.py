"""Whether the int8 weights of a file are the compressed weights, rounded and nothing more."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, numpy_helper

from evaluators.gate import Check
from evaluators.onnx_graph import attributes

ROUNDING = 1e-3  # of a step: scales and products are float32
PRODUCT = 1e-5  # relative: a bias's scale is the product of two scales


def int8_parity(expected: Mapping[str, NDArray[np.float32]], model: ModelProto) -> Check:
    """Every expected parameter is in the file: as it was, or in steps, within half a step of what it was.

    A step of a weight is its channel's scale, and counts as no larger than 1/127 of the weight's largest value. The
    step of an int32 bias must be the product of the scales of its operator's input and weight, as int8 arithmetic
    needs.

    expected: name → float32 parameter, batch norms folded, as `exporters.float_graph` has it
    """
    stored = {tensor.name: tensor for tensor in model.graph.initializer}
    makers = {name: node for node in model.graph.node for name in node.output}
    differing: dict[str, str] = {}
    exact = 0
    for name, array in expected.items():
        if name in stored:
            exact += 1
            value = numpy_helper.to_array(stored[name])
            same = value.dtype == array.dtype and value.shape == array.shape and value.tobytes() == array.tobytes()
            problem = "" if same else "another value"
        elif name in makers and makers[name].op_type == "DequantizeLinear" and makers[name].input[0] in stored:
            problem = _beyond_half_a_step(array, makers[name], model, stored)
        else:
            problem = "missing"
        if problem:
            differing[name] = problem
    evidence = {"tensors": len(expected), "exact": exact, "differing_tensors": differing}
    if differing or not expected:
        first, problem = next(iter(differing.items()), ("all", "no parameters are expected"))
        more = f", and {len(differing) - 1} more" if len(differing) > 1 else ""
        reason = f"int8: {len(differing)} of {len(expected)} tensors differ: {first} ({problem}){more}"
        return Check("weight-parity", False, reason, evidence)
    rounded = len(expected) - exact
    reason = f"int8: {rounded} tensors within half a step of the compressed ones, {exact} equal bit for bit"
    return Check("weight-parity", True, reason, evidence)


def _beyond_half_a_step(
    array: NDArray[np.float32], node: NodeProto, model: ModelProto, stored: Mapping[str, Any]
) -> str:
    """What is wrong with a dequantised parameter; empty where nothing is."""
    parts = [numpy_helper.to_array(stored[name]).astype(np.float64) for name in node.input if name in stored]
    if len(parts) != len(node.input) or parts[0].shape != array.shape:
        return "another shape, or a scale that is computed"
    codes, scale, zero_point = (parts[0], *(_spread(part, parts[0].ndim, node) for part in parts[1:]), np.zeros(()))[:3]
    if numpy_helper.to_array(stored[node.input[0]]).dtype == np.int32:
        needed = _bias_step(node.output[0], model, stored)
        if needed is None or not np.allclose(needed, parts[1], rtol=PRODUCT, atol=0):
            return "a step that its operator's input and weight do not have"
        step = scale
    else:
        step = np.minimum(scale, np.abs(array).max(initial=0) / 127)
    difference = np.abs((codes - zero_point) * scale - array)
    wrong = ~(difference <= (0.5 + ROUNDING) * step)  # so that NaN is wrong
    return (
        f"{int(np.count_nonzero(wrong))} of {array.size} values are further off than half a step" if wrong.any() else ""
    )


def _spread(part: NDArray[np.float64], rank: int, node: NodeProto) -> NDArray[np.float64]:
    """A scale or zero point so that it broadcasts along the node's axis."""
    if part.ndim == 0 or rank == 0:
        return part
    shape = [1] * rank
    shape[attributes(node).get("axis", 1) % rank] = -1
    return part.reshape(shape) if part.size > 1 else part.reshape(())


def _bias_step(name: str, model: ModelProto, stored: Mapping[str, Any]) -> NDArray[np.float64] | None:
    """Scale of the input × scale of the weight of the operator whose bias is `name`."""
    makers = {output: node for node in model.graph.node for output in node.output}
    for node in model.graph.node:
        if len(node.input) > 2 and node.input[2] == name:
            scales = [makers[source].input[1] for source in node.input[:2] if source in makers]
            if len(scales) == 2 and all(scale in stored for scale in scales):
                first, second = (numpy_helper.to_array(stored[scale]).astype(np.float64) for scale in scales)
                return np.asarray(first * second)
    return None
