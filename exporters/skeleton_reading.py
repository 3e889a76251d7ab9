"""The graph of a network without its weights, as a compressed file carries it, read as if the file were hostile."""

import math

import onnx
from google.protobuf.message import DecodeError
from onnx import ModelProto, TensorProto, numpy_helper

from atmc_tool.errors import InputError
from atmc_tool.onnx_tensors import is_elsewhere, tensors
from exporters.strict_json import brief


def read_skeleton(content: bytes) -> ModelProto:
    """A checked ONNX model.

    Raises:
        InputError: it is damaged, keeps a tensor in another file, or takes no image or gives no single output.
    """
    try:
        proto = onnx.load_model_from_string(content)
        for tensor in tensors(proto):
            _check_whole(tensor)
        onnx.checker.check_model(proto, full_check=True)
    except (DecodeError, ValueError, onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise InputError(f"the graph in the model is damaged: {reason}") from error
    if not proto.graph.input or len(proto.graph.output) != 1:
        raise InputError("the graph in the model is damaged", expected="an image and one output")
    return proto


def _check_whole(tensor: TensorProto) -> None:
    """Raise where the tensor is in another file, which onnx would read, or has not the elements of its shape."""
    name = brief(tensor.name)
    if is_elsewhere(tensor):
        raise InputError(f"the graph in the model keeps the tensor {name} in another file")
    shape = tuple(tensor.dims)
    try:
        if tensor.data_type == TensorProto.STRING:  # an array would hold all as long as the longest
            fits = len(tensor.string_data) == math.prod(shape)
        else:
            fits = numpy_helper.to_array(tensor).shape == shape
    except (ValueError, TypeError, KeyError):
        fits = False
    if not fits:
        raise InputError(f"the graph in the model is damaged: the tensor {name} has not the elements of its shape")
