"""The tensors of an ONNX model, wherever they are: a file of strangers is looked through before anything reads them."""

from collections.abc import Iterator

from google.protobuf.message import Message
from onnx import TensorProto


def tensors(message: Message) -> Iterator[TensorProto]:
    """Every tensor in it: in subgraphs, functions, attributes and their defaults, sparse and training ones too."""
    for field, value in message.ListFields():
        if field.message_type is not None:
            for part in (value,) if isinstance(value, Message) else value:
                if isinstance(part, TensorProto):
                    yield part
                yield from tensors(part)


def is_elsewhere(tensor: TensorProto) -> bool:
    """Whether its elements are in another file, which onnx and onnxruntime would read."""
    return tensor.data_location != TensorProto.DEFAULT or len(tensor.external_data) > 0
