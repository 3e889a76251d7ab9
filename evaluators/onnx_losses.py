"""The gradients of the attacks' losses with respect to the logits, as ONNX operators.

The losses are those of `atmc_tool.attacks.losses`. Each function gives the name of the gradient, (N, classes), of the
loss summed over the batch; `logits` is the name of z (N, classes), `labels` that of y and `targets` that of t, int64
(N,), empty where the loss has no target. e_k is 1 at class k and 0 elsewhere.
"""

from collections.abc import Callable, Mapping
from types import MappingProxyType

from onnx import TensorProto

from atmc_tool.attacks.classifier import Loss
from atmc_tool.attacks.losses import ALMOST_ZERO, dlr_classes
from evaluators.onnx_graph import GraphBuilder


def cross_entropy(graph: GraphBuilder, logits: str, labels: str, targets: str) -> str:
    """softmax(z) − e_y; e_t − softmax(z)."""
    probabilities = graph.op("Softmax", logits, axis=1)
    if targets:
        return graph.op("Sub", _one_hot(graph, logits, targets), probabilities)
    return graph.op("Sub", probabilities, _one_hot(graph, logits, labels))


def margin(graph: GraphBuilder, logits: str, labels: str, targets: str) -> str:
    """e_b − e_y with b = argmax over j ≠ y of z_j, or b = t."""
    label = _one_hot(graph, logits, labels)
    if targets:
        return graph.op("Sub", _one_hot(graph, logits, targets), label)
    is_label = graph.op("Cast", label, to=TensorProto.BOOL)
    others = graph.op("Where", is_label, graph.floats(float("-inf"), logits), logits)
    best = graph.op("ArgMax", others, axis=1, keepdims=0)
    return graph.op("Sub", _one_hot(graph, logits, best), label)


def dlr(graph: GraphBuilder, logits: str, labels: str, targets: str) -> str:
    """(e_b − e_y)/D − (z_b − z_y)/D² · dD, with b as in `margin`, D = z_(1) − z_(3) or z_(1) − ½(z_(3) + z_(4)) and
    dD = e_(1) − e_(3) or e_(1) − ½(e_(3) + e_(4)); the margin's where the classes are too few."""
    direction = margin(graph, logits, labels, targets)
    (classes,) = graph.sizes(logits, [1])
    needed = dlr_classes(bool(targets))
    if classes < needed:
        return direction
    weights = [1.0, 0.0, -0.5, -0.5] if targets else [1.0, 0.0, -1.0]
    _, ranks = graph.ops("TopK", logits, graph.integers([needed]), n_outputs=2, axis=1)
    ones = graph.op("OneHot", ranks, graph.integers([classes]), graph.floats([0, 1], logits), axis=2)
    column = graph.floats([[weight] for weight in weights], logits)
    change = graph.op("ReduceSum", graph.op("Mul", ones, column), graph.integers([1]), keepdims=0)
    width = _row_sum(graph, logits, change)
    width = graph.op("Add", width, graph.floats(ALMOST_ZERO, logits))
    value = graph.op("Div", _row_sum(graph, logits, direction), width)
    return graph.op("Div", graph.op("Sub", direction, graph.op("Mul", value, change)), width)


def _row_sum(graph: GraphBuilder, logits: str, weights: str) -> str:
    """Σ_k w_k z_k, (N, 1)."""
    return graph.op("ReduceSum", graph.op("Mul", logits, weights), graph.integers([1]), keepdims=1)


def _one_hot(graph: GraphBuilder, logits: str, indices: str) -> str:
    (depth,) = graph.sizes(logits, [1])
    return graph.op("OneHot", indices, graph.integers([depth]), graph.floats([0, 1], logits), axis=1)


LOGITS_GRADIENTS: Mapping[Loss, Callable[[GraphBuilder, str, str, str], str]] = MappingProxyType(
    {"cross_entropy": cross_entropy, "margin": margin, "dlr": dlr}
)
