from math import comb

import pytest
from hypothesis import given
from hypothesis import strategies as st

from evaluators.statistics import Proportion, clopper_pearson, wilson

counts = st.integers(1, 200).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n)))


def binomial(k: int, n: int, p: float) -> float:
    return comb(n, k) * p**k * (1 - p) ** (n - k)


def at_least(k: int, n: int, p: float) -> float:
    return sum(binomial(j, n, p) for j in range(k, n + 1))


@given(counts, st.sampled_from([0.9, 0.95, 0.99]))
def test_clopper_pearson_leaves_half_the_error_in_each_tail(count: tuple[int, int], confidence: float) -> None:
    k, n = count
    interval = clopper_pearson(k, n, confidence)
    assert 0 <= interval.low <= k / n <= interval.high <= 1
    tail = (1 - confidence) / 2
    if k > 0:
        assert at_least(k, n, interval.low) == pytest.approx(tail, rel=1e-6)
    if k < n:
        assert 1 - at_least(k + 1, n, interval.high) == pytest.approx(tail, rel=1e-6)


@pytest.mark.parametrize("n", [5, 30])
def test_clopper_pearson_covers_the_truth_at_least_as_often_as_it_says(n: int) -> None:
    intervals = [clopper_pearson(k, n) for k in range(n + 1)]
    for step in range(1, 100):
        p = step / 100
        covered = sum(binomial(k, n, p) for k in range(n + 1) if intervals[k].low <= p <= intervals[k].high)
        assert covered >= 0.95


@given(counts)
def test_wilson_ends_solve_the_score_equation(count: tuple[int, int]) -> None:
    k, n = count
    interval = wilson(k, n)
    assert 0 <= interval.low <= k / n <= interval.high <= 1
    z = 1.959963984540054
    for end in (interval.low, interval.high):
        assert abs(k / n - end) == pytest.approx(z * (end * (1 - end) / n) ** 0.5, abs=1e-9)


@pytest.mark.parametrize("interval", [clopper_pearson, wilson])
def test_none_and_all(interval: object) -> None:
    none, all_of_them = interval(0, 40), interval(40, 40)
    assert none.low == 0
    assert all_of_them.high == 1
    assert none.high == pytest.approx(1 - all_of_them.low)
    assert 0.05 < none.high < 0.12


def test_known_values() -> None:
    # Zero of n: 1 − (0.025)^(1/n); the half-widths at p = 1/2 that reports quote.
    assert clopper_pearson(0, 1000).high == pytest.approx(1 - 0.025**0.001)
    half = (clopper_pearson(500, 1000).high - clopper_pearson(500, 1000).low) / 2
    assert half == pytest.approx(0.031, abs=5e-4)


@pytest.mark.parametrize(("k", "n"), [(-1, 5), (6, 5), (0, 0)])
def test_impossible_counts(k: int, n: int) -> None:
    for interval in (clopper_pearson, wilson):
        with pytest.raises(ValueError, match="successes"):
            interval(k, n)


def test_proportion_as_json() -> None:
    facts = Proportion(90, 100).to_json()
    assert (facts["accuracy"], facts["correct"], facts["n"]) == (0.9, 90, 100)
    assert facts["clopper_pearson_95"] == pytest.approx([0.8238, 0.9510], abs=1e-4)
    assert facts["wilson_95"] == pytest.approx([0.8256, 0.9448], abs=1e-4)
