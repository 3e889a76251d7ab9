"""A compressed network as one self-contained ONNX file that decodes its own weights. Needs no torch."""

import json
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import onnx
from google.protobuf.message import DecodeError
from onnx import ModelProto, ValueInfoProto, helper

from atmc_tool import __version__
from atmc_tool.compressed import FACTOR_NAMES, CompressedModel, CompressedWeight
from atmc_tool.errors import InputError
from exporters.onnx_builder import GraphBuilder
from exporters.onnx_decoders import decode


def build_onnx(model: CompressedModel, source_digest: str) -> bytes:
    """A serialised ONNX model: `input`, float32 (N, C, H, W) in [0, 1] → `logits`, (N, classes).

    Weight P is the value `P`, its decoded factor F the value `P.F`, (m, n); everything else of the state dict is an
    initialiser of its own name. What the graph does not need is left out. Equal models give equal bytes.

    source_digest: SHA-256 of the file that the model comes from, kept in the metadata

    Raises:
        InputError: the graph in `model` is damaged, or does not fit its weights.
    """
    proto = _skeleton(model.skeleton)
    skeleton = proto.graph
    parameters = list(skeleton.input)[1:]
    graph = GraphBuilder(_names(proto, model.weights))
    for parameter in parameters:
        _provide(graph, parameter, model)
    nodes = [*graph.nodes, *skeleton.node]
    del skeleton.input[1:], skeleton.node[:]
    skeleton.node.extend(nodes)
    skeleton.initializer.extend(graph.initializers)
    helper.set_model_props(proto, _metadata(model.manifest, source_digest))
    content: bytes = proto.SerializeToString(deterministic=True)
    return content


def _skeleton(content: bytes) -> ModelProto:
    try:
        proto = onnx.load_model_from_string(content)
        onnx.checker.check_model(proto, full_check=True)
    except (DecodeError, ValueError, onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise InputError(f"the graph in the model is damaged: {reason}") from error
    if not proto.graph.input or len(proto.graph.output) != 1:
        raise InputError("the graph in the model is damaged", expected="an image and one output")
    return proto


def _names(proto: ModelProto, weights: Mapping[str, CompressedWeight]) -> Iterable[str]:
    """Names that values of the decoders must not have."""
    graph = proto.graph
    yield from (part.name for part in (*graph.input, *graph.initializer))
    yield from (name for node in graph.node for name in node.output)
    yield from (f"{name}.{factor}" for name in weights for factor in FACTOR_NAMES)


def _provide(graph: GraphBuilder, parameter: ValueInfoProto, model: CompressedModel) -> None:
    """Add the value that the skeleton takes as the input `parameter`."""
    name = parameter.name
    kind = parameter.type.tensor_type
    expected = _kind(helper.tensor_dtype_to_np_dtype(kind.elem_type), (d.dim_value for d in kind.shape.dim))
    if name in model.weights:
        got = _kind(np.dtype(np.float32), model.weights[name].shape)
    elif name in model.rest:
        got = _kind(model.rest[name].dtype, model.rest[name].shape)
    else:
        raise InputError(f"the graph in the model needs the parameter {name!r}, which the model does not hold")
    if got != expected:
        raise InputError(f"the graph in the model does not fit {name!r}", expected=expected, got=got)
    if name in model.weights:
        _provide_weight(graph, name, model.weights[name])
    else:
        graph.constant(model.rest[name], name)


def _kind(dtype: np.dtype[Any], shape: Iterable[int]) -> str:
    return f"{dtype} {tuple(shape)}"


def _provide_weight(graph: GraphBuilder, name: str, weight: CompressedWeight) -> None:
    """W = main + side·main + C, in that order, as CompressedWeight.dense() computes it."""
    side = "U" if weight.main == "V" else "V"
    stored = {factor for factor, tensor in weight.factors.items() if tensor.kept}
    if weight.main not in stored:
        stored.discard(side)
    values = {factor: decode(graph, weight.factors[factor], f"{name}.{factor}") for factor in sorted(stored)}
    if not values:
        graph.node("ConstantOfShape", graph.constant(np.array(weight.shape, np.int64)), name=name)
        return
    terms = [values[weight.main]] if weight.main in values else []
    if side in values:
        terms.append(graph.node("MatMul", values["U"], values["V"]))
    if "C" in values:
        terms.append(values["C"])
    total = terms[0]
    for term in terms[1:]:
        total = graph.node("Add", total, term)
    graph.node("Reshape", total, graph.constant(np.array(weight.shape, np.int64)), name=name)


def _metadata(manifest: Mapping[str, Any], source_digest: str) -> dict[str, str]:
    def text(value: object) -> str:
        return json.dumps(value, sort_keys=True, separators=(",", ":"))

    removed = {"atmc_tool.removed": text(manifest["removed"])} if "removed" in manifest else {}
    return {
        **removed,
        "atmc_tool.version": __version__,
        "atmc_tool.source_sha256": source_digest,
        "atmc_tool.card": text(manifest.get("card", {})),
        "atmc_tool.metrics": text(manifest.get("metrics", {})),
        "atmc_tool.input_range": "[0, 1]",
    }
