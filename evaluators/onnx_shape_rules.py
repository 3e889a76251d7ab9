"""Gradient rules of operators that move elements and compute nothing."""

from typing import Literal

import numpy as np
from onnx import NodeProto, TensorProto

from atmc_tool.errors import AtmcError
from evaluators.onnx_arithmetic_rules import unbroadcast
from evaluators.onnx_graph import GraphBuilder, attributes
from evaluators.onnx_product_rules import along_axis


def reshape(graph: GraphBuilder, node: NodeProto, d: str) -> str:
    return graph.op("Reshape", d, graph.op("Shape", node.input[0]))


def expand(graph: GraphBuilder, node: NodeProto, d: str) -> str:
    return unbroadcast(graph, d, node.input[0], node.output[0])


def transpose(graph: GraphBuilder, node: NodeProto, d: str) -> str:
    backwards = list(range(len(graph.shape(node.input[0]))))[::-1]
    return graph.op("Transpose", d, perm=np.argsort(attributes(node).get("perm", backwards)).tolist())


def concat(graph: GraphBuilder, node: NodeProto, d: str, position: int) -> str:
    axis = attributes(node)["axis"]
    ends = np.cumsum([0, *(graph.sizes(name, [axis])[0] for name in node.input)])
    begin, end = graph.integers(ends[[position]]), graph.integers(ends[[position + 1]])
    return graph.op("Slice", d, begin, end, graph.integers([axis]))


def split(graph: GraphBuilder, node: NodeProto, parts: list[str | None]) -> str:
    """dL/dx, given dL/d(part) of each part, None where no gradient reaches it."""
    given = [part or _zeros(graph, name) for name, part in zip(node.output, parts, strict=True)]
    return graph.op("Concat", *given, axis=attributes(node).get("axis", 0))


def gather(graph: GraphBuilder, node: NodeProto, d: str) -> str:
    """d added where its elements were taken from."""
    x, indices = node.input
    rank = len(graph.shape(x))
    axis = attributes(node).get("axis", 0) % rank
    flat = graph.op("Reshape", indices, graph.integers([-1]))
    before, after = graph.op("Shape", x, start=0, end=axis), graph.op("Shape", x, start=axis + 1)
    laid = graph.op("Concat", before, graph.op("Shape", flat), after, axis=0)
    line = graph.op("Reshape", flat, graph.integers([1] * axis + [-1] + [1] * (rank - axis - 1)))
    taken, d = graph.op("Expand", line, laid), graph.op("Reshape", d, laid)
    return graph.op("ScatterElements", _zeros(graph, x), taken, d, axis=axis, reduction="add")


def gather_nd(graph: GraphBuilder, node: NodeProto, d: str) -> str:
    """d added where its elements were taken from."""
    if attributes(node).get("batch_dims", 0):
        raise AtmcError(f"no gradient rule for GatherND {node.name!r} with batch_dims")
    x, indices = node.input
    return graph.op("ScatterND", _zeros(graph, x), indices, d, reduction="add")


def gather_elements(graph: GraphBuilder, node: NodeProto, d: str) -> str:
    """d added where its elements were taken from."""
    x, indices = node.input
    axis = attributes(node).get("axis", 0)
    return graph.op("ScatterElements", _zeros(graph, x), indices, d, axis=axis, reduction="add")


def scatter(graph: GraphBuilder, node: NodeProto, d: str, position: int) -> str:
    """ScatterElements and ScatterND: the updates' elements of d go to the updates, the others to the data."""
    _, indices, updates = node.input
    values = attributes(node)
    reduction = values.pop("reduction", "none")
    if reduction not in ("none", "add"):
        raise AtmcError(f"no gradient rule for {node.op_type} {node.name!r} with reduction {reduction}")
    if position == 2:
        kind = "GatherElements" if node.op_type == "ScatterElements" else "GatherND"
        return graph.op(kind, d, indices, **values)
    return d if reduction == "add" else graph.op(node.op_type, d, indices, _zeros(graph, updates), **values)


