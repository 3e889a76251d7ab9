"""Half precision where it changes next to nothing, and nowhere else."""

from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import Cli
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor

from atmc_tool.half_precision import half_array, half_values, harmless
from exporters.atmc_file import read_atmc

FLOATS = st.floats(width=32, allow_nan=False, allow_infinity=False)


def is_half(array: NDArray[np.float32]) -> bool:
    return bool((array.astype(np.float16).astype(np.float32) == array).all())


@given(st.lists(FLOATS, min_size=1, max_size=20))
def test_values_move_by_half_of_the_last_bit_or_not_at_all(numbers: list[float]) -> None:
    tensor = torch.tensor(numbers, dtype=torch.float32)
    rounded = half_values(tensor)
    assert ((rounded - tensor).abs() <= 2.0**-11 * tensor.abs()).all()
    assert torch.equal(rounded, tensor) or is_half(rounded.numpy())
    assert torch.equal(rounded == 0, tensor == 0)
    if all(number == 0 or 2.0**-14 <= abs(number) <= 65504 for number in numbers):
        assert is_half(rounded.numpy())


@given(st.lists(FLOATS, max_size=20))
def test_arrays_move_little_beside_their_largest_value(numbers: list[float]) -> None:
    array = np.array(numbers, np.float32)
    rounded = half_array(array)
    assert rounded.dtype == np.float32
    assert np.array_equal(rounded, array) or is_half(rounded)
    if len(array):
        assert np.abs(rounded.astype(np.float64) - array).max() <= 2.0**-11 * np.abs(array).max()


def test_what_half_precision_cannot_hold_stays() -> None:
    large = np.array([1.0, 1e6 + 0.25], np.float32)
    assert half_array(large) is large
    small = torch.tensor([0.5, 3e-9])
    assert torch.equal(half_values(small), small)
    assert is_half(half_array(np.array([0.123456, 3e-9], np.float32)))  # the small one is nothing beside the other
    for other in (np.array([7], np.int64), np.array([0.1]), np.zeros(0, np.float32)):
        assert half_array(other) is other


class Plane:
    """Logits w · x and 0."""

    def __init__(self, w: float) -> None:
        self.w = w

    def logits(self, images: Tensor) -> Tensor:
        own = self.w * images.reshape(len(images), -1).sum(1)
        return torch.stack([own, torch.zeros_like(own)], 1)

    def logits_and_gradient(self, images: Tensor, labels: Tensor, loss: str) -> tuple[Tensor, Tensor]:
        raise NotImplementedError


@pytest.mark.parametrize(
    ("before", "after", "expected"), [(1.0, 1.009, True), (1.0, 1.011, False), (1e-4, -1e-4, False)]
)
def test_a_logit_too_far_or_another_prediction_is_harm(before: float, after: float, expected: bool) -> None:
    images = torch.ones(5, 1, 1, 1)
    assert harmless(Plane(before), Plane(after), images, 2) == expected


def test_what_ships_is_of_half_precision(cli: Cli, folder: Path) -> None:
    short = "--max-steps 30 --set attack.steps=1 --set evaluation.n=20 --set evaluation.steps=1 -q"
    for bits, expected in (("4", True), ("null", False)):
        done = cli(f"compress model.pt --set compress.bits={bits} {short} -o bits-{bits}", folder)
        assert done.code == 0, done.err
        model = read_atmc(folder / f"bits-{bits}" / "model.atmc")
        factors = [factor for weight in model.weights.values() for factor in weight.factors.values()]
        assert all(is_half(factor.values) for factor in factors) == expected
        assert all(is_half(array) for array in model.rest.values() if array.dtype == np.float32) == expected
