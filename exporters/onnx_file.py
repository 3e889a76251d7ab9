"""A compressed network as one self-contained ONNX file that decodes its own weights. Needs no torch."""

import json
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from onnx import ModelProto, ValueInfoProto, helper

from atmc_tool import __version__
from atmc_tool.compressed import FACTOR_NAMES, CompressedModel, CompressedWeight
from atmc_tool.errors import InputError
from exporters.onnx_builder import GraphBuilder, shorten_integers
from exporters.onnx_decoders import Stored, decode
from exporters.onnx_functions import DOMAIN, VERSION, with_callees
from exporters.onnx_rest import provide_rest, spare_defaults
from exporters.skeleton_reading import read_skeleton


def build_onnx(model: CompressedModel, source_digest: str, *, dense: bool = False) -> bytes:
    """A serialised ONNX model: `input`, float32 (N, C, H, W) in [0, 1] → `logits`, (N, classes).

    Weight P is the value `P`, decoded by a local function; where it is made of several factors, factor F is the value
    `P.F`, (m, n). Everything else of the state dict is a value of its own name: an initialiser, or cut from one of
    float16 that several share. What the graph does not need is left out. Equal models give equal bytes.

    source_digest: SHA-256 of the file that the model comes from, kept in the metadata
    dense:         every weight is an initialiser of its own shape, and the file has no functions

    Raises:
        InputError: the graph in `model` is damaged, or does not fit its weights.
    """
    proto = read_skeleton(model.skeleton)
    skeleton = proto.graph
    parameters = list(skeleton.input)[1:]
    graph = GraphBuilder(_names(proto, model.weights))
    for parameter in parameters:
        _check_fits(parameter, model)
    used = {info.name: model.weights[info.name] for info in parameters if info.name in model.weights}
    rest = {info.name: model.rest[info.name] for info in parameters if info.name not in used}
    if dense:
        for name in (info.name for info in parameters):
            graph.constant(used[name].dense() if name in used else rest[name], name)
    else:
        decode(graph, {name: t for key, weight in used.items() for name, t in stored_tensors(key, weight).items()})
        for name, weight in used.items():
            _provide_weight(graph, name, weight)
        provide_rest(graph, rest)
        spare_defaults(skeleton.node)
        for tensor in skeleton.initializer:
            shorten_integers(tensor)
    nodes = [*graph.nodes, *skeleton.node]
    del skeleton.input[1:], skeleton.node[:]
    skeleton.node.extend(nodes)
    skeleton.initializer.extend(graph.initializers)
    if graph.functions:
        proto.functions.extend(with_callees(graph.functions))
        proto.opset_import.append(helper.make_opsetid(DOMAIN, VERSION))
    helper.set_model_props(proto, _metadata(model.manifest, source_digest))
    content: bytes = proto.SerializeToString(deterministic=True)
    return content


def _names(proto: ModelProto, weights: Mapping[str, CompressedWeight]) -> Iterable[str]:
    """Names that values of the decoders must not have."""
    graph = proto.graph
    yield from (part.name for part in (*graph.input, *graph.initializer))
    yield from (name for node in graph.node for name in node.output)
    yield from (f"{name}.{factor}" for name in weights for factor in FACTOR_NAMES)


def _check_fits(parameter: ValueInfoProto, model: CompressedModel) -> None:
    """Raise where the model does not hold what the skeleton takes as the input `parameter`."""
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


def _kind(dtype: np.dtype[Any], shape: Iterable[int]) -> str:
    return f"{dtype} {tuple(shape)}"


def _provide_weight(graph: GraphBuilder, name: str, weight: CompressedWeight) -> None:
    """W = main + side·main + C where it is no single factor, in that order, as CompressedWeight.dense() computes it."""
    tensors = stored_tensors(name, weight)
    if not tensors:
        graph.node("ConstantOfShape", graph.constant(np.array(weight.shape, np.int64)), name=name)
    if len(tensors) <= 1:
        return
    main, u, v, c = (f"{name}.{factor}" for factor in (weight.main, "U", "V", "C"))
    total = main
    if u in tensors and v in tensors:
        total = graph.node("Add", main, graph.node("MatMul", u, v))
    if c in tensors:
        total = graph.node("Add", total, c)
    graph.node("Reshape", total, graph.constant(np.array(weight.shape, np.int64)), name=name)


def stored_tensors(name: str, weight: CompressedWeight) -> dict[str, Stored]:
    """Value name → tensor to decode: the weight itself where it is one factor, else the factors it needs."""
    kept = {factor: tensor for factor, tensor in sorted(weight.factors.items()) if tensor.kept}
    if weight.main not in kept:
        kept = {factor: tensor for factor, tensor in kept.items() if factor == "C"}
    if len(kept) == 1:
        (alone,) = kept.values()
        return {name: Stored(alone, weight.shape)}
    return {f"{name}.{factor}": Stored(tensor, tensor.shape) for factor, tensor in kept.items()}


def statements(manifest: Mapping[str, Any]) -> dict[str, str]:
    """What an exported file says of the network with this manifest, in its metadata; the same in every version."""

    def text(value: object) -> str:
        return json.dumps(value, sort_keys=True, separators=(",", ":"))

    return {
        **{f"atmc_tool.{key}": text(manifest[key]) for key in ("removed", "factored") if key in manifest},
        "atmc_tool.card": text(manifest.get("card", {})),
        "atmc_tool.metrics": text(manifest.get("metrics", {})),
        "atmc_tool.input_range": "[0, 1]",
    }


def _metadata(manifest: Mapping[str, Any], source_digest: str) -> dict[str, str]:
    """In the order in which the file has them."""
    said = statements(manifest)
    first = {key: said.pop(key) for key in ("atmc_tool.removed", "atmc_tool.factored") if key in said}
    return {**first, "atmc_tool.version": __version__, "atmc_tool.source_sha256": source_digest, **said}
