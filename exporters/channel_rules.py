"""Rules of ONNX operators for their channels: which stay together, which are constant, what is cut with them.

A rule returns whether it could follow the node; where it could not, nothing that the node reads goes. A new operator is
a function and a line in RULES. Needs no torch.
"""

from collections.abc import Callable, Mapping

import numpy as np
from numpy.typing import NDArray
from onnx import NodeProto, TensorProto, helper
from onnx.reference import ReferenceEvaluator

from exporters.channel_graph import MOST_SLOTS, ChannelGraph, Channels, Kept, Reader, Work, attribute, is_float

Rule = Callable[[ChannelGraph, NodeProto], bool]
Floats = NDArray[np.float64]


def weighted(kernels: NDArray[np.float32], factors: Floats) -> Floats:
    """Σ_i factors_i kernels_oik: (outputs, places), in float64, one after the other, so on every machine alike."""
    total = np.zeros((kernels.shape[0], kernels.shape[2]))
    for i in np.flatnonzero(factors):
        total += kernels[:, i].astype(np.float64) * factors[i]
    return total


def summed(terms: Floats) -> Floats:
    """The sum over the last axis, one after the other."""
    return np.cumsum(terms, axis=-1)[..., -1]


def convolution(graph: ChannelGraph, node: NodeProto) -> bool:
    """y_o = b_o + Σ_i w_oi ∗ x_i, the sum over the inputs of o's group."""
    x, weight = graph.channels(node.input[0]), graph.parameter(node.input[1])
    bias_name = node.input[2] if len(node.input) > 2 else ""
    bias = graph.parameter(bias_name) if bias_name else None
    shape = graph.shape(node.output[0])
    if x is None or weight is None or not is_float(weight) or (bias_name and not is_float(bias)) or shape is None:
        return False
    if None in shape[2:]:
        return False
    groups, n_outputs = attribute(node, "group", 1), len(weight)
    if len(x.slots) != groups * weight.shape[1] or n_outputs % groups:
        return False
    kernels = weight.reshape(n_outputs, weight.shape[1], -1)
    padded = any(attribute(node, "pads", [])) or attribute(node, "auto_pad", b"NOTSET") in (
        b"SAME_UPPER",
        b"SAME_LOWER",
    )
    constants = np.concatenate(
        [_sums(k, c, padded) for k, c in zip(np.split(kernels, groups), np.split(x.constants, groups), strict=True)]
    )
    constants = constants if bias is None else constants + bias
    each = kernels.shape[2] * int(np.prod([size or 1 for size in shape[2:]]))
    if groups == 1:
        outputs = graph.new(n_outputs)
        graph.cut(node.input[1], 1, x.slots)
        graph.readers.append(Reader(x, outputs, kernels, padded, node.input[1], 1, bias_name))
        graph.works.append(Work(outputs, x.slots, each))
    else:  # a group stays or goes as a whole, so that all have as many channels as before
        whole = graph.new(groups)
        graph.join(x.slots, np.repeat(whole, len(x.slots) // groups))
        outputs = np.repeat(whole, n_outputs // groups)
        graph.works.append(Work(outputs, None, each * weight.shape[1]))

        def fewer_groups(kept: Kept) -> None:
            next(part for part in node.attribute if part.name == "group").i = int(kept(whole).sum())

        graph.edits.append(fewer_groups)
        if weight.shape[1] == 1:
            graph.depthwise.append(Channels(whole, x.constants))
    graph.cut(node.input[1], 0, outputs)
    if bias_name:
        graph.cut(bias_name, 0, outputs)
    graph.define(node.output[0], outputs, constants)
    return True


def _sums(kernels: NDArray[np.float32], constants: Floats, padded: bool) -> Floats:
    """What the constant inputs add to each output, NaN where others add something; zeros around make constants vary."""
    varies = np.isnan(constants) | (padded & (constants != 0))
    reads_varying = np.asarray(kernels.any(axis=2))[:, varies].any(axis=1)
    return np.where(reads_varying, np.nan, summed(weighted(kernels, np.where(varies, 0, constants))))


def linear(graph: ChannelGraph, node: NodeProto) -> bool:
    """y = x B + b or x Bᵀ + b, of rows x."""
    x, weight = graph.channels(node.input[0]), graph.parameter(node.input[1])
    bias_name = node.input[2] if len(node.input) > 2 else ""
    bias = graph.parameter(bias_name) if bias_name else None
    scaled = attribute(node, "alpha", 1.0) != 1 or attribute(node, "beta", 1.0) != 1 or attribute(node, "transA", 0)
    shape = graph.shape(node.input[0])
    if scaled or x is None or shape is None or len(shape) != 2 or weight is None or not is_float(weight):
        return False
    by_rows = bool(attribute(node, "transB", 0))  # the weight has a row for each output
    rows = weight if by_rows else weight.T
    if weight.ndim != 2 or (bias_name and (bias is None or not is_float(bias) or bias.shape != (len(rows),))):
        return False
    outputs = graph.new(len(rows))
    constants = _sums(rows[:, :, None], x.constants, padded=False)
    graph.cut(node.input[1], 0 if by_rows else 1, outputs)
    graph.cut(node.input[1], 1 if by_rows else 0, x.slots)
    if bias_name:
        graph.cut(bias_name, 0, outputs)
    graph.readers.append(Reader(x, outputs, rows[:, :, None], False, node.input[1], int(by_rows), bias_name))
    graph.works.append(Work(outputs, x.slots, 1))
    graph.define(node.output[0], outputs, constants if bias is None else constants + bias)
    return True


def batch_normalization(graph: ChannelGraph, node: NodeProto) -> bool:
    """y = γ (x − μ) / √(σ² + ε) + β."""
    x = graph.channels(node.input[0])
    arrays = [graph.parameter(name) for name in node.input[1:5]]
    if x is None or attribute(node, "training_mode", 0) or not all(is_float(array) for array in arrays):
        return False
    gamma, beta, mean, variance = (np.asarray(array, np.float64) for array in arrays)
    deviation = np.sqrt(variance + attribute(node, "epsilon", 1e-5))
    constants = np.where(gamma == 0, beta, gamma * (x.constants - mean) / deviation + beta)
    for name in node.input[1:5]:
        graph.cut(name, 0, x.slots)
    graph.define(node.output[0], x.slots, constants)
    return True


def elementwise(graph: ChannelGraph, node: NodeProto) -> bool:
    """y_c = f(a_c, b_c, …): operands of as many channels have their slots joined; others are the same for each."""
    shape = graph.shape(node.output[0])
    if shape is None or len(shape) < 2 or not shape[1] or len(node.output) != 1:
        return False
    operands = [_operand(graph, name, shape) for name in node.input if name]
    full = [x.slots for x in operands if x is not None and len(x.slots) == shape[1]]
    if not full or None in operands:
        return False
    for name, x in zip([name for name in node.input if name], operands, strict=True):
        assert x is not None
        if (array := graph.static(name)) is None:
            if len(x.slots) == shape[1]:
                graph.join(x.slots, full[0])
            else:  # one channel that all of the others' are combined with
                graph.pin(x.slots)
        elif len(x.constants) == shape[1] > 1:
            if graph.parameter(name) is None:
                graph.pin(full[0])
            graph.cut(name, array.ndim - len(shape) + 1, full[0])
    constants = _evaluated(node, [x.constants for x in operands if x is not None], shape[1])
    graph.define(node.output[0], full[0], constants)
    return True


def _operand(graph: ChannelGraph, name: str, shape: tuple[int | None, ...]) -> Channels | None:
    """The operand's channels, one or as many as in `shape`, none of them in slots where it is static."""
    array, other = graph.static(name), graph.shape(name)
    if array is None:
        x = graph.channels(name)
        fits = x is not None and other is not None and len(other) == len(shape) and len(x.slots) in (1, shape[1])
        return x if fits else None
    axis = array.ndim - len(shape) + 1
    size = array.shape[axis] if 0 <= axis < array.ndim else 1
    if not is_float(array) or array.ndim > len(shape) or size not in (1, shape[1]):
        return None
    constants = array.reshape(-1).astype(np.float64) if array.size == size else np.full(size, np.nan)
    return Channels(np.zeros(0, np.int64), constants)


def _evaluated(node: NodeProto, operands: list[Floats], n: int) -> Floats:
    """The operator on constants, in float64 by ONNX's reference implementation; NaN where an operand varies."""
    fed = dict(zip([name for name in node.input if name], map(np.nan_to_num, operands), strict=True))
    kinds = [helper.make_tensor_value_info(name, TensorProto.DOUBLE, None) for name in (*fed, node.output[0])]
    model = helper.make_model(helper.make_graph([node], "one", kinds[:-1], kinds[-1:]), opset_imports=[_OPSET])
    varies = np.broadcast_to(np.any(np.broadcast_arrays(*(np.isnan(x) for x in operands)), axis=0), n)
    with np.errstate(all="ignore"):
        (result,) = ReferenceEvaluator(model).run(None, fed)
    values = np.broadcast_to(np.asarray(result, np.float64), n)
    if node.op_type == "Mul":  # by zero
        zero = np.any(np.broadcast_arrays(*(x == 0 for x in operands)), axis=0)
        return np.where(zero, 0.0, np.where(varies, np.nan, values))
    return np.where(varies, np.nan, values)


def pool(graph: ChannelGraph, node: NodeProto) -> bool:
    """Means and maxima of places; means over padded places, which count as zeros, change a constant."""
    x = graph.channels(node.input[0])
    if x is None or len(node.output) != 1:
        return False
    padded = any(attribute(node, "pads", [])) or attribute(node, "auto_pad", b"NOTSET") != b"NOTSET"
    changes = "Average" in node.op_type and (padded or attribute(node, "ceil_mode", 0))
    graph.define(node.output[0], x.slots, np.where(changes & (x.constants != 0), np.nan, x.constants))
    return True


def places(graph: ChannelGraph, node: NodeProto) -> bool:
    """Means and extremes over places, and axes of one place that come or go: the channels are what they were."""
    x = graph.channels(node.input[0])
    shape = graph.shape(node.output[0] if node.op_type == "Unsqueeze" else node.input[0])
    axes = graph.constant(node.input[1]) if len(node.input) == 2 else None
    if x is None or shape is None or axes is None or not axes.size or (axes % len(shape)).min() < 2:
        return False
    graph.define(node.output[0], x.slots, x.constants)
    return True


def flatten(graph: ChannelGraph, node: NodeProto) -> bool:
    """(N, C, …) → (N, C · places): a feature has its channel's slot. A shape that states the features is mended."""
    x, before, after = graph.channels(node.input[0]), graph.shape(node.input[0]), graph.shape(node.output[0])
    if x is None or before is None or after is None or len(after) != 2 or None in before[1:]:
        return False
    each = int(np.prod([size or 0 for size in before[2:]]))
    if not each or after[1] != len(x.slots) * each:
        return False
    if after[1] > MOST_SLOTS:
        return False
    slots = np.repeat(x.slots, each)
    if node.op_type == "Flatten":
        if attribute(node, "axis", 1) != 1:
            return False
    else:
        target = graph.constant(node.input[1])
        if target is None or target.tolist() not in ([-1, after[1]], [0, after[1]], [0, -1]):
            return False
        first, stated = int(target[0]), target[1] > 0
        if first == 0 and attribute(node, "allowzero", 0):
            return False

        def fewer_features(kept: Kept) -> None:
            graph.replace_constant(node, 1, np.array([first, kept(slots).sum()], np.int64))

        if stated:
            graph.edits.append(fewer_features)
    graph.define(node.output[0], slots, np.repeat(x.constants, each))
    return True


def slice_places(graph: ChannelGraph, node: NodeProto) -> bool:
    """Some of the places."""
    x, shape = graph.channels(node.input[0]), graph.shape(node.input[0])
    axes = graph.constant(node.input[3]) if len(node.input) > 3 else None
    if x is None or shape is None or axes is None or (axes % len(shape)).min() < 2:
        return False
    graph.define(node.output[0], x.slots, x.constants)
    return True


def pad(graph: ChannelGraph, node: NodeProto) -> bool:
    """Places around, and channels before and after, which are constant."""
    x, shape, pads = graph.channels(node.input[0]), graph.shape(node.input[0]), graph.constant(node.input[1])
    if x is None or shape is None or pads is None or (len(node.input) > 3 and node.input[3]):
        return False
    value = graph.constant(node.input[2]) if len(node.input) > 2 and node.input[2] else np.zeros(1)
    constant, rank = attribute(node, "mode", b"constant") == b"constant", len(shape)
    before, after = int(pads[1]), int(pads[1 + rank])
    others = np.delete(pads, [1, 1 + rank])
    if value is None or pads[0] or pads[rank] or before < 0 or after < 0 or (not constant and (before or after)):
        return False
    fill = float(value.reshape(-1)[0])
    constants = np.where(constant & others.any() & (x.constants != fill), np.nan, x.constants)
    left, right = graph.new(before), graph.new(after)

    def fewer_pads(kept: Kept) -> None:
        fewer = pads.copy()
        fewer[[1, 1 + rank]] = kept(left).sum(), kept(right).sum()
        graph.replace_constant(node, 1, fewer)

    if before or after:
        graph.edits.append(fewer_pads)
    graph.define(
        node.output[0],
        np.concatenate([left, x.slots, right]),
        np.concatenate([np.full(before, fill), constants, np.full(after, fill)]),
    )
    return True


def concat(graph: ChannelGraph, node: NodeProto) -> bool:
    """Channels of one value after those of another."""
    shape, values = graph.shape(node.output[0]), [graph.channels(name) for name in node.input]
    if shape is None or attribute(node, "axis", 0) % len(shape) != 1:
        return False
    parts = [value for value in values if value is not None]
    if len(parts) < len(values):
        return False
    graph.define(node.output[0], np.concatenate([x.slots for x in parts]), np.concatenate([x.constants for x in parts]))
    return True


_OPSET = helper.make_opsetid("", 21)
_CONTINUOUS = (
    "Abs Add Celu Clip Div Elu Erf Exp Gelu HardSigmoid HardSwish Identity LeakyRelu Max Min Mish Mul Neg PRelu Relu "
    "Selu Sigmoid Softplus Softsign Sqrt Sub Tanh"
)  # so that a constant's rounding moves a value by no more than it is

RULES: Mapping[str, Rule] = {
    **dict.fromkeys(_CONTINUOUS.split(), elementwise),
    "AveragePool": pool,
    "BatchNormalization": batch_normalization,
    "Concat": concat,
    "Conv": convolution,
    "Flatten": flatten,
    "Gemm": linear,
    "GlobalAveragePool": pool,
    "GlobalMaxPool": pool,
    "MatMul": linear,
    "MaxPool": pool,
    "Pad": pad,
    "ReduceMax": places,
    "ReduceMean": places,
    "ReduceMin": places,
    "Reshape": flatten,
    "Slice": slice_places,
    "Squeeze": places,
    "Unsqueeze": places,
}
