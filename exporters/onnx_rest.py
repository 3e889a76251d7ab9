"""What the exported file holds beside the compressed weights: biases, normalisations, and attributes of its nodes."""

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import NodeProto, TensorProto

from exporters.codebook_fields import fits_half
from exporters.onnx_builder import GraphBuilder


def provide_rest(graph: GraphBuilder, arrays: Mapping[str, NDArray[Any]]) -> None:
    """Provide arrays as values of their names.

    Vectors of one length are parts of one array where that is smaller, of float16 where that is exact.
    """
    kinds: dict[tuple[int, bool], list[str]] = {}
    for name, array in arrays.items():
        if array.dtype == np.float32 and array.ndim == 1 and array.size:
            kinds.setdefault((array.size, fits_half(array)), []).append(name)
    for (_, half), names in kinds.items():
        joined, apart = GraphBuilder(arrays), GraphBuilder(arrays)
        _provide_joined(joined, arrays, names, half)
        _provide_apart(apart, arrays, names)
        if joined.size() < apart.size():
            _provide_joined(graph, arrays, names, half)
        else:
            _provide_apart(graph, arrays, names)
    _provide_apart(graph, arrays, arrays.keys() - {name for names in kinds.values() for name in names})


def _provide_joined(graph: GraphBuilder, arrays: Mapping[str, NDArray[Any]], names: list[str], half: bool) -> None:
    values = np.concatenate([arrays[name] for name in names])
    stored = graph.constant(values.astype(np.float16) if half else values)
    graph.split(graph.node("Cast", stored, to=TensorProto.FLOAT) if half else stored, names)


def _provide_apart(graph: GraphBuilder, arrays: Mapping[str, NDArray[Any]], names: Iterable[str]) -> None:
    for name in sorted(names):
        graph.constant(arrays[name], name)


def spare_defaults(nodes: Iterable[NodeProto]) -> None:
    """Leave out what a convolution does without the attribute, and the shape of a kernel, which its weights have."""
    for node in nodes:
        if node.op_type == "Conv" and not node.domain:
            kept = [attribute for attribute in node.attribute if not _is_default(attribute.name, attribute.ints)]
            del node.attribute[:]
            node.attribute.extend(kept)


def _is_default(name: str, numbers: Iterable[int]) -> bool:
    default = {"strides": {1}, "dilations": {1}, "pads": {0}}.get(name)
    return name == "kernel_shape" or (default is not None and set(numbers) <= default)
