"""Runs of symbols come out of onnxruntime as they went in, in about the bits of the best classes."""

from collections.abc import Iterator
from itertools import pairwise

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from onnx import helper

from exporters.onnx_builder import GraphBuilder
from exporters.onnx_functions import DOMAIN, VERSION, with_callees
from exporters.onnx_symbols import LARGEST, Symbols, best_row

OPTIONS = ort.SessionOptions()
OPTIONS.intra_op_num_threads = 1


def decoded(symbols: Symbols) -> NDArray[np.int32]:
    """By onnxruntime; the session's folding leaves no operator."""
    graph = GraphBuilder()
    graph.call("DecodeSymbols", *map(graph.constant, symbols.parts()), name="symbols", number=[symbols.number])
    output = helper.make_tensor_value_info("symbols", onnx.TensorProto.INT32, None)
    proto = helper.make_graph(graph.nodes, "g", [], [output], graph.initializers)
    imports = [helper.make_opsetid("", 21), helper.make_opsetid(DOMAIN, VERSION)]
    model = helper.make_model(proto, opset_imports=imports, ir_version=10, functions=with_callees(graph.functions))
    (got,) = ort.InferenceSession(model.SerializeToString(), OPTIONS, ["CPUExecutionProvider"]).run(None, {})
    return np.asarray(got)


def assert_exact(runs: list[NDArray[np.int64]]) -> Symbols:
    symbols = Symbols.of(runs)
    got = decoded(symbols)
    assert got.dtype == np.int32
    assert got.shape == (symbols.number,)
    for start, run in zip(symbols.starts(), runs, strict=True):
        np.testing.assert_array_equal(got[start : start + len(run)], run)
    return symbols


@settings(max_examples=60)
@given(
    st.lists(
        st.tuples(st.integers(1, 200), st.sampled_from([1, 2, 3, 16, 256, 900, LARGEST]), st.integers(0, 99)),
        min_size=1,
        max_size=6,
    )
)
def test_runs_of_any_lengths_and_ranges(kinds: list[tuple[int, int, int]]) -> None:
    assert_exact([(limit * np.random.default_rng(s).random(n) ** 3).astype(np.int64) for n, limit, s in kinds])


@pytest.mark.parametrize("n", [1, 2, 7, 8, 9, 63, 64, 65])
def test_a_run_that_ends_anywhere_in_a_byte(n: int) -> None:
    assert_exact([np.random.default_rng(n).geometric(0.3, n) - 1])
    assert_exact([np.full(n, LARGEST - 1), np.zeros(n, np.int64), np.arange(n)])


def test_runs_alike_share_a_row_and_others_do_not() -> None:
    rng = np.random.default_rng(0)
    runs = [rng.geometric(p, 3000) - 1 for p in (0.3, 0.01, 0.3)]
    groups = {members for members, _ in assert_exact(runs).groups}
    assert groups == {(0, 2), (1,)} or groups == {(2, 0), (1,)}


def test_runs_of_two_kinds_share_no_row_and_have_only_fillers_between_those_of_the_second() -> None:
    rng = np.random.default_rng(0)
    runs = [rng.geometric(0.3, 300) - 1, rng.integers(0, 4, 301), rng.geometric(0.1, 77) - 1]
    others = [rng.geometric(0.3, 300) - 1, rng.integers(0, 4, 99), rng.geometric(0.3, 10) - 1]
    symbols = Symbols.of(runs, others)
    assert {row.coded for _, row in symbols.groups} == {True, False}
    assert all({i >= 3 for i in members} in ({True}, {False}) for members, _ in symbols.groups)
    got, starts = decoded(symbols), symbols.starts()
    for start, run in zip(starts, [*runs, *others], strict=True):
        np.testing.assert_array_equal(got[start : start + len(run)], run)
    spans = sorted(zip(starts, [*runs, *others], range(6), strict=True), key=lambda span: span[0])
    assert [i >= 3 for *_, i in spans] == [False, False, True, True, True, False]
    between = {n for (a, run, i), (b, _, j) in pairwise(spans) if i >= 3 and j >= 3 for n in got[a + len(run) : b]}
    assert between == {0}


def test_equal_frequencies_take_no_ones_and_zeros() -> None:
    row = best_row(np.full(16, 1000))
    assert (row.widths, row.bits, row.coded) == ((4,), 64_000, False)


def cost(counts: NDArray[np.int64], widths: tuple[int, ...]) -> int:
    """Bits of the symbols, and 4 for each class."""
    symbols = np.arange(len(counts))
    of = np.searchsorted(np.cumsum(1 << np.array(widths)), symbols, "right")
    bits = np.array(widths)[of] + (of + 1 if len(widths) > 1 else 0)
    return int((counts * bits).sum()) + 4 * len(widths)


@pytest.mark.parametrize("seed", range(12))
def test_no_other_row_is_cheaper(seed: int) -> None:
    """Against every row for up to 12 symbols."""
    rng = np.random.default_rng(seed)
    counts = np.sort(rng.integers(0, 10 ** rng.integers(1, 4), rng.integers(1, 13)))[::-1].astype(np.int64)
    counts[-1] += 1
    row = best_row(counts)
    assert row.bits + 4 * len(row.widths) == cost(counts, row.widths)
    assert cost(counts, row.widths) <= min(cost(counts, widths) for widths in rows_for(len(counts)))


def rows_for(n: int) -> Iterator[tuple[int, ...]]:
    """Every row that holds n symbols and no class beyond them."""
    for width in range(5):
        if 1 << width >= n:
            yield (width,)
        else:
            yield from ((width, *rest) for rest in rows_for(n - (1 << width)))


@pytest.mark.parametrize("mean", [2, 10, 50, 300])
def test_within_three_percent_of_the_entropy_of_geometric_gaps(mean: int) -> None:
    p = 1 / mean
    run = np.random.default_rng(0).geometric(p, 20_000) - 1
    entropy = (-p * np.log2(p) - (1 - p) * np.log2(1 - p)) / p * len(run)
    symbols = Symbols.of([run])
    graph = GraphBuilder()
    for part in symbols.parts():
        graph.constant(part)
    stored = 8 * (graph.size() - 10 * len(graph.initializers))  # a constant's name, type and shape take about 10
    assert stored <= 1.03 * entropy + 300
    assert abs(stored - sum(symbols.bits())) <= 300
