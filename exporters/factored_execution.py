"""Low-rank weights run as two small layers, where that is fewer operations: W x = A (B x).

A weight W = V + U V (m ≤ n), whose V has r rows that are not empty, is A B: B (r, n) are those rows, and A (m, r) the
columns of I + U that belong to them. W = U + U V (m > n) is A B: A (m, r) are the columns of U that are not empty, B
the rows of I + V that belong to them. So a convolution becomes one with r filters and one of 1 × 1, a linear layer
becomes two. arXiv:1902.03538 stores W so; this runs it so. Works on the graph that the file carries; needs no torch.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, TensorProto, helper

from atmc_tool.compressed import CompressedModel, CompressedWeight, SparseTensor, sparsify
from exporters.skeleton_reading import read_skeleton

BLOCK = 16  # channels that a processor works on at once (AVX-512); fewer take the same time
TRAFFIC = 30  # multiply-adds in the time that it takes to write a value and read it again
PAYS = 1.1  # times fewer operations that are worth a layer more


@dataclass(frozen=True)
class Factored:
    """What runs as two layers: name of the weight → r. `times`: how many times faster, as predicted."""

    ranks: dict[str, int]
    times: float

    def __str__(self) -> str:
        layers = f"{len(self.ranks)} layer{'s' if len(self.ranks) > 1 else ''} of low rank as two small ones"
        return f"{layers}, {self.times:.2f} times as fast by count of operations"


def factor_execution(model: CompressedModel) -> tuple[CompressedModel, Factored | None]:
    """`model` with every weight as two (`P.first` (r, …), `P.second` (m, r, …)) where that takes less time.

    Logits are equal but for rounding. What has C, is used twice, or belongs to another operator than Conv without
    groups and Gemm, stays as it is. None where all does; then the model is the same object. Deterministic.

    Raises:
        InputError: the graph in `model` is damaged.
    """
    proto = read_skeleton(model.skeleton)
    graph = proto.graph
    uses = [name for node in graph.node for name in node.input]
    parameters = {info.name for info in graph.input[1:]}
    weights = dict(model.weights)
    nodes: list[NodeProto] = []
    ranks: dict[str, int] = {}
    for node in graph.node:
        name = _weight_name(node)
        found = None
        if name in weights and name in parameters and uses.count(name) == 1:
            found = _low_rank(weights[name])
        if found is None:
            nodes.append(node)
            continue
        first, second = found
        ranks[name] = len(first)
        shape = weights.pop(name).shape
        shapes = ((len(first), *shape[1:]), (shape[0], len(first), *(1 for _ in shape[2:])))
        for part, matrix, part_shape in zip(("first", "second"), (first, second), shapes, strict=True):
            weights[f"{name}.{part}"] = _as_weight(matrix, part_shape, model.weights[name])
        nodes += _two_layers(node, name)
    if not ranks:
        return model, None
    before = operations(proto)
    kept = [info for info in graph.input if info.name not in ranks]
    added = [
        helper.make_tensor_value_info(f"{name}.{part}", TensorProto.FLOAT, weights[f"{name}.{part}"].shape)
        for name in ranks
        for part in ("first", "second")
    ]
    del graph.node[:], graph.input[:]
    graph.node.extend(nodes)
    graph.input.extend([*kept, *added])
    result = Factored(ranks, before / operations(proto))
    facts = {**model.manifest, "factored": ranks}
    small = replace(model, weights=weights, skeleton=proto.SerializeToString(deterministic=True), manifest=facts)
    return small, result


def layer_operations(m: int, n: int) -> int:
    """Multiply-adds at each position of the output of a layer (m, n), and what else takes as long.

    Output channels fill whole blocks, and each output is written and read again. Measured with onnxruntime 1.31 on an
    AMD EPYC core, on convolutions of 16 to 512 channels and ranks of ⅛ to ¾ of them: two layers against one, 32 of 40
    within 20 % of the prediction.
    """
    filled = -(-m // BLOCK) * BLOCK
    return filled * n + TRAFFIC * filled


def operations(proto: ModelProto) -> int:
    """`layer_operations` of every Conv and Gemm of a graph for one image, at all positions of their outputs.

    Where the shape of an output is not known, as behind operators that ONNX infers nothing about, at one position.
    """
    known = onnx.ModelProto()
    known.CopyFrom(proto)
    known.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 1
    graph = onnx.shape_inference.infer_shapes(known).graph
    shapes = {
        info.name: [dim.dim_value for dim in info.type.tensor_type.shape.dim]
        for info in (*graph.input, *graph.value_info, *graph.output)
    }
    total = 0
    for node in graph.node:
        if _weight_name(node):
            m, *rest = shapes[node.input[1]]
            positions = int(np.prod(shapes.get(node.output[0], [])[2:]))
            total += layer_operations(m, int(np.prod(rest))) * max(1, positions)
    return total


def _weight_name(node: NodeProto) -> str:
    """The weight of a layer that can be two; empty for other nodes."""
    attributes = {a.name: helper.get_attribute_value(a) for a in node.attribute}
    if node.op_type == "Conv" and attributes.get("group", 1) == 1:
        return str(node.input[1])
    plain = attributes.get("alpha", 1.0) == attributes.get("beta", 1.0) == 1.0 and not attributes.get("transA", 0)
    return str(node.input[1]) if node.op_type == "Gemm" and plain and attributes.get("transB", 0) == 1 else ""


def _low_rank(weight: CompressedWeight) -> tuple[NDArray[np.float32], NDArray[np.float32]] | None:
    """(B (r, n), A (m, r)) with W = A B, where two layers take less time than one."""
    stored = {name: factor.dense() for name, factor in weight.factors.items() if factor.kept}
    if set(stored) != {"U", "V"}:
        return None
    m, n = weight.matrix_shape
    if weight.main == "V":
        used = stored["V"].any(axis=1)
        second, first = (np.eye(m, dtype=np.float32) + stored["U"])[:, used], stored["V"][used]
    else:
        used = stored["U"].any(axis=0)
        second, first = stored["U"][:, used], (np.eye(n, dtype=np.float32) + stored["V"])[used]
    r = len(first)
    pays = layer_operations(m, n) >= PAYS * (layer_operations(r, n) + layer_operations(m, r))
    return (first, second) if pays else None


def _as_weight(matrix: NDArray[np.float32], shape: Sequence[int], source: CompressedWeight) -> CompressedWeight:
    """A weight of its one main factor; in codes where the source has codes and the values are few enough."""
    quantized = all(factor.codebook is not None for factor in source.factors.values())
    values = np.unique(matrix[matrix != 0])
    factor: SparseTensor = sparsify(np.ascontiguousarray(matrix), quantized=quantized and len(values) <= 256)
    m, n = shape[0], int(np.prod(shape[1:]))
    return CompressedWeight(tuple(shape), {"V" if m <= n else "U": factor})


def _two_layers(node: NodeProto, name: str) -> list[NodeProto]:
    """The layer `node` of the weight `name` as two; the bias stays with the second."""
    first = NodeProto()
    first.CopyFrom(node)
    first.input[:] = [node.input[0], f"{name}.first"]
    first.output[:] = [f"{name}.middle"]
    attributes: dict[str, Any] = {"transB": 1} if node.op_type == "Gemm" else {}
    inputs = [f"{name}.middle", f"{name}.second", *node.input[2:]]
    return [first, helper.make_node(node.op_type, inputs, list(node.output), **attributes)]
