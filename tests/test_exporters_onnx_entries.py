"""Entries in one stream come back exactly, with codebooks as they are or as differences, whichever is smaller."""

from collections.abc import Sequence

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from numpy.typing import NDArray
from onnx import helper

from atmc_tool.compressed import SparseTensor
from evaluators.classifier import optimized_operators
from exporters.onnx_builder import GraphBuilder
from exporters.onnx_decoders import TOGETHER, Stored, choose, decode, decode_entries
from exporters.onnx_entries import Entries, keys
from exporters.onnx_functions import DOMAIN, VERSION, with_callees

EVERY_HALF = np.arange(2**16, dtype=np.uint16).view(np.float16)
FINITE = EVERY_HALF[np.isfinite(EVERY_HALF)].astype(np.float32)
LEVELS = (ort.GraphOptimizationLevel.ORT_DISABLE_ALL, ort.GraphOptimizationLevel.ORT_ENABLE_ALL)


def decoded(graph: GraphBuilder, names: Sequence[str]) -> list[NDArray[np.float32]]:
    """By onnxruntime; all shapes are known beforehand, and the session's folding leaves no operator."""
    ends = [helper.make_node("Identity", [name], [f"output {name}"]) for name in names]
    outputs = [helper.make_empty_tensor_value_info(f"output {name}") for name in names]
    proto = helper.make_graph([*graph.nodes, *ends], "g", [], outputs, graph.initializers)
    imports = [helper.make_opsetid("", 21), helper.make_opsetid(DOMAIN, VERSION)]
    model = helper.make_model(proto, opset_imports=imports, ir_version=10, functions=with_callees(graph.functions))
    model = onnx.shape_inference.infer_shapes(model, strict_mode=True)
    infos = [*model.graph.value_info, *model.graph.output]
    assert {name for node in model.graph.node for name in node.output} <= {info.name for info in infos}
    assert all(d.HasField("dim_value") for info in infos for d in info.type.tensor_type.shape.dim)
    assert set(optimized_operators(model)) <= {"Identity"}
    runs = []
    for level in LEVELS:
        options = ort.SessionOptions()
        options.graph_optimization_level = level
        options.intra_op_num_threads = 1
        session = ort.InferenceSession(model.SerializeToString(), options, ["CPUExecutionProvider"])
        runs.append(session.run(None, {}))
    for first, second in zip(*runs, strict=True):
        assert first.tobytes() == second.tobytes()
    return runs[0]


def factor_of(codebook: NDArray[np.float32], kept: int, seed: int) -> SparseTensor:
    """`kept` entries at random places of 40 × 100, values near the middle of the codebook more often."""
    rng = np.random.default_rng(seed)
    positions = np.sort(rng.choice(4000, kept, replace=False)).astype(np.int64)
    codes = rng.binomial(len(codebook) - 1, 0.5, kept).astype(np.uint8)
    return SparseTensor((40, 100), positions, codebook[codes], codes, codebook)


def halves(n: int, seed: int) -> NDArray[np.float32]:
    """A codebook of n values of float16, as those of weights: of both signs, none near zero."""
    rng = np.random.default_rng(seed)
    some = np.unique((rng.choice([-1, 1], 3 * n) * (0.05 + rng.exponential(0.1, 3 * n))).astype(np.float16))
    return np.sort(rng.choice(some, n, replace=False)).astype(np.float32)


def assert_exact(factors: Sequence[SparseTensor]) -> None:
    graph = GraphBuilder()
    names = [f"W{i}" for i in range(len(factors))]
    decode_entries(graph, {name: Stored(f, f.shape) for name, f in zip(names, factors, strict=True)})
    assert ("DecodeCodebooks" in graph.functions) == (Entries.of(factors).jumps is not None)
    for got, factor in zip(decoded(graph, names), factors, strict=True):
        assert got.tobytes() == factor.dense().tobytes()


def test_every_finite_value_of_float16_bit_by_bit() -> None:
    """In the order of the keys, both zeros and all subnormal numbers among them."""
    values = FINITE[np.argsort(keys(FINITE))]
    assert len(values) == 2 * 0x7C00
    assert np.array_equal(keys(values), np.arange(len(values)))
    graph = GraphBuilder()
    parts = (np.zeros(len(values) + 9, np.int32), np.array([0], np.int32), np.array([-1], np.int32))
    graph.call("DecodeCodebooks", *map(graph.constant, parts), name="values", start=[0], stop=[len(values)])
    (got,) = decoded(graph, ["values"])
    assert got.tobytes() == values.tobytes()


