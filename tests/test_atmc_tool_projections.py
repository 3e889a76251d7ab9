import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from atmc_tool.projections import cubic_budget, straight_through_mask, top_k_masks

few_values = st.lists(st.sampled_from([-2.0, -1.0, -0.5, 0.0, 0.5, 1.0, 2.0]), min_size=1, max_size=8)


@given(few_values, few_values, st.integers(0, 17))
def test_keeps_exactly_k_largest_over_all_tensors(a: list[float], b: list[float], k: int) -> None:
    tensors = [torch.tensor(a), torch.tensor(b)[None]]
    masks = top_k_masks(tensors, k)
    assert [mask.shape for mask in masks] == [t.shape for t in tensors]
    flat = torch.cat([t.flatten() for t in tensors]).abs()
    kept = torch.cat([mask.flatten() for mask in masks])
    assert kept.sum() == min(k, len(flat))
    if 0 < kept.sum() < len(flat):
        assert flat[kept].min() >= flat[~kept].max()


@given(few_values, st.integers(0, 8))
def test_nearest_among_all_supports(values: list[float], k: int) -> None:
    tensor = torch.tensor(values)
    projected = tensor * top_k_masks([tensor], k)[0]
    distance = (projected - tensor).square().sum()
    for support in itertools.combinations(range(len(values)), min(k, len(values))):
        candidate = torch.zeros_like(tensor)
        candidate[list(support)] = tensor[list(support)]
        assert distance <= (candidate - tensor).square().sum()


@given(few_values, st.integers(0, 8))
def test_idempotent(values: list[float], k: int) -> None:
    tensor = torch.tensor(values)
    once = tensor * top_k_masks([tensor], k)[0]
    assert torch.equal(once * top_k_masks([once], k)[0], once)


def test_ties_go_to_the_first_entries() -> None:
    masks = top_k_masks([torch.ones(3), torch.ones(2, 2)], 4)
    assert masks[0].tolist() == [True, True, True]
    assert masks[1].flatten().tolist() == [True, False, False, False]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("levels", [0, 3, 100])
@pytest.mark.parametrize("k", [1, 700, 3000, 4999])
def test_equals_a_stable_sort(dtype: torch.dtype, levels: int, k: int) -> None:
    """`levels`: so many distinct magnitudes, hence many ties; 0: none."""
    tensor = torch.randn(5000, generator=torch.Generator().manual_seed(k), dtype=dtype)
    if levels:
        tensor = (tensor * levels / 4).round()
    expected = torch.zeros(5000, dtype=torch.bool)
    expected[tensor.abs().sort(descending=True, stable=True).indices[:k]] = True
    assert torch.equal(torch.cat(top_k_masks([tensor[:1000], tensor[1000:]], k)), expected)


@pytest.mark.parametrize("k", [1, 50, 3000, 60_000, 199_999])
@pytest.mark.parametrize("kind", ["normal", "mostly zero", "few levels", "falling", "periodic"])
def test_large_tensors_equal_a_stable_sort(kind: str, k: int) -> None:
    """Also where a sample of every so many entries says nothing about the others."""
    tensor = torch.randn(200_000, generator=torch.Generator().manual_seed(k))
    if kind == "mostly zero":
        tensor[tensor.abs() < 2.5] = 0
    elif kind == "few levels":
        tensor = tensor.round()
    elif kind == "falling":
        tensor = tensor.sort(descending=True).values
    elif kind == "periodic":
        tensor[::24] *= 100  # the stride of the sample
    expected = torch.zeros(200_000, dtype=torch.bool)
    expected[tensor.abs().sort(descending=True, stable=True).indices[:k]] = True
    assert torch.equal(top_k_masks([tensor], k)[0], expected)


def test_input_is_left_alone() -> None:
    tensor = torch.tensor([-3.0, 1.0, -2.0])
    top_k_masks([tensor], 1)
    assert tensor.tolist() == [-3.0, 1.0, -2.0]


def test_straight_through_gradient_reaches_pruned_entries() -> None:
    tensor = torch.tensor([1.0, -2.0, 3.0], requires_grad=True)
    mask = torch.tensor([True, False, True])
    result = straight_through_mask(tensor, mask)
    assert result.tolist() == [1.0, 0.0, 3.0]
    torch.autograd.backward((result * torch.tensor([5.0, 7.0, 9.0])).sum())
    assert tensor.grad is not None
    assert tensor.grad.tolist() == [5.0, 7.0, 9.0]


@pytest.mark.parametrize(("progress", "expected"), [(-1, 100), (0, 100), (0.5, 21), (1, 10), (2, 10)])
def test_cubic_budget(progress: float, expected: int) -> None:
    assert cubic_budget(10, 100, progress) == expected


@given(st.floats(0, 1), st.floats(0, 1))
def test_budget_never_rises(a: float, b: float) -> None:
    assert cubic_budget(7, 1000, max(a, b)) <= cubic_budget(7, 1000, min(a, b))
