"""Every encoding decodes, by onnxruntime, to exactly the factor it was made from, and its size is what it should be."""

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from atmc_tool.compressed import SparseTensor
from exporters.onnx_builder import GraphBuilder, pack
from exporters.onnx_decoders import (
    BYTES_OF_ENTRY,
    DECODERS,
    LITTLE,
    TOGETHER,
    Stored,
    applies,
    choose,
    decode_entries,
    fits_memory,
)
from exporters.onnx_functions import DOMAIN, VERSION, functions, with_callees

LEVELS = (ort.GraphOptimizationLevel.ORT_DISABLE_ALL, ort.GraphOptimizationLevel.ORT_ENABLE_ALL)


def model_of(graph: GraphBuilder, *names: str) -> onnx.ModelProto:
    """A checked model whose i-th output is the i-th value; shape inference has to find every shape, as a number."""
    ends = [helper.make_node("Identity", [name], [f"output {name}"]) for name in names]
    outputs = [helper.make_empty_tensor_value_info(f"output {name}") for name in names]
    proto = helper.make_graph([*graph.nodes, *ends], "g", [], outputs, graph.initializers)
    imports = [helper.make_opsetid("", 21), helper.make_opsetid(DOMAIN, VERSION)]
    model = helper.make_model(proto, opset_imports=imports, ir_version=10, functions=with_callees(graph.functions))
    inferred = onnx.shape_inference.infer_shapes(model, strict_mode=True)
    onnx.checker.check_model(inferred, full_check=True)
    infos = [*inferred.graph.value_info, *inferred.graph.output]
    assert {name for node in inferred.graph.node for name in node.output} <= {info.name for info in infos}
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


def kinds_for(tensor: Stored) -> list[str]:
    return [kind for kind in (*DECODERS, TOGETHER) if applies(kind, tensor)]


def put(graph: GraphBuilder, kind: str, tensor: Stored, name: str) -> None:
    if kind == TOGETHER:
        decode_entries(graph, {name: tensor})
    else:
        DECODERS[kind](graph, tensor, name)


def encoded(kind: str, factor: SparseTensor) -> GraphBuilder:
    graph = GraphBuilder()
    put(graph, kind, Stored(factor, factor.shape), "W")
    return graph


def chosen(factor: SparseTensor) -> str:
    (kind,) = choose({"W": Stored(factor, factor.shape)}).values()
    return kind


def whole_size(graph: GraphBuilder) -> int:
    """Bytes of the nodes and initialisers and of the functions that they need."""
    return graph.size() + sum(function.ByteSize() for function in with_callees(graph.functions))


def assert_exact(factor: SparseTensor, shape: tuple[int, ...] | None = None) -> None:
    """All encodings in one graph, so that they also have to share constants and functions without harm."""
    graph = GraphBuilder()
    tensor = Stored(factor, shape or factor.shape)
    names = kinds_for(tensor)
    for kind in names:
        put(graph, kind, tensor, f"W{kind}")
    model = model_of(graph, *(f"W{kind}" for kind in names))
    for level in LEVELS:
        for name, got in zip(names, run(model, level), strict=True):
            assert got.shape == tensor.shape, name
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
    """The denser, the narrower the field."""
    factor = random_factor((100, 700), density, 16)
    (got,) = run(model_of(encoded("DecodeGaps", factor), "W"), LEVELS[0])
    assert got.tobytes() == factor.dense().tobytes()