@pytest.mark.parametrize("sizes", [(256,) * 6, (256, 1, 200, 2, 256, 256, 100), (256, 255, 254, 253)])
def test_large_codebooks_are_differences_and_exact(sizes: tuple[int, ...]) -> None:
    factors = [factor_of(halves(n, i), 300 + 50 * i, i) for i, n in enumerate(sizes)]
    assert Entries.of(factors).jumps is not None
    assert_exact(factors)


def test_codebooks_of_any_numbers() -> None:
    """Of one sign, with values that no entry has, subnormal, the largest; with steps that are no symbols inside."""
    dense = np.unique(np.abs(halves(200, 0)))
    edges = np.array([-65504, -(2.0**-24), 2.0**-24, 2.0**-14, 1, 65504], np.float32)
    small = (np.arange(1, 257) * 2.0**-24).astype(np.float32)
    codebooks = [dense, -dense[::-1], edges, small, np.unique(np.concatenate([edges, halves(240, 1)])), halves(256, 2)]
    factors = [factor_of(codebook, 400, i) for i, codebook in enumerate(codebooks)]
    found = Entries.of(factors).jumps
    assert found is not None
    assert found.shape[1] > len(factors)
    assert_exact(factors)


@pytest.mark.parametrize("values", ["few", "float32"])
def test_other_codebooks_stay_as_they_are(values: str) -> None:
    size = 16 if values == "few" else 256
    factors = [factor_of(halves(size, i) * (1 if values == "few" else np.float32(1.01)), 300, i) for i in range(6)]
    entries = Entries.of(factors)
    assert entries.jumps is None
    assert entries.functions == {"DecodeSymbols"}
    assert_exact(factors)


def test_shares_add_up_to_the_stream() -> None:
    """But for whole bytes and framing, so that the choice of decoders weighs what the file has."""
    for n in (4, 16, 256):
        factors = [factor_of(halves(n, i), 2000, i) for i in range(6)]
        entries = Entries.of(factors)
        assert (entries.pairs is not None, entries.jumps is not None) == (n == 4, n == 256)
        graph = GraphBuilder()
        entries.provide(graph)
        stored = sum(tensor.ByteSize() for tensor in graph.initializers) - 10 * len(graph.initializers)
        assert abs(stored - sum(entries.shares())) < 80


@pytest.mark.parametrize("sizes", [(4,) * 6, (4, 3, 4, 1, 2, 4, 4, 4)])
@pytest.mark.parametrize("last", [1, 2])
def test_codes_in_pairs_are_exact(sizes: tuple[int, ...], last: int) -> None:
    """Of odd and even numbers, and of other numbers of values; one value takes no ones and zeros in the stream."""
    factors = [factor_of(halves(n, i), 3000 + i, i) for i, n in enumerate(sizes)]
    factors.append(factor_of(halves(1, 9), last, 9))
    assert Entries.of(factors).pairs is not None
    assert_exact(factors)


def test_pairs_spare_what_codes_of_few_values_lose() -> None:
    """Magnitudes of .8 and .2 of either sign: 1.72 bits of entropy, two bits as symbols, in pairs within 3 %."""
    rng = np.random.default_rng(0)
    codebook = np.array([-0.5, -0.25, 0.25, 0.5], np.float32)
    codes = rng.choice(4, 12_000, p=[0.1, 0.4, 0.4, 0.1]).astype(np.uint8)
    positions = np.sort(rng.choice(60_000, len(codes), replace=False)).astype(np.int64)
    factor = SparseTensor((300, 200), positions, codebook[codes], codes, codebook)
    entries = Entries.of([factor])
    assert entries.pairs is not None
    entropy = -2 * (0.4 * np.log2(0.4) + 0.1 * np.log2(0.1))
    assert entries.stream.bits()[1] <= 1.03 * entropy * len(codes)
    few = SparseTensor((300, 200), positions[:50], codebook[codes[:50]], codes[:50], codebook)
    assert Entries.of([few]).pairs is None


def test_differences_halve_what_codebooks_take() -> None:
    """Six codebooks of 256 values, 3,072 bytes in float16; the function and its node beside them."""
    factors = [factor_of(halves(256, i), 600, i) for i in range(6)]
    entries = Entries.of(factors)
    assert entries.jumps is not None
    codebooks = entries.stream.bits()[-1] / 8 + entries.jumps.nbytes
    assert codebooks <= 0.5 * 2 * 6 * 256


def test_the_choice_of_decoders_counts_the_function_of_codebooks() -> None:
    factors = [factor_of(halves(256, i), 600, i) for i in range(12)]
    tensors = {f"W{i}": Stored(f, f.shape) for i, f in enumerate(factors)}
    assert set(choose(tensors).values()) == {TOGETHER}
    graph = GraphBuilder()
    decode(graph, tensors)
    assert graph.functions == {"DecodeSymbols", "DecodeCodebooks", TOGETHER}