def depth_to_space(graph: GraphBuilder, node: NodeProto, d: str) -> str:
    """(N, C, H b, W b) → (N, C b², H, W), the two axes of a block before the channels (DCR) or behind them (CRD)."""
    block, mode = attributes(node)["blocksize"], attributes(node).get("mode", "DCR")
    channels, height, width = graph.sizes(node.input[0], (1, 2, 3))
    shape = graph.integers([0, channels // block**2, height, block, width, block])
    order = [0, 3, 5, 1, 2, 4] if mode == "DCR" else [0, 1, 3, 5, 2, 4]
    moved = graph.op("Transpose", graph.op("Reshape", d, shape), perm=order)
    return graph.op("Reshape", moved, graph.integers([0, channels, height, width]))


def triangle(graph: GraphBuilder, node: NodeProto, d: str) -> str:
    """Trilu: d in the same triangle."""
    return graph.op("Trilu", d, *node.input[1:], **attributes(node))


def space_to_depth(graph: GraphBuilder, node: NodeProto, d: str) -> str:
    return graph.op("DepthToSpace", d, blocksize=attributes(node)["blocksize"])


def _zeros(graph: GraphBuilder, like: str) -> str:
    return graph.op("Expand", graph.floats(0, like), graph.op("Shape", like))


def tile(graph: GraphBuilder, node: NodeProto, d: str) -> str:
    """d summed over the copies: each axis of n·size elements as two axes, (n, size)."""
    x, repeats = node.input
    rank = len(graph.shape(x))
    column = graph.integers([rank, 1])
    columns = [graph.op("Reshape", values, column) for values in (repeats, graph.op("Shape", x))]
    pairs = graph.op("Reshape", graph.op("Concat", *columns, axis=1), graph.integers([2 * rank]))
    return graph.op("ReduceSum", graph.op("Reshape", d, pairs), graph.integers(list(range(0, 2 * rank, 2))), keepdims=0)


def pad(graph: GraphBuilder, node: NodeProto, d: str) -> str:
    """Padding by −pads: crops what was padded, and pads with zeros what was cropped."""
    if (mode := attributes(node).get("mode", "constant")) != "constant":
        return _pad_copies(graph, node, d, mode)
    return graph.op("Pad", d, graph.op("Neg", node.input[1]), "", *node.input[3:])


def _pad_copies(graph: GraphBuilder, node: NodeProto, d: str, mode: Literal["reflect", "edge", "wrap"]) -> str:
    """d added where each element was copied from, along the last two axes."""
    x, rank = node.input[0], len(graph.shape(node.input[0]))
    pads = graph.known(node.input[1])
    if len(node.input) > 3 or len(pads) != 2 * rank or pads.min() < 0 or pads.reshape(2, rank)[:, :-2].any():
        raise AtmcError(f"no gradient rule for Pad {node.name!r} of mode {mode} but behind the last two axes")
    for axis in range(max(0, rank - 2), rank):
        (size,) = graph.sizes(x, [axis])
        copied = np.pad(np.arange(size), (pads[axis], pads[rank + axis]), mode)
        d = along_axis(graph, graph.floats(np.eye(size)[:, copied], x), d, last=axis == rank - 1)
    return d


def slice_(graph: GraphBuilder, node: NodeProto, d: str) -> str:
    """Axis by axis: every element of x takes the element of d that it became, or the zero put after the last one."""
    x, starts, ends = node.input[:3]
    optional = [*node.input[3:], "", ""]
    n_axes = graph.sizes(starts, [0])[0]
    axes = graph.known(optional[0]).tolist() if optional[0] else list(range(n_axes))
    steps = optional[1] or graph.integers([1] * n_axes)
    shape, zero, one = graph.shape(x), graph.integers(0), graph.integers(1)
    for i, axis in enumerate(int(a) % len(shape) for a in axes):
        known = isinstance(shape[axis], int)  # then onnxruntime computes all of `source` at load
        size = graph.integers([shape[axis]]) if known else graph.op("Shape", x, start=axis, end=axis + 1)
        start, end, step = (
            graph.op("Cast", graph.op("Gather", bounds, graph.integers([i])), to=TensorProto.INT64)
            for bounds in (starts, ends, steps)
        )
        all_positions = graph.op("Range", zero, graph.op("Squeeze", size), one)
        kept = graph.op("Slice", all_positions, start, end, graph.integers([0]), step)
        n_kept = graph.op("Shape", kept)
        numbers = graph.op("Range", zero, graph.op("Squeeze", n_kept), one)
        source = graph.op("ScatterElements", graph.op("Expand", n_kept, size), kept, numbers)
        padding = np.zeros((2, len(shape)), np.int64)
        padding[1, axis] = 1
        d = graph.op("Gather", graph.op("Pad", d, graph.integers(padding.reshape(-1))), source, axis=axis)
    return d
