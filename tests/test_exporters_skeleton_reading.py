"""The graph in a compressed file is read as if it were hostile: it draws in no other file and breaks nothing later."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from onnx import AttributeProto, GraphProto, ModelProto, TensorProto, helper, numpy_helper

from atmc_tool.compressed import CompressedModel
from atmc_tool.errors import InputError
from evaluators.classifier import parse_graph
from exporters.onnx_file import build_onnx
from exporters.skeleton_reading import read_skeleton

SECRET = np.arange(2, dtype=np.int64)


def skeleton() -> ModelProto:
    graph = helper.make_graph(
        [helper.make_node("Identity", ["input"], ["logits"])],
        "g",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, ["N", 3])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["N", 3])],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)


def constant(tensor: TensorProto) -> GraphProto:
    """A graph of one node that holds the tensor as an attribute."""
    node = helper.make_node("Constant", [], ["c"], value=tensor)
    return helper.make_graph([node], "inner", [], [helper.make_tensor_value_info("c", tensor.data_type, tensor.dims)])


def choice(tensor: TensorProto) -> list[AttributeProto]:
    return [helper.make_attribute(name, constant(tensor)) for name in ("then_branch", "else_branch")]


def with_initializer(model: ModelProto, tensor: TensorProto) -> None:
    model.graph.initializer.append(tensor)


def with_attribute(model: ModelProto, tensor: TensorProto) -> None:
    model.graph.node.extend(constant(tensor).node)


def with_subgraph(model: ModelProto, tensor: TensorProto) -> None:
    model.graph.initializer.append(numpy_helper.from_array(np.array(True), "yes"))
    model.graph.node.append(helper.make_node("If", ["yes"], ["chosen"]))
    model.graph.node[-1].attribute.extend(choice(tensor))


def with_function(model: ModelProto, tensor: TensorProto) -> None:
    function = helper.make_function("own", "F", [], ["c"], constant(tensor).node, [helper.make_opsetid("", 21)])
    model.functions.append(function)
    model.opset_import.append(helper.make_opsetid("own", 1))


def with_default(model: ModelProto, tensor: TensorProto) -> None:
    """A default of a function's attribute."""
    with_function(model, numpy_helper.from_array(SECRET, "other"))
    model.functions[0].attribute_proto.append(helper.make_attribute("value", tensor))


PLACES = [with_initializer, with_attribute, with_subgraph, with_function, with_default]


@pytest.mark.parametrize("place", PLACES)
def test_a_file_to_verify_is_whole(place: Callable[[ModelProto, TensorProto], None]) -> None:
    """onnxruntime reads what `location` names, even where only the default of a function's attribute says so."""
    model = skeleton()
    tensor = TensorProto(name="zz", data_type=TensorProto.INT64, dims=[2], data_location=TensorProto.EXTERNAL)
    tensor.external_data.add(key="location", value="secret.bin")
    place(model, tensor)
    with pytest.raises(InputError, match="keeps weights in another file"):
        parse_graph(model.SerializeToString())


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("says_so", [True, False])
def test_no_tensor_is_taken_from_another_file(
    place: Callable[[ModelProto, TensorProto], None], says_so: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """onnx reads what `location` names, beside the working directory, where a value is asked for."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "secret.bin").write_bytes(SECRET.tobytes())
    whole = skeleton()
    place(whole, numpy_helper.from_array(SECRET, "zz"))
    assert read_skeleton(whole.SerializeToString()) == whole
    tensor = TensorProto(name="zz", data_type=TensorProto.INT64, dims=[2])
    if says_so:
        tensor.data_location = TensorProto.EXTERNAL
    entry = tensor.external_data.add()
    entry.key, entry.value = "location", "secret.bin"
    model = skeleton()
    place(model, tensor)
    with pytest.raises(InputError, match=r"the graph in the model keeps the tensor 'zz' in another file"):
        build_onnx(CompressedModel({}, {}, model.SerializeToString(), {}), "0" * 64)


@pytest.mark.parametrize(
    "tensor",
    [
        TensorProto(data_type=TensorProto.INT32, dims=[2], int32_data=[1, 2, 3]),
        TensorProto(data_type=TensorProto.INT64, dims=[2, 2], raw_data=bytes(24)),
        TensorProto(data_type=TensorProto.INT64, dims=[2**40]),
        TensorProto(data_type=TensorProto.INT64, dims=[-1], int64_data=[1, 2, 3]),
        TensorProto(data_type=TensorProto.FLOAT, dims=[], float_data=[1, 2]),
        TensorProto(data_type=TensorProto.STRING, dims=[3], string_data=[b"a", b"b"]),
        TensorProto(data_type=999, dims=[1], raw_data=b"1"),
        TensorProto(dims=[1], raw_data=b"1"),
    ],
)
@pytest.mark.parametrize("place", PLACES)
def test_a_tensor_has_the_elements_of_its_shape(
    place: Callable[[ModelProto, TensorProto], None], tensor: TensorProto
) -> None:
    model, named = skeleton(), TensorProto()
    named.CopyFrom(tensor)
    named.name = "zz"
    place(model, named)
    with pytest.raises(InputError, match=r"damaged: the tensor 'zz' has not the elements of its shape"):
        read_skeleton(model.SerializeToString())
