"""A file from elsewhere as a classifier: its open image size fixed, and which of its values are the logits."""

from collections.abc import Iterator

import onnx.shape_inference
from onnx import ModelProto, NodeProto, TensorProto, ValueInfoProto, helper

from atmc_tool.errors import UsageError

# Each leaves the order of a row of scores as it is, or is no more than another shape of it.
_MONOTONE = ("Softmax", "LogSoftmax", "Sigmoid")
_SAME = ("Identity", "Dropout", "Flatten", "Reshape", "Squeeze")


def adopted(model: ModelProto, image_shape: tuple[int, int, int], logits: str = "") -> ModelProto:
    """A copy of `model` that takes images of one size and has one output, (N, classes).

    image_shape: (C, H, W), for those of the image's dimensions that the file leaves open
    logits:      the output to keep, or what the last softmax before an output reads; empty: the only output

    Outputs (N, classes, 1, 1) are flattened. Of a model that needs nothing of this, an equal copy.

    Raises:
        UsageError: `logits` is neither of the two.
    """
    result = ModelProto()
    result.CopyFrom(model)
    graph = result.graph
    stored = {tensor.name for tensor in graph.initializer}
    for info in graph.input:
        dimensions = info.type.tensor_type.shape.dim
        if info.name not in stored and len(dimensions) == 4:
            for dimension, size in zip(list(dimensions)[1:], image_shape, strict=True):
                if not dimension.dim_value:
                    dimension.dim_value = size
    inferred = onnx.shape_inference.infer_shapes(result, data_prop=True).graph
    infos = {info.name: info for info in (*inferred.value_info, *inferred.output)}
    if logits:
        choice = logits_choice(model)
        if logits not in choice:
            expected = " or ".join(repr(name) for name in choice)
            raise UsageError("these are not the network's logits", expected=expected, got=logits)
        del graph.output[:]
        graph.output.append(infos.get(logits, ValueInfoProto(name=logits)))
    if len(graph.output) == 1:
        _flatten(result, infos.get(graph.output[0].name, graph.output[0]))
    return result


def _flatten(model: ModelProto, scores: ValueInfoProto) -> None:
    """Make the only output (N, classes), where `scores`, what is known of it, says (N, classes, 1, ...)."""
    sizes = [dimension.dim_value for dimension in scores.type.tensor_type.shape.dim]
    if len(sizes) > 2 and set(sizes[2:]) == {1}:
        taken = {name for node in model.graph.node for name in node.output}
        name = f"{scores.name}.flat"
        while name in taken:
            name += "_"
        model.graph.node.append(helper.make_node("Flatten", [scores.name], [name], axis=1))
        flat = helper.make_tensor_value_info(name, TensorProto.FLOAT, [None, sizes[1] or None])
        model.graph.output[0].CopyFrom(flat)


def logits_choice(model: ModelProto) -> list[str]:
    """Names of the outputs, and of what the last softmax or sigmoid before an output reads."""
    made_by = {name: node for node in model.graph.node for name in node.output}
    names = [info.name for info in model.graph.output]
    return [*names, *(inner for name in names for inner in _before(made_by, name))]


def softmax_input(model: ModelProto) -> str:
    """Name of what the softmax at the end of a model of one output reads; empty where there is none."""
    choice = logits_choice(model) if len(model.graph.output) == 1 else []
    return choice[1] if len(choice) == 2 else ""


def _before(made_by: dict[str, NodeProto], name: str) -> Iterator[str]:
    node = made_by.get(name)
    while node is not None and node.op_type in _SAME:
        node = made_by.get(node.input[0])
    if node is not None and node.op_type in _MONOTONE:
        yield node.input[0]
