"""Networks with emptied filters and channels compute the same without them; what can't go stays."""

import functools
import json
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import user_networks
from channel_networks import NETWORKS, RandomNetwork, weight
from conftest import Cli
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from onnx import TensorProto, helper
from onnx_networks import OFF, randomized, run
from torch import nn

from atmc_tool.cli.origin import find_origin
from atmc_tool.compressed import CompressedModel, CompressedWeight, sparsify
from atmc_tool.errors import InputError
from atmc_tool.models import resolve_architecture
from evaluators.classifier import OrtClassifier, decoded_weights, read_onnx
from evaluators.parity import parity, same_logits
from exporters.atmc_file import encode_model
from exporters.channel_graph import ChannelGraph
from exporters.channel_removal import remove_channels
from exporters.onnx_file import build_onnx
from exporters.onnx_skeleton import trace_skeleton

pytestmark = pytest.mark.xdist_group("channels")  # so that each network is traced once

DIGEST = "0" * 64
SLOW = ("plain", "dense", "grouped", "resnet20", "resnet18-8", "resnet50-4", "vgg16-8", "mobilenet-v2")
TAKES: Mapping[str, Callable[[np.random.Generator, tuple[int, ...]], NDArray[np.bool_]]] = {
    "filters": lambda rng, shape: rng.random((shape[0], *[1] * (len(shape) - 1))) < 0.5,
    "channels": lambda rng, shape: rng.random((1, shape[1], *[1] * (len(shape) - 2))) < 0.5,
    "both": lambda rng, shape: TAKES["filters"](rng, shape) & TAKES["channels"](rng, shape),
    "none": lambda _, shape: np.ones(shape, np.bool_),
}


@functools.cache
def traced(name: str) -> tuple[nn.Module, bytes]:
    build = NETWORKS.get(name) or getattr(user_networks, name, None) or resolve_architecture(name).build
    network, shape = build(), (1, 8, 8) if hasattr(user_networks, name) else (3, 32, 32)
    return network, trace_skeleton(network, shape, 10, (0.4,) * shape[0], (0.25,) * shape[0])


def structured(name: str, take: str, quantized: bool = True) -> CompressedModel:
    """The network with random weights, of at most 15 values each, of which `take` leaves some units."""
    network, skeleton = traced(name)
    randomized(network)
    rng = np.random.default_rng(0)
    weights = {}
    for key, parameter in network.named_parameters():
        if parameter.ndim == 1 or key == "scale":
            continue
        w = parameter.detach().numpy() * 1.7
        largest = np.abs(w).max()
        w = np.round(w / largest * 7) / 7 * largest * TAKES[take](rng, w.shape)
        weights[key] = weight(w.astype(np.float32), quantized)
    rest = {key: tensor.numpy() for key, tensor in network.state_dict().items() if key not in weights}
    return CompressedModel(weights, rest, skeleton, {})


def images(model: CompressedModel) -> NDArray[np.float32]:
    info = onnx.load_from_string(model.skeleton).graph.input[0]
    shape = [d.dim_value for d in info.type.tensor_type.shape.dim][1:]
    return np.random.default_rng(7).random((3, *shape), dtype=np.float32)


def assert_same(model: CompressedModel, small: CompressedModel) -> None:
    fed = {"input": images(model)}
    expected, got = (run(build_onnx(m, DIGEST), fed, ["logits"], OFF)[0] for m in (model, small))
    np.testing.assert_allclose(got, expected, rtol=0, atol=1e-5 * max(1, np.abs(expected).max()))


@pytest.mark.parametrize("take", ["filters", "channels", "both"])
@pytest.mark.parametrize("name", ["residual", "inverted", *(pytest.param(n, marks=pytest.mark.slow) for n in SLOW)])
def test_logits_are_the_same_with_fewer_filters_and_multiplications(name: str, take: str) -> None:
    model = structured(name, take)
    small, removal = remove_channels(model)
    assert removal is not None
    assert 0 < removal.removed < removal.filters
    assert removal.times > 1
    assert_same(model, small)
    elements = [sum(array.size for array in m.state().values()) for m in (model, small)]
    assert elements[1] < elements[0]


@settings(max_examples=60)
@given(seed=st.integers(0, 2**32 - 1))
def test_any_graph_computes_the_same(seed: int) -> None:
    model = RandomNetwork(seed).model()
    small, removal = remove_channels(model)
    if removal is None:
        assert small is model
    else:
        assert_same(model, small)


def test_most_random_graphs_lose_something() -> None:
    assert sum(remove_channels(RandomNetwork(seed).model())[1] is not None for seed in range(30)) > 20


def test_where_nothing_can_go_the_model_is_left_as_it_is() -> None:
    model = structured("residual", "none")
    assert remove_channels(model) == (model, None)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "take"), [("ViT", "both"), ("Mixer", "both"), ("Encoder", "both")])
def test_where_no_rule_leads_on_the_model_is_left_as_it_is(name: str, take: str) -> None:
    model = structured(name, take)
    small, removal = remove_channels(model)
    assert small is model
    assert removal is None


