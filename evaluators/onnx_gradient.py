"""Reverse-mode differentiation of an ONNX classifier by graph construction: the gradient is the artefact's own.

A PGD attack inside onnxruntime needs no second implementation of the network, so it is white-box on the very file
that ships.
"""

from collections.abc import Sequence

from onnx import ModelProto, NodeProto, TensorProto, helper

from atmc_tool.attacks.classifier import Loss
from atmc_tool.errors import AtmcError
from evaluators.onnx_dialect import with_rules
from evaluators.onnx_graph import GraphBuilder, Observe, attributes, reads
from evaluators.onnx_losses import LOGITS_GRADIENTS
from evaluators.onnx_rules import JOINS, RULES

# Operators whose derivative is zero wherever it exists, and random ones that read a value for its shape alone.
_FLAT = (
    {"Ceil", "Floor", "Round", "Sign", "RandomNormalLike", "RandomUniformLike"}
    | {"ArgMax", "ArgMin", "Shape", "Size", "IsNaN", "IsInf", "Not", "And", "Or"}
    | {"Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual"}
)
_FLOATS = (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16, TensorProto.DOUBLE)

LOSSES: tuple[Loss, ...] = ("cross_entropy", "margin")  # unless others are asked for


def differentiate(
    model: ModelProto, losses: Sequence[Loss] = LOSSES, *, targeted: bool = False, observe: Observe | None = None
) -> ModelProto:
    """The model with one more input and one more output for each of the losses; they come last.

    Input `labels`: int64 (N,); if `targeted`, another one after it: `targets`, int64 (N,). Outputs
    `gradient.cross_entropy` and so on: float32 (N, C, H, W), gradient with respect to the image of the loss summed over
    the batch; the losses are those of `atmc_tool.attacks.losses`.
    A name that the model has already gets underscores after it. Values that do not depend on the image are constants,
    whether they are initialisers or computed from initialisers.

    observe: see `GraphBuilder`

    Raises:
        AtmcError: an operator between image and logits has no rule, a rule needs a shape that is not known, or onnx
            can't convert an opset older than 16.
    """
    model = with_rules(model)
    graph = GraphBuilder(model, observe)
    initializers = {tensor.name for tensor in model.graph.initializer}
    image = next(info for info in model.graph.input if info.name not in initializers)
    logits = graph.model.graph.output[0].name
    labels, targets = graph.fresh("labels"), graph.fresh("targets") if targeted else ""
    for name in (labels, targets) if targeted else (labels,):
        graph.model.graph.input.append(helper.make_tensor_value_info(name, TensorProto.INT64, [None]))
    active = _active(graph, image.name)
    for loss in losses:
        name = graph.fresh(f"gradient.{loss}")
        seed = LOGITS_GRADIENTS[loss](graph, logits, labels, targets)
        gradient = _backward(graph, active, seed, logits, image.name)
        graph.model.graph.node.append(helper.make_node("Identity", [gradient], [name]))
        output = graph.model.graph.output.add()
        output.CopyFrom(image)
        output.name = name
    # Inference gives different sizes one name, by which onnxruntime would let values share memory that does not fit.
    graph.model.graph.ClearField("value_info")
    return graph.model


def _active(graph: GraphBuilder, image: str) -> set[str]:
    """Names of the values through which a gradient may flow: computed from the image by operators that are not flat."""
    active = {image}
    for node in graph.forward:
        if not _is_flat(node) and not active.isdisjoint(reads(node)):
            active.update(node.output)
    return active


def _is_flat(node: NodeProto) -> bool:
    to_integer = node.op_type == "Cast" and attributes(node)["to"] not in _FLOATS
    return to_integer or node.op_type in _FLAT


def _backward(graph: GraphBuilder, active: set[str], seed: str, logits: str, image: str) -> str:
    """The name of the gradient with respect to `image`, given `seed`, the gradient with respect to `logits`."""
    pending = {logits: seed}
    for node in reversed(graph.forward):
        parts = [pending.pop(name, None) for name in node.output]
        if active.isdisjoint(node.output) or not any(parts):
            continue
        rule = RULES.get(node.op_type) if node.domain in ("", "ai.onnx") else None
        if rule is None:
            raise AtmcError(
                f"no gradient rule for the {_label(node)}", hint=f"there are rules for {', '.join(sorted(RULES))}"
            )
        d = JOINS[node.op_type](graph, node, parts) if node.op_type in JOINS else parts[0]
        if d is None or (node.op_type not in JOINS and any(parts[1:])):
            stray = next(name for name, part in zip(node.output[1:], parts[1:], strict=True) if part)
            raise AtmcError(f"no gradient through output {stray!r} of the {_label(node)}")
        for name in (*node.input[rule.n_inputs :], *(reads(node) - {*node.input})):
            if name in active:
                raise AtmcError(f"no gradient through input {name!r} of the {_label(node)}")
        for position, name in enumerate(node.input):
            if name in active:
                part = rule.gradient(graph, node, d, position)
                pending[name] = graph.op("Add", pending[name], part) if name in pending else part
    if image in pending:
        return pending[image]
    return graph.op("Sub", image, image)


def _label(node: NodeProto) -> str:
    operator = f"{node.domain}.{node.op_type}" if node.domain else node.op_type
    return f"operator {operator} (node {node.name!r}, output {node.output[0]!r})"
