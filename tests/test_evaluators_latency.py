"""The measurement of speed: its statistics by closed forms, and real files whose order is known."""

from itertools import pairwise
from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binom

from atmc_tool.errors import InputError
from evaluators.latency import STARTS, Timing, measure, median_interval, speed

ROUNDS = 4


def timing(medians: list[float]) -> Timing:
    return Timing(1, tuple((0.9 * each, each, 2 * each) for each in medians))


@given(st.lists(st.floats(0.1, 10), min_size=1, max_size=60))
def test_the_interval_holds_the_median_with_95_percent(values: list[float]) -> None:
    low, high = median_interval(values)
    assert low <= np.median(values) <= high
    n, below = len(values), sorted(values).index(low)
    inside = 1 - 2 * binom.cdf(below, n, 0.5) if n >= 6 else 1.0
    assert inside >= 0.95 or n < 6
    if n >= 6 and len(set(values)) == n:  # and no narrower interval does
        assert 1 - 2 * binom.cdf(below + 1, n, 0.5) < 0.95


@pytest.mark.parametrize(
    ("ratios", "verdict"),
    [
        ([1.5, 1.52, 1.48, 1.5] * 3, "faster"),
        ([0.5, 0.52, 0.48, 0.5] * 3, "slower"),
        ([1.0, 1.02, 0.98, 1.0] * 3, "no speed-up"),
        ([1.03, 1.031, 1.029, 1.03] * 3, "no speed-up"),  # equal files come as far apart
        ([1.5, 0.7, 1.6, 0.8] * 3, "no speed-up"),  # faster and slower by turns
        ([1.5] * 4 + [1.5] * 4 + [1.0] * 4, "no speed-up"),  # one process was not faster
    ],
)
def test_the_verdict_follows_the_spread(ratios: list[float], verdict: str) -> None:
    base = np.random.default_rng(0).uniform(0.5, 2, STARTS * ROUNDS)  # the machine's own speed changes
    found = speed(timing([r * b for r, b in zip(ratios, base, strict=True)]), timing(list(base)))
    assert found.verdict == verdict
    assert found.low <= found.ratio <= found.high
    assert found.ratio == pytest.approx(np.median(ratios))


def test_percentiles_and_throughput_of_calls() -> None:
    facts = Timing(4, ((0.1, 0.2), (0.3,), (0.4,))).to_json()
    assert facts["p50"] == pytest.approx(0.25)
    assert facts["p95"] == pytest.approx(0.385)
    assert facts["images_per_second"] == pytest.approx(16.0)
    assert facts["round_medians"] == pytest.approx([0.15, 0.3, 0.4])


def write(path: Path, products: int, size: int = 256) -> Path:
    """A file that multiplies an image by a matrix `products` times."""
    text = f'<ir_version: 10, opset_import: ["": 21]> g (float[N,1,8,{size}] input) => (float[N,1,8,{size}] logits) {{'
    names = ["input", *(f"x{i}" for i in range(products - 1)), "logits"]
    body = "".join(f"{b} = MatMul({a}, w)\n" for a, b in pairwise(names))
    model = onnx.parser.parse_model(f"{text}{body}}}")
    matrix = np.random.default_rng(0).normal(0, size**-0.5, (size, size)).astype(np.float32)
    model.graph.initializer.append(onnx.numpy_helper.from_array(matrix, "w"))
    onnx.save_model(model, path)
    return path


def test_files_are_measured_side_by_side(tmp_path: Path) -> None:
    paths = [write(tmp_path / "slow.onnx", 20), write(tmp_path / "fast.onnx", 1)]
    seen: list[tuple[int, int]] = []
    found = measure(paths, [1, 2], threads=1, rounds=2, progress=lambda done, total: seen.append((done, total)))
    assert seen[-1] == (2 * 2 * STARTS, 2 * 2 * STARTS)
    assert [each.bytes for each in found] == [path.stat().st_size for path in paths]
    for each in found:
        assert len(each.loads) == STARTS
        assert all(seconds > 0 for seconds in each.loads)
        assert all(
            peak is None or 0 <= before <= peak for before, peak in zip(each.load_peaks, each.peaks, strict=True)
        )
        assert all(len(timed.rounds) == 2 * STARTS for timed in each.timings.values())
    result = speed(found[0].timings[2], found[1].timings[2])
    assert result.verdict == "faster"
    assert result.ratio > 3


def test_memory_counts_what_loading_takes(tmp_path: Path) -> None:
    """A matrix of 16 MiB: at least that, and not the libraries that were there before."""
    (found,) = measure([write(tmp_path / "large.onnx", 1, 2048)], [1], threads=1, rounds=1)
    peak = found.to_json()["load_peak_bytes"]
    assert peak is None or 2**24 <= peak < 2**27


def test_files_that_can_not_be_measured(tmp_path: Path) -> None:
    (tmp_path / "damaged.onnx").write_bytes(b"\x08")
    with pytest.raises(InputError, match=r"damaged.onnx can't be measured"):
        measure([tmp_path / "damaged.onnx"], [1], threads=1, rounds=1)
    path = write(tmp_path / "fixed.onnx", 1)
    model = onnx.load_model(path)
    for info in (*model.graph.input, *model.graph.output):
        info.type.tensor_type.shape.dim[0].dim_value = 3
    onnx.save_model(model, path)
    with pytest.raises(InputError, match="batches of 3 alone"):
        measure([path], [1], threads=1, rounds=1)
