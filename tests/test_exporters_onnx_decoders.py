"""Every encoding decodes, by onnxruntime, to exactly the factor it was made from, and its size is what it should be."""

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from onnx import TensorProto, helper

from atmc_tool.compressed import SparseTensor
from exporters.onnx_builder import GraphBuilder
from exporters.onnx_decoders import (
    decode,
    decode_bitmask,
    decode_codes,
    decode_gaps,
    decode_values,
    dense_codes_fit,
    unpack,
)

LEVELS = (ort.GraphOptimizationLevel.ORT_DISABLE_ALL, ort.GraphOptimizationLevel.ORT_ENABLE_ALL)
DECODERS = (decode, decode_values, decode_codes, decode_bitmask, decode_gaps)


def model_of(graph: GraphBuilder, *names: str) -> onnx.ModelProto:
    """A checked model whose i-th output is the i-th value; shape inference has to find every shape, as a number."""
    ends = [helper.make_node("Identity", [name], [f"output {name}"]) for name in names]
    outputs = [helper.make_empty_tensor_value_info(f"output {name}") for name in names]
    proto = helper.make_graph([*graph.nodes, *ends], "g", [], outputs, graph.initializers)
    model = helper.make_model(proto, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    inferred = onnx.shape_inference.infer_shapes(model, strict_mode=True)
    onnx.checker.check_model(inferred, full_check=True)
    infos = [*inferred.graph.value_info, *inferred.graph.output]
    assert {name for node in inferred.graph.node for name in node.output} == {info.name for info in infos}
    assert all(d.HasField("dim_value") for info in infos for d in info.type.tensor_type.shape.dim)
    return inferred


def run(model: onnx.ModelProto, level: ort.GraphOptimizationLevel) -> list[NDArray[np.generic]]:
    options = ort.SessionOptions()
    options.graph_optimization_level = level
    options.intra_op_num_threads = 1
    return ort.InferenceSession(model.SerializeToString(), options, ["CPUExecutionProvider"]).run(None, {})


def factor_of(
    shape: tuple[int, int], positions: NDArray[np.int64], n_values: int | None, seed: int = 0
) -> SparseTensor:
    """A factor with entries at `positions`: codes into `n_values` random values, or values of their own where None."""
    rng = np.random.default_rng(seed)
    if n_values is None:
        return SparseTensor(shape, positions, rng.standard_normal(len(positions)).astype(np.float32))
    codebook = np.unique(rng.standard_normal(n_values).astype(np.float32))
    assert len(codebook) == n_values
    codes = rng.integers(0, n_values, len(positions)).astype(np.uint8)
    return SparseTensor(shape, positions, codebook[codes], codes, codebook)


def random_factor(shape: tuple[int, int], density: float, n_values: int | None, seed: int = 0) -> SparseTensor:
    n_entries = shape[0] * shape[1]
    kept = max(1, round(density * n_entries))
    positions = np.sort(np.random.default_rng(seed).choice(n_entries, kept, replace=False)).astype(np.int64)
    return factor_of(shape, positions, n_values, seed)


def encoded(decoder: object, factor: SparseTensor) -> GraphBuilder:
    graph = GraphBuilder()
    assert decoder(graph, factor, "W.V") == "W.V"  # type: ignore[operator]
    return graph


def assert_exact(factor: SparseTensor) -> None:
    """All encodings in one graph, so that they also have to share constants without harm."""
    graph = GraphBuilder()
    names = [
        decoder(graph, factor, decoder.__name__)
        for decoder in DECODERS
        if decoder is not decode_codes or dense_codes_fit(factor)
    ]
    model = model_of(graph, *names)
    for level in LEVELS:
        for name, got in zip(names, run(model, level), strict=True):
            assert got.shape == factor.shape, name
            assert got.tobytes() == factor.dense().tobytes(), name


@st.composite
def factors(draw: st.DrawFn) -> SparseTensor:
    shape = draw(st.tuples(st.integers(1, 12), st.integers(1, 40)))
    kept = draw(st.lists(st.booleans(), min_size=shape[0] * shape[1], max_size=shape[0] * shape[1]))
    positions = np.flatnonzero(kept)
    if not len(positions):
        positions = np.array([draw(st.integers(0, len(kept) - 1))])
    n_values = draw(st.none() | st.integers(1, 256))
    return factor_of(shape, positions, n_values, draw(st.integers(0, 9)))


@settings(max_examples=80)
@given(factors())
def test_every_encoding_is_exact(factor: SparseTensor) -> None:
    assert_exact(factor)


@pytest.mark.parametrize("n_values", [1, 2, 3, 16, 17, 255, 256, None])
@pytest.mark.parametrize(
    ("shape", "positions"),
    [
        ((1, 1), [0]),
        ((3, 1), [2]),
        ((1, 9), [0]),
        ((7, 5), [34]),
        ((2, 3), range(6)),
        ((40, 20), range(0, 800, 3)),
        ((100, 7), range(1, 700)),
    ],
)
def test_exact_at_the_edges(shape: tuple[int, int], positions: list[int], n_values: int | None) -> None:
    assert_exact(factor_of(shape, np.array(positions, np.int64), n_values))


@pytest.mark.parametrize(
    "positions", [[70_000], [0, 255, 511], [0, 256, 69_999], [1, 65_536], [255, 256, 65_793, 200_000]]
)
def test_gaps_beyond_a_byte_and_beyond_two(positions: list[int]) -> None:
    assert_exact(factor_of((500, 401), np.array(positions, np.int64), None))


@pytest.mark.parametrize("density", [0.5, 0.2, 0.1, 0.05, 0.02, 0.01, 0.003])
def test_gaps_of_every_width_with_escapes(density: float) -> None:
    """Long enough that packing pays; the denser, the narrower the field."""
    factor = random_factor((100, 700), density, 16)
    operators = {node.op_type for node in encoded(decode_gaps, factor).nodes}
    assert ("Where" in operators) == (density >= 0.01)
    (got,) = run(model_of(encoded(decode_gaps, factor), "W.V"), LEVELS[0])
    assert got.tobytes() == factor.dense().tobytes()


@pytest.mark.parametrize("width", [1, 2, 3, 4, 5, 6, 7, 8, 16])
@pytest.mark.parametrize("n", [1, 2, 7, 8, 9, 1001])
def test_unpack_inverts_packing_at_the_stated_size(width: int, n: int) -> None:
    fields = np.random.default_rng(n).integers(0, 2**width, n)
    fields[-1] = 2**width - 1
    graph = GraphBuilder()
    model = model_of(graph_with(graph, unpack(graph, fields, width)), "fields")
    for level in LEVELS:
        (got,) = run(model, level)
        assert got.dtype == np.int32
        np.testing.assert_array_equal(got, fields)
    packed = [t for t in graph.initializers if n > 100 and len(t.raw_data) > 100]
    n_parts = 1 if width == 16 else width.bit_count()
    assert sum(len(tensor.raw_data) for tensor in packed) <= n * width / 8 + n_parts


def graph_with(graph: GraphBuilder, value: str) -> GraphBuilder:
    graph.node("Identity", value, name="fields")
    return graph


@pytest.mark.parametrize(
    ("density", "n_values", "smallest"),
    [
        (0.05, 16, decode_gaps),
        (0.05, None, decode_gaps),
        (0.4, 256, decode_bitmask),
        (0.5, None, decode_bitmask),
        (0.95, 15, decode_codes),
        (1.0, 256, decode_codes),
        (0.999, None, decode_values),
    ],
)
def test_the_smallest_encoding_is_taken(density: float, n_values: int | None, smallest: object) -> None:
    factor = random_factor((64, 300), density, n_values)
    sizes = {
        decoder: encoded(decoder, factor).size()
        for decoder in DECODERS
        if decoder is not decode_codes or dense_codes_fit(factor)
    }
    assert sizes[decode] == min(sizes.values()) == sizes[smallest]


@pytest.mark.parametrize("density", [0.01, 0.02, 0.05, 0.1, 0.2, 0.4])
@pytest.mark.parametrize("n_values", [2, 16, 256])
@pytest.mark.parametrize("shape", [(64, 576), (256, 1152)])
def test_a_sparse_layer_costs_less_than_its_bitmask_and_packed_codes(
    shape: tuple[int, int], n_values: int, density: float
) -> None:
    """0.8 KB of nodes at most; and from 5 % down the gaps stay within 25 % of their entropy, far below a bitmask."""
    factor = random_factor(shape, density, n_values)
    n_entries = shape[0] * shape[1]
    codes_and_codebook = factor.kept * factor.bits / 8 + 4 * n_values
    size = encoded(decode, factor).size()
    assert size <= n_entries / 8 + codes_and_codebook + 800
    if density <= 0.05:
        entropy = -n_entries * (density * np.log2(density) + (1 - density) * np.log2(1 - density)) / 8
        assert size <= 1.25 * entropy + codes_and_codebook + 800


def test_a_few_stray_entries_cost_little() -> None:
    """A global budget leaves single entries in large factors: no stream of escapes through a quarter million zeros."""
    assert encoded(decode, random_factor((512, 512), 8 / 512**2, 16)).size() < 300


def test_constants_and_zeros_are_shared_between_factors() -> None:
    graph = GraphBuilder()
    sizes = []
    for i in range(3):
        decode_gaps(graph, random_factor((30, 40), 0.1, 16, seed=i), f"W{i}.V")
        sizes.append(graph.size())
    assert sizes[2] - sizes[1] < sizes[0] - 50
    assert sum(node.op_type == "ConstantOfShape" for node in graph.nodes) == 1
    contents = [(t.data_type, tuple(t.dims), t.raw_data) for t in graph.initializers]
    assert len(contents) == len(set(contents))


def test_names_that_are_taken_are_not_used() -> None:
    graph = GraphBuilder(taken=("0", "2"))
    assert [graph.node("Relu", "x"), graph.constant(np.zeros(1)), graph.node("Relu", "x")] == ["1", "3", "4"]


def test_a_codebook_too_large_for_codes_of_every_entry_is_refused() -> None:
    factor = random_factor((8, 64), 0.6, 256)
    assert not dense_codes_fit(factor)
    with pytest.raises(ValueError, match="at most 256"):
        encoded(decode_codes, factor)


def test_all_decoder_operators_are_standard() -> None:
    kinds = {
        (node.domain, node.op_type)
        for density in (0.02, 0.3, 0.9)
        for decoder in DECODERS
        for node in encoded(decoder, random_factor((50, 60), density, 15)).nodes
    }
    assert {domain for domain, _ in kinds} == {""}
    assert all(onnx.defs.has(kind, 21, "") for _, kind in kinds)
    assert TensorProto.UINT4 in {t.data_type for t in encoded(decode, random_factor((50, 60), 0.1, 16)).initializers}
