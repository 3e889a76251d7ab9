"""A dense ONNX graph made ready for a quantiser: constants in place, batch norms folded into convolutions."""

from collections import Counter
from collections.abc import Mapping

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, helper, numpy_helper

from atmc_tool.compressed import CompressedModel
from exporters.onnx_file import build_onnx

Float64 = NDArray[np.float64]


def float_graph(model: CompressedModel, source_digest: str) -> ModelProto:
    """The dense graph of `model` without the transpositions of weights, and without batch norms after convolutions.

    W' = W γ / √(σ² + ε) and b' = (b − μ) γ / √(σ² + ε) + β, computed in float64 and rounded once. W' has the name of W,
    b' that of b, or of β where the convolution had no bias; Wᵀ has the name of W with `.T`. A bias that several
    operators read is there once for each, as `b`, `b@1`, …, for its steps in int8 follow from the operator's input. The
    same model gives the same bits on every machine, but for products U V (see `CompressedWeight.dense`).

    Raises:
        InputError: as `build_onnx`.
    """
    proto = onnx.load_model_from_string(build_onnx(model, source_digest, dense=True))
    arrays = {tensor.name: numpy_helper.to_array(tensor) for tensor in proto.graph.initializer}
    nodes = _fold_norms(_fold_transposes(list(proto.graph.node), arrays), arrays)
    _own_biases(nodes, arrays)
    used = {name for node in nodes for name in node.input}
    del proto.graph.node[:], proto.graph.initializer[:]
    proto.graph.node.extend(nodes)
    proto.graph.initializer.extend(
        numpy_helper.from_array(array.copy(order="C"), name) for name, array in arrays.items() if name in used
    )
    onnx.checker.check_model(proto, full_check=True)
    return proto


def parameters(model: CompressedModel, source_digest: str) -> dict[str, NDArray[np.float32]]:
    """Name → float32 array of every weight, bias and other parameter in `float_graph`."""
    own = {*model.weights, *model.rest}
    found = {
        tensor.name: numpy_helper.to_array(tensor)
        for tensor in float_graph(model, source_digest).graph.initializer
        if tensor.name.partition("@")[0].removesuffix(".T") in own
    }
    return {name: array for name, array in found.items() if array.dtype == np.float32}


def _fold_transposes(nodes: list[NodeProto], arrays: dict[str, NDArray[np.float32]]) -> list[NodeProto]:
    """The nodes without those that transpose a constant."""
    names: dict[str, str] = {}
    kept = []
    for node in nodes:
        if node.op_type == "Transpose" and node.input[0] in arrays:
            perm = next((helper.get_attribute_value(a) for a in node.attribute if a.name == "perm"), None)
            names[node.output[0]] = f"{node.input[0]}.T"
            arrays[f"{node.input[0]}.T"] = arrays[node.input[0]].transpose(perm)
            continue
        node.input[:] = [names.get(name, name) for name in node.input]
        kept.append(node)
    return kept


def _fold_norms(nodes: list[NodeProto], arrays: dict[str, NDArray[np.float32]]) -> list[NodeProto]:
    """The nodes without batch norms that alone read a convolution whose weights nothing else reads."""
    uses = Counter(name for node in nodes for name in node.input)
    makers = {name: node for node in nodes for name in node.output}
    kept = []
    for node in nodes:
        made_by = makers.get(node.input[0]) if node.op_type == "BatchNormalization" else None
        if made_by is None or not _can_fold(made_by, node, arrays, uses):
            kept.append(node)
            continue
        _fold(made_by, node, arrays)
        made_by.output[0] = node.output[0]
    return kept


def _own_biases(nodes: list[NodeProto], arrays: dict[str, NDArray[np.float32]]) -> None:
    """Give every convolution and product a bias of its own."""
    seen: Counter[str] = Counter()
    for node in nodes:
        if node.op_type in ("Conv", "ConvTranspose", "Gemm") and len(node.input) > 2 and node.input[2] in arrays:
            name = node.input[2]
            if seen[name]:
                node.input[2] = f"{name}@{seen[name]}"
                arrays[node.input[2]] = arrays[name]
            seen[name] += 1


def _can_fold(convolution: NodeProto, norm: NodeProto, arrays: Mapping[str, object], uses: Mapping[str, int]) -> bool:
    changed = [*convolution.input[1:], norm.input[2]]
    return (
        convolution.op_type == "Conv"
        and uses[convolution.output[0]] == 1
        and all(name in arrays and uses[name] == 1 for name in changed)
        and all(name in arrays for name in norm.input[1:])
    )


def _fold(convolution: NodeProto, norm: NodeProto, arrays: dict[str, NDArray[np.float32]]) -> None:
    epsilon = next((a.f for a in norm.attribute if a.name == "epsilon"), 1e-5)
    gamma, beta, mean, variance = (arrays[name].astype(np.float64) for name in norm.input[1:])
    scale: Float64 = gamma / np.sqrt(variance + epsilon)
    weight = convolution.input[1]
    per_filter = scale.reshape(-1, *[1] * (arrays[weight].ndim - 1))
    arrays[weight] = (arrays[weight] * per_filter).astype(np.float32)
    if len(convolution.input) == 2:
        convolution.input.append(norm.input[2])
        bias = np.zeros_like(mean)
    else:
        bias = arrays[convolution.input[2]].astype(np.float64)
    arrays[convolution.input[2]] = ((bias - mean) * scale + beta).astype(np.float32)
