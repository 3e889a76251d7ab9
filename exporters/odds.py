"""Logarithms and probabilities in integers, the same on every machine. FORMAT.md, section 3.4.

Logarithms are natural and in units of 1/256, probabilities in units of 1/65536. The tables are literal: one computed at
run time would be as exact as the platform's exp and log.
"""

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]

LOG_OF_MANTISSA = (
    4, 12, 19, 27, 34, 41, 47, 54, 60, 67, 73, 79, 84, 90, 96, 101, 106, 112, 117, 122, 127, 132, 136, 141, 146, 150,
    154, 159, 163, 167, 171, 175,
)  # fmt: skip
"""256 · ln((32.5 + j) / 32), rounded, for j = 0, ..., 31."""

LOG_OF_2 = 45426
"""65536 · ln 2, rounded."""

PROBABILITY = (
    32768, 40793, 47911, 53581, 57724, 60565, 62428, 63615, 64357, 64816, 65097, 65269, 65374, 65438, 65476, 65500,
    65514, 65523, 65528, 65531, 65533, 65534, 65535, 65535, 65536,
)  # fmt: skip
"""65536 / (1 + e^(-j/2)), rounded, for j = 0, ..., 24."""

FURTHEST = 128 * (len(PROBABILITY) - 1)
"""Log-odds are clipped to ± this, which is 12."""


def log(numbers: Ints) -> Ints:
    """256 · ln(x), within 6, of integers 1 ≤ x < 2⁵³. `frexp` and what follows it are exact."""
    fraction, exponent = np.frexp(numbers.astype(np.float64))  # x = fraction · 2^exponent, 1/2 ≤ fraction < 1
    mantissa = (fraction * 64).astype(np.int64) - 32
    return ((exponent.astype(np.int64) - 1) * LOG_OF_2 >> 8) + _MANTISSA[mantissa]


def probability(log_odds: Ints) -> Ints:
    """Probabilities from 1 to 65535 of log-odds, by linear interpolation of the table."""
    clipped: Ints = log_odds.clip(-FURTHEST, FURTHEST)
    clipped += FURTHEST
    return _SQUASHED[clipped]


def _squashed() -> Ints:
    """`probability` of every log-odds from -FURTHEST to FURTHEST."""
    table = np.array(PROBABILITY, np.int64)
    high = np.arange(FURTHEST)
    place, part = high >> 7, high & 127
    upper = np.append((table[place] * (128 - part) + table[place + 1] * part) >> 7, table[-1])
    return np.concatenate([65536 - upper[:0:-1], upper]).clip(1, 65535)


_MANTISSA = np.array(LOG_OF_MANTISSA, np.int64)
_SQUASHED = _squashed()
