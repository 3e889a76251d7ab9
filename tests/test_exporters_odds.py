"""The literal tables are what they are said to be, and the functions are near the real ones."""

from decimal import ROUND_HALF_EVEN, Decimal, localcontext

import numpy as np

from exporters.odds import FURTHEST, LOG_OF_2, LOG_OF_MANTISSA, PROBABILITY, log, probability


def rounded(number: Decimal) -> int:
    return int(number.to_integral_value(ROUND_HALF_EVEN))


def test_the_tables_by_exact_arithmetic() -> None:
    with localcontext() as context:
        context.prec = 40
        assert rounded(65536 * Decimal(2).ln()) == LOG_OF_2
        assert [rounded(256 * (Decimal(65 + 2 * j) / 64).ln()) for j in range(32)] == list(LOG_OF_MANTISSA)
        logistic = [rounded(65536 / (1 + (Decimal(-j) / 2).exp())) for j in range(25)]
        assert logistic == list(PROBABILITY)


def test_the_logarithm_is_near_the_real_one_and_rises() -> None:
    numbers = np.unique(np.round(np.geomspace(1, 2**50, 20_000)).astype(np.int64))
    logs = log(numbers)
    assert np.all(np.diff(logs) >= 0)
    assert np.abs(logs - 256 * np.log(numbers)).max() <= 6


def test_probabilities_rise_are_symmetric_and_near_the_real_ones() -> None:
    odds = np.arange(-FURTHEST - 100, FURTHEST + 101)
    found = probability(odds)
    assert found.min() == 1
    assert found.max() == 65535
    assert np.all(np.diff(found) >= 0)
    inner = np.abs(odds) < FURTHEST - 300
    assert np.array_equal((65536 - found)[inner], found[::-1][inner])
    real = 1 / (1 + np.exp(-odds.clip(-FURTHEST, FURTHEST) / 256))
    cost = real * np.log2(real / (found / 65536)) + (1 - real) * np.log2((1 - real) / (1 - found / 65536))
    assert cost.max() < 2e-4  # bits that a symbol costs because of the table
