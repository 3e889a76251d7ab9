import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.cluster import KMeans

from atmc_tool.codebooks import lloyd, partition, positions, quantiles, quantize

values_strategy = st.lists(st.floats(-10, 10, width=32), min_size=1, max_size=60)


def error(values: torch.Tensor, centres: torch.Tensor) -> float:
    return float((values.double()[:, None] - centres[None]).square().min(1).values.sum())


def best_error(values: np.ndarray, size: int) -> float:
    """The least error of any partition of the sorted values into at most `size` intervals, by trying all of them."""
    ordered = np.sort(values.astype(np.float64))
    cost = {
        (i, j): float(((ordered[i:j] - ordered[i:j].mean()) ** 2).sum())
        for i, j in itertools.combinations(range(len(ordered) + 1), 2)
    }
    best = [0.0] + [cost[0, j] for j in range(1, len(ordered) + 1)]
    for _ in range(size - 1):
        best = [0.0] + [
            min([best[j], *(best[i] + cost[i, j] for i in range(1, j))]) for j in range(1, len(ordered) + 1)
        ]
    return best[-1]


@given(values_strategy, st.integers(1, 8))
def test_never_worse_than_quantiles_nor_than_lloyd_from_them(values: list[float], size: int) -> None:
    tensor = torch.tensor(values)
    start = quantiles(tensor, size)
    for other in (start, lloyd(tensor, size, start)):
        assert error(tensor, lloyd(tensor, size)) <= error(tensor, other) * (1 + 1e-9) + 1e-9


def test_large_samples_are_no_worse_either() -> None:
    """Beyond the values that `partition` is exact for: normal, uniform and long-tailed ones, by up to 256 values."""
    generator = torch.Generator().manual_seed(0)
    normal = torch.randn(20_000, generator=generator)
    for values in (normal, torch.rand(20_000, generator=generator), normal**3):
        for size in (2, 4, 16, 256):
            start = quantiles(values, size)
            assert error(values, lloyd(values, size)) <= error(values, lloyd(values, size, start)) * 1.001


@given(values_strategy, st.integers(1, 8))
def test_every_centre_is_the_mean_of_its_cell(values: list[float], size: int) -> None:
    tensor = torch.tensor(values).double()
    centres = lloyd(tensor, size)
    nearest = (tensor[:, None] - centres[None]).abs().argmin(1)
    converged = lloyd(tensor, size, centres, iterations=1)
    for j in range(size):
        cell = tensor[nearest == j]
        if len(cell) and (centres == centres[j]).sum() == 1:
            assert float(cell.mean()) == pytest.approx(float(centres[j]), abs=1e-9)
    torch.testing.assert_close(converged, centres)


@settings(max_examples=30)
@given(st.integers(0, 10_000), st.integers(2, 9))
def test_the_optimum_of_small_samples(seed: int, size: int) -> None:
    values = np.random.default_rng(seed).standard_normal(40).astype(np.float32)
    ours, best = error(torch.tensor(values), lloyd(torch.tensor(values), size)), best_error(values, size)
    assert best * (1 - 1e-6) <= ours <= best * (1 + 1e-6)
    assert error(torch.tensor(values), partition(torch.tensor(values), size)) == pytest.approx(best, rel=1e-6)


def test_agrees_with_scikit_learn_from_the_same_start() -> None:
    values = np.random.default_rng(0).standard_normal(5000).astype(np.float32)
    start = lloyd(torch.tensor(values), 16, iterations=0)
    reference = KMeans(16, init=start.numpy()[:, None], n_init=1, tol=0, max_iter=MAX, algorithm="lloyd")
    reference.fit(values[:, None].astype(np.float64))
    ours = lloyd(torch.tensor(values), 16, iterations=MAX)
    np.testing.assert_allclose(ours.numpy(), np.sort(reference.cluster_centers_[:, 0]), atol=1e-6)


MAX = 1000


def test_warm_start_goes_on() -> None:
    values = torch.randn(2000, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(
        lloyd(values, 8, lloyd(values, 8, iterations=3), iterations=4), lloyd(values, 8, iterations=7)
    )


@given(values_strategy, st.integers(1, 4), st.integers(0, 1000))
def test_quantize_gives_the_nearest_of_few_values_and_keeps_zeros(values: list[float], bits: int, seed: int) -> None:
    tensor = torch.tensor(values)
    mask = torch.rand(len(values), generator=torch.Generator().manual_seed(seed)) < 0.6
    result, centres = quantize(tensor, positions(mask), bits)
    assert torch.equal(result[~mask], torch.zeros(int((~mask).sum())))
    assert len(result[mask].unique()) <= 2**bits
    if centres is None:
        assert torch.equal(result[mask], tensor[mask])
    else:
        kept = tensor[mask].double()
        nearest = (kept[:, None] - centres[None]).abs().min(1).values
        torch.testing.assert_close((result[mask].double() - kept).abs(), nearest, atol=1e-5, rtol=0)


@given(st.integers(0, 10_000), st.booleans())
def test_quantize_is_lloyd_and_a_search_for_each_entry(seed: int, on_a_grid: bool) -> None:
    """To the bit, midpoints between two centres and layouts that are not contiguous included."""
    generator = torch.Generator().manual_seed(seed)
    tensor = torch.randn(30, 40, generator=generator).T
    if on_a_grid:
        tensor = (tensor * 4).round() / 4
    mask = torch.rand(tensor.shape, generator=generator) < 0.5
    start = lloyd(torch.randn(500, generator=generator), 8)
    result, centres = quantize(tensor, positions(mask), 3, start, iterations=4)
    expected = lloyd(tensor[mask], 8, start, iterations=4)
    assert centres is not None
    assert torch.equal(centres, expected)
    cell = torch.bucketize(tensor[mask].double(), (expected[1:] + expected[:-1]) / 2)
    assert torch.equal(result[mask], expected.float()[cell])
    assert not result[~mask].any()


def test_quantize_with_no_entry() -> None:
    result, centres = quantize(torch.ones(3), torch.zeros(0, dtype=torch.long), 4)
    assert centres is None
    assert not result.any()
