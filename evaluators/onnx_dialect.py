"""A classifier's graph in the opset and the operators that gradient rules are written for; it computes the same."""

import onnx.inliner
import onnx.version_converter
from onnx import ModelProto, helper

from atmc_tool.errors import AtmcError
from evaluators.onnx_graph import opset

OLDEST = 16  # ScatterElements adds since then
_TARGET = 21

# Operators that onnx itself defines by others, those with rules; most of them since opset 18.
EXPANDED = (
    "Attention",
    "CastLike",
    "MeanVarianceNormalization",
    "RMSNormalization",
    "ReduceL1",
    "ReduceLogSum",
    "ReduceSumSquare",
    "Shrink",
    "Softsign",
    "Swish",
    "ThresholdedRelu",
)
_EXPANDED_SINCE = 18


def with_rules(model: ModelProto) -> ModelProto:
    """The model without local functions, at least of opset 16, and without the operators EXPANDED.

    Raises:
        AtmcError: onnx can't convert it to a newer opset.
    """
    if model.functions:
        model = onnx.inliner.inline_local_functions(model)
    expanded = {node.op_type for node in model.graph.node if node.domain in ("", "ai.onnx")}.intersection(EXPANDED)
    if opset(model) < (_EXPANDED_SINCE if expanded else OLDEST):
        model = _converted(model)
    if expanded:
        names = [("", kind) for kind in EXPANDED]  # all, for some are defined by others
        model = onnx.inliner.inline_selected_functions(_typed(model), names, inline_schema_functions=True)
    return model


def _typed(model: ModelProto) -> ModelProto:
    """A copy of the model with the type of every value, initialisers included: onnx expands some operators by it."""
    typed = onnx.shape_inference.infer_shapes(model)
    known = {info.name for info in (*typed.graph.input, *typed.graph.value_info, *typed.graph.output)}
    for tensor in typed.graph.initializer:
        if tensor.name not in known:
            typed.graph.value_info.append(helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims))
    return typed


def _converted(model: ModelProto) -> ModelProto:
    try:
        return onnx.version_converter.convert_version(model, _TARGET)
    except (onnx.version_converter.ConvertError, RuntimeError, ValueError) as error:
        lines = str(error).splitlines()
        hint = f"export the network again with opset {OLDEST} or newer"
        raise AtmcError(f"opset {opset(model)} is too old for a gradient: {lines[0][:200]}", hint=hint) from error