@pytest.mark.slow
@pytest.mark.parametrize("name", ["Functional", "Separable", "Rows", "Tied"])
def test_users_networks_compute_the_same(name: str) -> None:
    """A convolution used twice, group norm, splits, one dimension, a weight that is also read transposed."""
    model = structured(name, "both")
    assert_same(model, remove_channels(model)[0])


@pytest.mark.parametrize("quantized", [True, False])
def test_weights_keep_their_codes_and_equal_models_give_equal_results(quantized: bool) -> None:
    model = structured("residual", "both", quantized)
    small, _ = remove_channels(model)
    again, _ = remove_channels(structured("residual", "both", quantized))
    assert build_onnx(small, DIGEST) == build_onnx(again, DIGEST)
    quantized_before = sum(f.codes is not None for w in model.weights.values() for f in w.factors.values())
    kept = 0
    for name, cut in small.weights.items():
        for factor, tensor in cut.factors.items():
            assert tensor.shape == cut.factor_shape(factor)
            assert np.all(np.diff(tensor.positions) > 0)
            if tensor.codes is not None and tensor.codebook is not None:
                (whole,) = model.weights[name].factors.values()
                assert whole.codebook is not None
                np.testing.assert_array_equal(tensor.codebook, whole.codebook)
                np.testing.assert_array_equal(tensor.codebook[tensor.codes], tensor.values)
                kept += 1
    assert kept == quantized_before
    assert (kept > 4) == quantized


def two_layers(pad: int, bias: bool) -> CompressedModel:
    """conv → relu → conv → mean; filters 1 to 3 of five are empty, with biases 0.5, −1 and 0.25."""
    rng = np.random.default_rng(3)
    state = {
        "a.weight": rng.standard_normal((5, 2, 3, 3)).astype(np.float32),
        "a.bias": np.float32([0.1, 0.5, -1, 0.25, 0.2]),
        "b.weight": rng.standard_normal((4, 5, 3, 3)).astype(np.float32),
        **({"b.bias": rng.standard_normal(4).astype(np.float32)} if bias else {}),
    }
    state["a.weight"][1:4] = 0
    nodes = [
        helper.make_node("Conv", ["input", "a.weight", "a.bias"], ["x"], pads=[1] * 4),
        helper.make_node("Relu", ["x"], ["y"]),
        helper.make_node("Conv", ["y", "b.weight", *(["b.bias"] if bias else [])], ["z"], pads=[pad] * 4),
        helper.make_node("GlobalAveragePool", ["z"], ["w"]),
        helper.make_node("Flatten", ["w"], ["logits"]),
    ]
    inputs = [helper.make_tensor_value_info("input", TensorProto.FLOAT, ["N", 2, 6, 6])]
    inputs += [helper.make_tensor_value_info(name, TensorProto.FLOAT, array.shape) for name, array in state.items()]
    graph = helper.make_graph(
        nodes, "g", inputs, [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["N", 4])]
    )
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    weights = {name: weight(state.pop(name), quantized=True) for name in ("a.weight", "b.weight")}
    return CompressedModel(weights, state, proto.SerializeToString(), {})


@pytest.mark.parametrize(("pad", "bias", "left"), [(0, True, 2), (1, True, 3), (0, False, 3), (1, False, 3)])
def test_constants_go_into_the_bias_or_into_one_channel_that_stays(pad: int, bias: bool, left: int) -> None:
    model = two_layers(pad, bias)
    small, removal = remove_channels(model)
    assert removal is not None
    assert (removal.filters, removal.removed) == (9, 5 - left)
    assert small.weights["b.weight"].shape == (4, left, 3, 3)
    if left == 3:  # the largest constant stands for the other, by the quotient of the two
        w, cut = model.weights["b.weight"].dense(), small.weights["b.weight"].dense()
        np.testing.assert_array_equal(small.rest["a.bias"], np.float32([0.1, 0.5, 0.2]))
        np.testing.assert_allclose(cut[:, 1], w[:, 1] + 0.5 * w[:, 3], rtol=1e-6)
    assert_same(model, small)


def test_a_layer_keeps_one_filter() -> None:
    model = structured("inverted", "none")
    empty = {key: weight(np.zeros(w.shape, np.float32), True) for key, w in model.weights.items() if "expand" in key}
    model = replace(model, weights={**model.weights, **empty})
    small, _ = remove_channels(model)
    assert small.weights["expand.0.weight"].shape[0] >= 1
    assert_same(model, small)


def test_depthwise_convolutions_keep_a_multiple_of_four() -> None:
    """onnxruntime computes 21 channels more slowly than 24."""
    model = structured("inverted", "none")
    weights = dict(model.weights)
    for key, filters in (("expand.0.weight", 3), ("expand.1.weight", 9)):
        dense = weights[key].dense()
        dense[:filters] = 0
        weights[key] = weight(dense, True)
    norms = {key: -np.abs(array) if key.endswith("bias") else array for key, array in model.rest.items()}
    norms |= {key: np.abs(array) for key, array in model.rest.items() if key.endswith("mean")}
    model = replace(model, weights=weights, rest=norms)  # empty filters give 0 after the activation
    small, _ = remove_channels(model)
    assert [small.weights[f"depth.{i}.weight"].shape[0] for i in range(2)] == [24, 16]
    assert_same(model, small)


