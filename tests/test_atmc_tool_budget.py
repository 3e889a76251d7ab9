import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.nn.utils.parametrizations import weight_norm

from atmc_tool.budget import compressible, kept_for_bytes, kept_for_share
from atmc_tool.errors import AtmcError, InfeasibleBudgetError


def test_weights_are_compressed_and_the_rest_is_listed_with_a_reason() -> None:
    network = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Flatten(), nn.Linear(2, 2))
    chosen, left = compressible(network)
    assert list(chosen) == ["0.weight", "3.weight"]
    assert set(left) == {"0.bias", "1.weight", "1.bias", "3.bias"}
    assert {"fewer than two dimensions (bias, scale)", "normalisation"} == set(left.values())


class Unusual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.gate = nn.Conv2d(8, 1, 7)
        self.depthwise = nn.Conv2d(8, 8, 1, groups=8)
        self.norm = nn.LayerNorm([8, 6, 6])
        self.scale = nn.Parameter(torch.ones(8, 1, 1))
        self.position = nn.Parameter(torch.ones(1, 36, 8))
        self.mixing = nn.Parameter(torch.ones(36, 8))
        self.table = nn.Embedding(5, 8)
        self.twin = nn.Linear(8, 5, bias=False)
        self.twin.weight = self.table.weight
        self.attention = nn.MultiheadAttention(8, 2, bias=False)
        self.normed = weight_norm(nn.Conv2d(8, 8, 3, bias=False))


def test_weights_are_told_from_tokens_positions_scales_and_normalisations() -> None:
    chosen, left = compressible(Unusual())
    assert set(chosen) == {
        "gate.weight",
        "depthwise.weight",
        "mixing",
        "table.weight",
        "attention.in_proj_weight",
        "attention.out_proj.weight",
        "normed.parametrizations.weight.original1",
    }
    one_row = "one row or column, of no layer (token, position embedding, scale)"
    assert {name for name, reason in left.items() if reason == one_row} == {
        "scale",
        "position",
        "normed.parametrizations.weight.original0",
    }
    assert left["norm.weight"] == "normalisation"


def test_a_network_without_weights_is_refused() -> None:
    with pytest.raises(AtmcError, match="no weight to compress"):
        compressible(nn.BatchNorm2d(3))


@given(st.integers(0, 500), st.integers(1, 9), st.integers(0, 6000))
def test_largest_k_that_fits(fixed: int, slope: int, limit: int) -> None:
    sizes = [fixed + slope * k for k in range(501)]
    if sizes[3] > limit:
        with pytest.raises(InfeasibleBudgetError, match=f"at least {sizes[3]} bytes"):
            kept_for_bytes(lambda k: sizes[k], limit, 3, 500)
    else:
        kept = kept_for_bytes(lambda k: sizes[k], limit, 3, 500)
        assert sizes[kept] <= limit
        assert kept == 500 or sizes[kept + 1] > limit


def test_share() -> None:
    assert kept_for_share(0.05, 52_768, 4) == 2638
    with pytest.raises(InfeasibleBudgetError, match=r"keep of at least 7\.6e-05"):
        kept_for_share(1e-6, 52_768, 4)


@pytest.mark.parametrize("total", [52_768, 430_500, 812_345, 999_983])
@pytest.mark.parametrize("minimum", [4, 8, 107])
def test_the_share_that_is_named_can_be_met(total: int, minimum: int) -> None:
    with pytest.raises(InfeasibleBudgetError) as caught:
        kept_for_share(1e-9, total, minimum)
    named = float(str(caught.value).split("keep of at least ")[1].split(",")[0].split(";")[0])
    assert kept_for_share(named, total, minimum) >= minimum
