"""Random numbers of attacks: they belong to seed, restart and sample alone, not to batches or array libraries."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from atmc_tool.threat_model import Norm

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


def start_noise(
    seed: int, restart: int, indices: Sequence[int], shape: tuple[int, ...], norm: Norm = "linf"
) -> NDArray[np.float32]:
    """Points uniform in the unit ball of the norm, (len(indices), *shape): in l-infinity uniform in [-1, 1).

    The noise of a sample depends on (seed, restart, its index) alone: not on batches, on which samples are still
    attacked, or on the array library.
    """
    noise = np.empty((len(indices), *shape), np.float32)
    for row, index in enumerate(indices):
        generator = np.random.default_rng((seed, restart, index))
        if norm == "linf":
            noise[row] = generator.random(shape, dtype=np.float32)
        else:
            normal = generator.standard_normal(shape, dtype=np.float32)
            noise[row] = normal * (generator.random() ** (1 / normal.size) / np.linalg.norm(normal))
    if norm == "linf":
        noise *= 2
        noise -= 1
    return noise


def draws(seed: int, indices: Sequence[int], turn: int, count: int) -> NDArray[np.float64]:
    """Numbers uniform in [0, 1), (len(indices), count), that belong to (seed, index, turn) alone.

    All of them at once, without a generator for each: SplitMix64 (Steele et al. 2014, "Fast splittable pseudorandom
    number generators") of a counter.
    """
    state = _mix(np.full(1, seed, np.uint64))
    for part in (
        np.asarray(indices, np.uint64)[:, None],
        np.full(1, turn, np.uint64),
        np.arange(count, dtype=np.uint64),
    ):
        state = _mix(state + part)
    return np.asarray((state >> np.uint64(11)) * 2.0**-53, np.float64)


def _mix(state: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """SplitMix64's step and output function."""
    state = state + _GOLDEN
    state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return state ^ (state >> np.uint64(31))