def test_added_values_lose_only_what_none_of_them_needs() -> None:
    model = structured("residual", "none")
    weights = dict(model.weights)
    for key in ("stem.weight", "convs.1.weight"):  # their sum is the first block's result
        dense = weights[key].dense()
        dense[:3] = 0
        weights[key] = weight(dense, True)
        small, _ = remove_channels(replace(model, weights=weights))
        left = {"stem.weight": 8, "convs.1.weight": 5 + 2}[key]  # a constant channel stays for each padded convolution
        assert small.weights["stem.weight"].shape[0] <= left
        assert small.weights["stem.weight"].shape[0] == small.weights["convs.1.weight"].shape[0]


@pytest.mark.parametrize("mixing", [False, True])
def test_products_of_factors_and_weights_with_a_c(mixing: bool) -> None:
    """A side factor that has entries where its main factor has, or everywhere; every third weight has a C as well."""
    model = structured("residual", "both" if mixing else "filters")
    rng = np.random.default_rng(1)
    weights: dict[str, CompressedWeight] = {}
    for index, (key, whole) in enumerate(model.weights.items()):
        dense = whole.dense().reshape(whole.matrix_shape)
        factors = dict(whole.factors)
        if index % 2 == 0:
            name, used = ("U", dense.any(1)) if whole.main == "V" else ("V", dense.any(0))
            entries = rng.random((len(used), len(used))) < 0.2
            side = np.where(entries & (mixing | np.outer(used, used)), np.float32(0.25), 0)
            factors[name] = sparsify(side.astype(np.float32), quantized=True)
        if index % 3 == 0:
            factors["C"] = sparsify(np.where(dense > 0.2, np.float32(0.25), 0), quantized=True)
        weights[key] = CompressedWeight(whole.shape, {name: factors[name] for name in sorted(factors)})
    model = replace(model, weights=weights)
    small, removal = remove_channels(model)
    assert removal is not None
    assert_same(model, small)
    products = [key for key, w in small.weights.items() if {"U", "V"} <= w.factors.keys()]
    assert len(products) >= (1 if mixing else 3)
    for key, w in small.weights.items():
        for name, factor in w.factors.items():
            assert factor.shape == w.factor_shape(name), key


def test_a_damaged_graph_is_bad_input() -> None:
    model = two_layers(0, True)
    with pytest.raises(InputError, match="damaged"):
        remove_channels(replace(model, skeleton=model.skeleton[:-3]))


def test_a_model_that_does_not_fit_its_graph_is_left_to_the_exporter() -> None:
    model = replace(two_layers(0, True), rest={})
    assert remove_channels(model) == (model, None)


def test_the_exported_file_is_compared_with_the_same_removal(cli: Cli, tmp_path: Path) -> None:
    run_folder = tmp_path / "atmc-run"
    run_folder.mkdir()
    (run_folder / "model.atmc").write_bytes(encode_model(structured("residual", "both")))
    done = cli("export --onnx --json", tmp_path)
    assert done.code == 0, done.err
    (file,) = json.loads(done.out)["files"]
    assert 0 < file["removed"]["removed"] < file["removed"]["filters"]
    path = run_folder / "model.onnx"
    model = read_onnx(path)
    origin = find_origin(path, model, run_folder)
    assert origin.expected is not None
    assert parity(origin.expected, decoded_weights(model, origin.expected.names)).passed
    assert "filters, " in cli("export --onnx --overwrite", tmp_path).out
    metadata = {entry.key: entry.value for entry in model.metadata_props}
    assert json.loads(metadata["atmc_tool.removed"]) == file["removed"]
    artefact, x = OrtClassifier(model, "cpu"), images(structured("residual", "both"))
    assert same_logits(artefact, OrtClassifier(origin.whole, "cpu"), x).passed
    head = next(tensor for tensor in model.graph.initializer if tensor.name == "head.bias")
    head.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(head) + 1, "head.bias"))
    assert not parity(origin.expected, decoded_weights(model, origin.expected.names)).passed
    check = same_logits(OrtClassifier(model, "cpu"), OrtClassifier(origin.whole, "cpu"), x)
    assert not check.passed
    assert check.evidence["difference"] == pytest.approx(1, abs=1e-4)


def test_needs_no_torch() -> None:
    code = "import sys; sys.modules['torch'] = sys.modules['onnxscript'] = None; import exporters.channel_removal"
    subprocess.run([sys.executable, "-W", "error", "-c", code], check=True, cwd=Path(__file__).parent.parent)


def test_a_graph_of_endless_channels_is_refused() -> None:
    """As a pad of channels can ask for in a few bytes."""
    network = nn.Sequential(nn.Flatten(), nn.Linear(4, 3))
    graph = ChannelGraph(onnx.load_model_from_string(trace_skeleton(network, (1, 2, 2), 3, [0.0], [1.0])), {})
    assert len(graph.new(5)) == 5
    with pytest.raises(InputError, match="too many channels"):
        graph.new(2**40)
