from math import comb

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from evaluators.paired import Paired, pair
from evaluators.statistics import mcnemar


def test_outcomes_are_counted_sample_by_sample() -> None:
    rng = np.random.default_rng(0)
    before, after = rng.random(500) < 0.8, rng.random(500) < 0.7
    found = pair(before, after)
    lost = sum(b and not a for b, a in zip(before, after, strict=True))
    gained = sum(a and not b for b, a in zip(before, after, strict=True))
    assert found == Paired(lost, gained, 500)
    assert found.drop == pytest.approx(before.mean() - after.mean())


def test_nothing_lost_in_a_thousand_still_allows_a_fall_of_three_per_mille() -> None:
    none = Paired(0, 0, 1000)
    assert none.highest_drop == pytest.approx(1 - 0.05 ** (1 / 1000))
    assert round(100 * none.highest_drop, 2) == 0.30
    assert (none.drop, none.lowest_drop, none.to_json()["mcnemar_p"]) == (0, -none.highest_drop, 1)


@pytest.mark.parametrize("n", [20, 60])
def test_the_bound_covers_the_true_drop_at_least_as_often_as_it_says(n: int) -> None:
    """By enumeration of every outcome, on a grid of true shares."""
    outcomes = [(lost, gained) for lost in range(n + 1) for gained in range(n + 1 - lost)]
    bounds = np.array([Paired(lost, gained, n).highest_drop for lost, gained in outcomes])
    ways = np.array([float(comb(n, lost) * comb(n - lost, gained)) for lost, gained in outcomes])
    lost, gained = np.array(outcomes).T
    shares = (0.0, 0.5 / n, 1 / n, 3 / n, 0.1, 0.2, 0.35, 0.45)
    for p in shares[1:]:
        for q in shares:
            chance = ways * p**lost * q**gained * (1 - p - q) ** (n - lost - gained)
            assert chance.sum() == pytest.approx(1)
            assert chance[bounds >= p - q - 1e-12].sum() >= 0.95, (p, q)


def test_the_bound_is_no_wider_than_it_must_be() -> None:
    """Of 1,000 samples 50 lost and 40 gained: the normal approximation gives 0.01 ± 1.645 · √90 / 1000."""
    found = Paired(50, 40, 1000)
    assert found.highest_drop == pytest.approx(0.01 + 1.645 * 90**0.5 / 1000, abs=2e-3)
    assert found.lowest_drop == pytest.approx(0.01 - 1.645 * 90**0.5 / 1000, abs=2e-3)


@given(st.integers(0, 40), st.integers(0, 40), st.integers(0, 50))
def test_bounds_enclose_the_estimate_and_mirror(lost: int, gained: int, same: int) -> None:
    n = max(1, lost + gained + same)
    found, mirrored = Paired(lost, gained, n), Paired(gained, lost, n)
    assert found.lowest_drop <= found.drop <= found.highest_drop
    assert found.lowest_drop == -mirrored.highest_drop
    if same:
        assert Paired(lost + 1, gained, n).highest_drop > found.highest_drop


@given(st.integers(0, 30), st.integers(0, 30))
def test_mcnemar_is_the_binomial_test_of_the_flips(lost: int, gained: int) -> None:
    flips = lost + gained
    extreme = [k for k in range(flips + 1) if abs(2 * k - flips) >= abs(lost - gained)]
    assert mcnemar(lost, gained) == pytest.approx(sum(comb(flips, k) for k in extreme) / 2**flips)


@pytest.mark.parametrize(("lost", "gained", "n"), [(-1, 0, 5), (0, -1, 5), (3, 3, 5), (0, 0, 0)])
def test_impossible_counts(lost: int, gained: int, n: int) -> None:
    with pytest.raises(ValueError, match="can't be"):
        Paired(lost, gained, n)