@pytest.mark.parametrize(
    "shape", [(8, 4, 3, 3), (6, 12, 3, 1), (5, 16, 1, 1), (40, 36), (7, 9), (3, 2, 5), (64,), (1, 1)]
)
@pytest.mark.parametrize("n_values", [3, None])
def test_a_tensor_of_any_rank_in_its_own_shape(shape: tuple[int, ...], n_values: int | None) -> None:
    """With whole filters, kernels and rows of them empty, so that blocks have something to leave out."""
    rows, columns = shape[0], int(np.prod(shape[1:]))
    kept = np.random.default_rng(0).random((rows, columns)) < 0.4
    kept[1::2] = False
    kept[:, columns // 2 :] = False
    kept[0, 0] = True
    assert_exact(factor_of((rows, columns), np.flatnonzero(kept), n_values), shape)


@pytest.mark.parametrize("width", range(1, 9))
@pytest.mark.parametrize("n", [1, 2, 7, 8, 9, 1001])
def test_unpack_inverts_packing_at_the_stated_size(width: int, n: int) -> None:
    fields = np.random.default_rng(n).integers(0, 2**width, n)
    fields[-1] = 2**width - 1
    graph = GraphBuilder()
    packed = pack(fields, width)
    assert packed.nbytes == width * -(-n // 8)
    graph.call("Unpack", graph.constant(packed), name="fields")
    model = model_of(graph, "fields")
    for level in LEVELS:
        (got,) = run(model, level)
        assert got.dtype == np.int32
        np.testing.assert_array_equal(got[:n], fields)
        assert not got[n:].any()


def clustered(shape: tuple[int, int], block: int, used: float, density: float) -> SparseTensor:
    """A share `used` of the blocks of `block` entries has kept ones, a share `density` of theirs."""
    rng = np.random.default_rng(0)
    kept = rng.random((shape[0] * shape[1] // block, block)) < density
    kept[rng.random(len(kept)) >= used] = False
    return factor_of(shape, np.flatnonzero(kept), 16)


@pytest.mark.parametrize(
    ("factor", "smallest"),
    [
        (random_factor((64, 300), 0.05, 16), "DecodeGaps"),
        (random_factor((64, 300), 0.05, None), "DecodeGapsRaw"),
        (random_factor((64, 300), 0.4, 256), "DecodeBitmask"),
        (random_factor((64, 300), 0.5, None), "DecodeBitmaskRaw"),
        (random_factor((64, 300), 0.95, 15), "DecodeCodes"),
        (random_factor((64, 300), 1.0, 256), "DecodeCodes"),
        (random_factor((64, 300), 1.0, 4), "DecodeCodes"),
        (random_factor((64, 300), 1.0, 8), "DecodePackedCodes"),
        (random_factor((64, 300), 0.999, None), ""),
        (random_factor((512, 512), 8 / 512**2, 16), "DecodePositions"),
        (clustered((64, 576), 16, 0.1, 0.6), "DecodeBlocks"),
    ],
)
def test_the_smallest_encoding_is_taken(factor: SparseTensor, smallest: str) -> None:
    sizes = {kind: whole_size(encoded(kind, factor)) for kind in kinds_for(Stored(factor, factor.shape))}
    assert chosen(factor) == smallest
    assert sizes[smallest] == min(sizes.values())


def test_a_function_is_only_taken_where_its_own_bytes_pay() -> None:
    """Alone, each of these has another smallest encoding; together they share one function."""
    many = {f"W{i}": Stored(f, f.shape) for i, f in enumerate(random_factor((30, 40), 0.1, 16, i) for i in range(20))}
    alone = random_factor((30, 40), 0.5, 16)
    assert chosen(alone) != TOGETHER
    assert set(choose({**many, "last": Stored(alone, alone.shape)}).values()) == {TOGETHER}
    assert choose({}) == {}


@pytest.mark.parametrize("density", [0.01, 0.02, 0.05, 0.1, 0.2, 0.4])
@pytest.mark.parametrize("n_values", [2, 16, 256])
@pytest.mark.parametrize("shape", [(64, 576), (256, 1152)])
def test_a_sparse_layer_costs_less_than_its_bitmask_and_packed_codes(
    shape: tuple[int, int], n_values: int, density: float
) -> None:
    """0.2 KB for the node, without its function; from 5 % down within 25 % of the entropy, far below a bitmask."""
    factor = random_factor(shape, density, n_values)
    n_entries = shape[0] * shape[1]
    codes_and_codebook = factor.kept * factor.bits / 8 + 4 * n_values
    size = min(encoded(kind, factor).size() for kind in kinds_for(Stored(factor, factor.shape)))
    assert size <= n_entries / 8 + codes_and_codebook + 200
    if density <= 0.05:
        entropy = -n_entries * (density * np.log2(density) + (1 - density) * np.log2(1 - density)) / 8
        assert size <= 1.25 * entropy + codes_and_codebook + 200


def test_a_few_stray_entries_cost_little() -> None:
    """A global budget leaves single entries in large factors: no stream of escapes through a quarter million zeros."""
    factor = random_factor((512, 512), 8 / 512**2, 16)
    assert whole_size(encoded(chosen(factor), factor)) < 600


def test_constants_and_functions_are_shared_between_tensors() -> None:
    graph = GraphBuilder()
    factor = random_factor((30, 40), 0.1, 16)
    for name in ("a", "b"):
        DECODERS["DecodeGaps"](graph, Stored(factor, factor.shape), name)
    contents = [(t.data_type, tuple(t.dims), t.raw_data) for t in graph.initializers]
    assert len(contents) == len(set(contents)) == 4
    assert graph.functions == {"DecodeGaps"}
    assert [function.name for function in with_callees(graph.functions)] == ["Unpack", "DecodeGaps"]


def test_names_that_are_taken_are_not_used() -> None:
    graph = GraphBuilder(taken=("0", "2"))
    assert [graph.node("Relu", "x"), graph.constant(np.zeros(1)), graph.node("Relu", "x")] == ["1", "3", "4"]


def test_a_codebook_too_large_for_codes_of_every_entry() -> None:
    factor = random_factor((8, 64), 0.6, 256)
    assert not {"DecodeCodes", "DecodePackedCodes"} & set(kinds_for(Stored(factor, factor.shape)))


@pytest.mark.parametrize(("value", "stored"), [(0.5, 2), (0.1, 4), (1e6, 4), (2.0**-24, 2), (2.0**-30, 4)])
def test_a_codebook_takes_half_the_bytes_where_that_is_exact(value: float, stored: int) -> None:
    codebook = np.array([-1, value], np.float32)
    codes = np.tile(np.array([0, 1], np.uint8), 50)
    factor = SparseTensor((10, 30), np.arange(0, 300, 3), codebook[codes], codes, codebook)
    sizes = {len(tensor.raw_data) for tensor in encoded("DecodeGaps", factor).initializers if tensor.dims == [2]}
    assert sizes == {2 * stored}
    assert_exact(factor)


def test_functions_hold_standard_operators_and_each_other_only() -> None:
    for name, function in functions().items():
        assert name == function.name
        assert function.domain == DOMAIN
        outputs = [value for node in function.node for value in node.output]
        assert len({*outputs, *function.input}) == len(outputs) + len(function.input)
        assert all(value.isalpha() for value in outputs)
        for node in function.node:
            if node.domain == DOMAIN:
                assert node.op_type in functions()
            else:
                assert onnx.defs.has(node.op_type, 21, node.domain)
    assert {*DECODERS, TOGETHER} - {""} == set(functions()) - {"Unpack", "DecodeSymbols", "DecodeCodebooks"}


def test_one_node_for_each_tensor() -> None:
    factor = random_factor((16, 36), 0.2, 16)
    for kind in kinds_for(Stored(factor, (16, 4, 3, 3))):
        graph = GraphBuilder()
        put(graph, kind, Stored(factor, (16, 4, 3, 3)), "W")
        before = ["DecodeSymbols"] * (kind == TOGETHER)
        assert [(node.domain, node.op_type) for node in graph.nodes] == [(DOMAIN, k) for k in (*before, kind) if k]


@pytest.mark.parametrize(("n_values", "bits"), [(1, 1), (2, 2), (3, 2), (4, 4), (15, 4), (16, 8), (255, 8)])
def test_codes_of_every_entry_take_no_more_bits_than_they_must(n_values: int, bits: int) -> None:
    """Zero is one more value, and the width divides a byte."""
    parts = encoded("DecodeCodes", random_factor((50, 60), 0.9, n_values)).initializers
    codes = [tensor for tensor in parts if tensor.data_type == TensorProto.UINT8 and len(tensor.raw_data) > 8]
    assert [len(tensor.raw_data) for tensor in codes] == [50 * 60 * bits // 8]


def test_entries_of_many_tensors_in_one_stream() -> None:
    """Of other densities and numbers of values, a full one and one of a single entry among them."""
    factors = [random_factor((40, 90), density, n, n) for density, n in ((0.3, 16), (0.01, 4), (1, 256), (0.1, 1))]
    factors.append(factor_of((1, 5000), np.array([4999]), 1))
    graph = GraphBuilder()
    names = [f"W{i}" for i in range(len(factors))]
    decode_entries(graph, {name: Stored(f, f.shape) for name, f in zip(names, factors, strict=True)})
    assert [node.op_type for node in graph.nodes] == ["DecodeSymbols", *[TOGETHER] * len(factors)]
    for level in LEVELS:
        for got, factor in zip(run(model_of(graph, *names), level), factors, strict=True):
            assert got.tobytes() == factor.dense().tobytes()


@pytest.mark.parametrize(("density", "kind"), [(0.005, TOGETHER), (0.1, "DecodeGaps")])
def test_a_stream_is_only_for_what_little_memory_decodes(density: float, kind: str) -> None:
    """Of 4 million weights: 20,972 entries take 5 MB, 419,430 take 105."""
    factor = random_factor((2048, 2048), density, 16)
    assert chosen(factor) == kind
    assert fits_memory([Stored(factor, factor.shape)]) == (kind == TOGETHER)
    assert BYTES_OF_ENTRY * factor.kept < LITTLE or kind != TOGETHER


def test_the_stream_is_near_the_entropy_of_mask_and_codes() -> None:
    """Within 5 % for entries at random places; the codebook and the node beside."""
    factor = random_factor((256, 576), 0.05, 16)
    n, k = 256 * 576, factor.kept
    mask = -k * np.log2(k / n) - (n - k) * np.log2(1 - k / n)
    assert encoded(TOGETHER, factor).size() <= 1.05 * (mask + 4 * k) / 8 + 64 + 300


@pytest.mark.parametrize("dtype", [np.int32, np.int64])
@pytest.mark.parametrize(
    ("numbers", "shorter"),
    [([3, 3, 16, 16], True), ([[1], [2**20]], True), ([2**31 - 1], False), ([-1], False), ([-1, *range(99)], True)],
)
def test_integers_take_as_many_bytes_as_they_need(
    dtype: type[np.signedinteger], numbers: list[int], shorter: bool
) -> None:
    """Five bytes for the largest of 32 bits, ten for a negative number; the same numbers in every case."""
    array = np.array(numbers, dtype)
    graph = GraphBuilder()
    name = graph.constant(array)
    assert graph.constant(array.copy()) == name
    (tensor,) = graph.initializers
    plain = numpy_helper.from_array(array, name)
    assert tensor.ByteSize() <= plain.ByteSize()
    assert (tensor.ByteSize() < plain.ByteSize()) == (shorter or (dtype == np.int64 and numbers[0] > 0))
    got = numpy_helper.to_array(tensor)
    assert (got.dtype, got.shape, got.tobytes()) == (array.dtype, array.shape, array.tobytes())
    graph.node("Identity", name, name="W")
    assert run(model_of(graph, "W"), LEVELS[0])[0].tobytes() == array.tobytes()
