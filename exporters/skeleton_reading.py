"""The graph of a network without its weights, as a compressed file carries it, read as if the file were hostile."""

import onnx
from google.protobuf.message import DecodeError
from onnx import ModelProto

from atmc_tool.errors import InputError


def read_skeleton(content: bytes) -> ModelProto:
    """A checked ONNX model.

    Raises:
        InputError: it is damaged, or takes no image or gives no single output.
    """
    try:
        proto = onnx.load_model_from_string(content)
        onnx.checker.check_model(proto, full_check=True)
    except (DecodeError, ValueError, onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise InputError(f"the graph in the model is damaged: {reason}") from error
    if not proto.graph.input or len(proto.graph.output) != 1:
        raise InputError("the graph in the model is damaged", expected="an image and one output")
    return proto
