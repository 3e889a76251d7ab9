"""Vectors in half precision are stored together and come out under their names; convolutions lose only defaults."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from numpy.typing import NDArray
from onnx import helper

from exporters.onnx_builder import GraphBuilder
from exporters.onnx_rest import provide_rest, spare_defaults


def values_of(graph: GraphBuilder, names: Mapping[str, Any]) -> list[NDArray[Any]]:
    nodes = [*graph.nodes, *(helper.make_node("Identity", [name], [f"{name} out"]) for name in names)]
    outputs = [helper.make_empty_tensor_value_info(f"{name} out") for name in names]
    proto = helper.make_graph(nodes, "g", [], outputs, graph.initializers)
    model = helper.make_model(proto, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    model = onnx.shape_inference.infer_shapes(model, strict_mode=True)
    onnx.checker.check_model(model, full_check=True)
    options = ort.SessionOptions()
    options.log_severity_level = 3
    return list(ort.InferenceSession(model.SerializeToString(), options, ["CPUExecutionProvider"]).run(None, {}))


def test_every_array_comes_out_bit_for_bit() -> None:
    rng = np.random.default_rng(0)
    halves = {
        f"h{n}.{i}": rng.standard_normal(n).astype(np.float16).astype(np.float32) for n in (16, 64) for i in range(9)
    }
    others = {
        "exact": rng.standard_normal(64).astype(np.float32),
        "negative zero": np.array([-0.0, 0], np.float32),
        "count": np.array(7),
        "table": np.ones((3, 4), np.float32),
        "lone": np.ones(5, np.float32),
    }
    singles = {f"s{i}": rng.standard_normal(32).astype(np.float32) for i in range(9)}
    arrays = {**halves, **others, **singles}
    graph = GraphBuilder(arrays)
    provide_rest(graph, arrays)
    for got, array in zip(values_of(graph, arrays), arrays.values(), strict=True):
        assert (got.dtype, got.shape, got.tobytes()) == (array.dtype, array.shape, array.tobytes())
    assert [node.op_type for node in graph.nodes] == ["Cast", "Split"] * 2 + ["Split"]
    assert {tensor.name for tensor in graph.initializers} >= others.keys()


def test_they_take_half_the_bytes_and_less_framing() -> None:
    arrays = {f"layer{i}.bias": np.full(64, i, np.float32) for i in range(20)}
    graph, plain = GraphBuilder(arrays), GraphBuilder(arrays)
    provide_rest(graph, arrays)
    for name, array in arrays.items():
        plain.constant(array, name)
    assert graph.size() < 0.55 * plain.size()


def test_only_what_holds_anyway_is_left_out_of_a_convolution() -> None:
    plain = helper.make_node(
        "Conv", ["x", "w"], ["y"], kernel_shape=[3, 3], strides=[1, 1], dilations=[1, 1], pads=[0] * 4
    )
    other = helper.make_node("Conv", ["x", "w"], ["y"], strides=[2, 1], dilations=[1, 2], pads=[0, 1, 0, 1], group=2)
    pool = helper.make_node("MaxPool", ["x"], ["y"], kernel_shape=[3, 3], strides=[1, 1])
    spare_defaults([plain, other, pool])
    assert not plain.attribute
    assert {attribute.name for attribute in other.attribute} == {"strides", "dilations", "pads", "group"}
    assert {attribute.name for attribute in pool.attribute} == {"kernel_shape", "strides"}
