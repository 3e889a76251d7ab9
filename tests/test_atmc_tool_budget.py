import pytest
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from atmc_tool.budget import compressible, kept_for_bytes, kept_for_share
from atmc_tool.errors import AtmcError, InfeasibleBudgetError


def test_weights_are_compressed_and_the_rest_is_listed_with_a_reason() -> None:
    network = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Flatten(), nn.Linear(2, 2))
    chosen, left = compressible(network)
    assert list(chosen) == ["0.weight", "3.weight"]
    assert set(left) == {"0.bias", "1.weight", "1.bias", "3.bias"}
    assert all("dimension" in reason for reason in left.values())


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
