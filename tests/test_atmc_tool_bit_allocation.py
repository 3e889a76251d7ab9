"""Bits per factor under one budget, beside trying everything."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from atmc_tool.bit_allocation import CELLS, multiple_choice_knapsack, nominal_bits, size_projections
from atmc_tool.codebooks import positions, quantize

tables = st.integers(1, 4).flatmap(
    lambda rows: st.tuples(
        st.lists(st.lists(st.integers(0, 20), min_size=3, max_size=3), min_size=rows, max_size=rows),
        st.lists(st.lists(st.integers(0, 12), min_size=3, max_size=3), min_size=rows, max_size=rows),
    )
)


@given(tables, st.integers(0, 40))
def test_knapsack_is_the_best_of_all_choices(table: tuple[list[list[int]], list[list[int]]], budget: int) -> None:
    errors, costs = np.array(table[0], float), np.array(table[1])
    rows = range(len(errors))
    fitting = [
        sum(errors[row, choice] for row, choice in zip(rows, choices, strict=True))
        for choices in itertools.product(range(3), repeat=len(errors))
        if sum(costs[row, choice] for row, choice in zip(rows, choices, strict=True)) <= budget
    ]
    found = multiple_choice_knapsack(errors, costs, budget)
    if not fitting:
        assert found is None
        return
    assert found is not None
    assert sum(costs[row, choice] for row, choice in zip(rows, found, strict=True)) <= budget
    assert sum(errors[row, choice] for row, choice in zip(rows, found, strict=True)) == min(fitting)


def test_a_large_budget_is_not_exceeded() -> None:
    generator = np.random.default_rng(0)
    errors, costs = generator.random((6, 8)), generator.integers(1, 40 * CELLS, (6, 8))
    for budget in (30 * CELLS + 17, 100 * CELLS + 1):
        found = multiple_choice_knapsack(errors, costs, budget)
        assert found is not None
        assert sum(costs[row, choice] for row, choice in enumerate(found)) <= budget


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 1000), st.integers(150, 2500))
def test_the_budget_is_used_to_within_one_weight(seed: int, budget: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    tensors = [torch.randn(rows, 20, generator=generator) * scale for rows, scale in ((5, 1.0), (20, 0.3), (2, 3.0))]
    found = size_projections(tensors)(budget)
    assert found is not None
    masks, bits = found
    counts = [int(mask.sum()) for mask in masks]
    used = nominal_bits(counts, bits)
    assert used <= budget
    more = [
        nominal_bits([n + 1], [b]) - nominal_bits([n], [b])
        for n, b, tensor, mask in zip(counts, bits, tensors, masks, strict=True)
        if not mask.all()
        and tensor[~mask].abs().max() > 0.7 * quantize(tensor, positions(mask), b)[0][mask].abs().min()
    ]  # of tensors with an entry left that is nearer to a value of the codebook than to zero
    assert not more or used + max(more) > budget
    for tensor, mask in zip(tensors, masks, strict=True):
        assert not mask.any() or mask.all() or tensor[mask].abs().min() >= tensor[~mask].abs().max()


def distance(tensors: list[torch.Tensor], masks: list[torch.Tensor], bits: list[int]) -> float:
    return sum(
        float((tensor - quantize(tensor, positions(mask), b)[0]).square().sum())
        for tensor, mask, b in zip(tensors, masks, bits, strict=True)
    )


@pytest.mark.parametrize("seed", range(2))
def test_near_the_best_of_all_bits_and_supports(seed: int) -> None:
    """Two small tensors: every pair of bits with every pair of counts that fits."""
    generator = torch.Generator().manual_seed(seed)
    tensors = [torch.randn(4, 6, generator=generator), 3 * torch.randn(3, 6, generator=generator)]
    budget = 260
    found = size_projections(tensors)(budget)
    assert found is not None
    best = np.inf
    tops = [tensor.abs().flatten().sort(descending=True).values for tensor in tensors]
    for bits in itertools.product(range(1, 9), repeat=2):
        for counts in itertools.product(range(1, 25), range(1, 19)):
            if nominal_bits(counts, bits) <= budget:
                masks = [t.abs() >= top[n - 1] for t, top, n in zip(tensors, tops, counts, strict=True)]
                best = min(best, distance(tensors, masks, list(bits)))
    assert distance(tensors, *found) <= 1.02 * best


def test_no_worse_than_equal_bits() -> None:
    generator = torch.Generator().manual_seed(1)
    tensors = [torch.randn(40, 30, generator=generator), 0.1 * torch.randn(60, 50, generator=generator)]
    found = size_projections(tensors)(4000)
    assert found is not None
    flat = torch.cat([t.flatten().abs() for t in tensors]).sort(descending=True).values
    for bits in range(1, 9):
        kept = (4000 - 2 * 32 * 2**bits) // bits
        if kept > 2:
            masks = [t.abs() >= flat[kept - 1] for t in tensors]
            assert distance(tensors, *found) <= distance(tensors, masks, [bits, bits]) * 1.001


@pytest.mark.parametrize("budget", [200, 1000, 10**6])
def test_zeros_are_not_kept(budget: int) -> None:
    torch.manual_seed(0)
    tensors = [torch.randn(20, 30), torch.randn(30, 40), torch.zeros(4, 4)]
    for tensor in tensors:
        tensor *= torch.rand_like(tensor) < 0.5
    found = size_projections(tensors)(budget)
    assert found is not None
    assert not any(mask[tensor == 0].any() for mask, tensor in zip(found[0], tensors, strict=True))


def test_nothing_fits() -> None:
    project = size_projections([torch.ones(2, 2), torch.ones(2, 2)])
    assert project(65) is None
    assert project(66) is not None
