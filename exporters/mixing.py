"""Probabilities of bits as weighted sums of what is known, and the fit of the weights. FORMAT.md, section 3.4.

The log-odds of a bit are base + Σ weight · feature: logistic mixing with weights that are constant in a file. There are
four kinds of bits, each with its own weights: whether a kernel is occupied, whether it has more entries than so many,
whether an entry is at this position of it, and whether an entry is positive.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from exporters.odds import FURTHEST, Ints, probability
from exporters.rans import Bits, Coder, Ranks

Kind = Literal["occupied", "more", "here", "positive"]

DEFAULT_WEIGHTS: Mapping[Kind, tuple[int, ...]] = {
    "occupied": (18, 18),
    "more": (14, 20, 10, 6, 5, 3),
    "here": (22, -7, 18, -4, -2, 1, -12, -1, -5, -6, 10, 2, -16),
    "positive": (70, 80, 5, 26, -12, 0),
}
"""Weights in units of 1/32 where a file holds none of its own: fitted to a ResNet-20 with 5 % kept."""

LIGHTEST, HEAVIEST = -128, 127
SAMPLES = 4_000
"""At most about so many bits of one run of kernels enter the fit."""


@dataclass
class Mixer:
    """Codes bits by their contexts. Features and bases are in the units of `odds`, a feature of 1 is 256."""

    coder: Coder
    weights: Mapping[Kind, tuple[int, ...]]

    def of_kernels(
        self, kind: Kind, base: int, grid: tuple[Ints, Ints], constants: Ints, at: tuple[Ints, Ints], truth: Bits | None
    ) -> Bits:
        """Bits (n,) of the kernels at `at` = (rows (n,), columns (n,)) of a grid.

        The features are one of the row and one of the column, `grid` = (of every row, of every column), and constants.
        """
        weights = np.array(self.weights[kind], np.int64)
        rows, columns = ((w * f >> 5).astype(np.int32) for w, f in zip(weights, grid, strict=False))
        base += int((weights[2:] * constants >> 5).sum())
        log_odds = rows[at[0]]
        log_odds += columns[at[1]]
        log_odds += np.int32(base + FURTHEST)
        return self.coder.bits(_PROBABILITY.take(log_odds, mode="clip"), truth)

    def alike(self, share: int, n: int, truth: Bits | None) -> Bits:
        """Bits (n,) that are all 1 with the probability share / 2^16."""
        return self.coder.bits(np.full(n, min(max(share, 1), 65535), np.uint16), truth)

    def ranks(self, context: Ranks, frequencies: NDArray[np.int64], truth: Ranks | None) -> Ranks:
        """See `Coder`."""
        return self.coder.ranks(context, frequencies, truth)

    def in_cells(self, kind: Kind, base: Ints, features: Ints, cells: NDArray[np.int16], truth: Bits | None) -> Bits:
        """Bits (n,) of contexts `cells` (n,), for which there are base (cells,) and 0/1/… features (cells, weights)."""
        log_odds = base + 8 * (features @ np.array(self.weights[kind], np.int64))
        return self.coder.bits(probability(log_odds).astype(np.uint16)[cells], truth)


_PROBABILITY = probability(np.arange(-FURTHEST, FURTHEST + 1)).astype(np.uint16)


@dataclass
class Fit:
    """In the place of a `Mixer`: collects bits and their features, and finds the weights."""

    runs: dict[Kind, list[tuple[NDArray[np.float64], ...]]] = field(default_factory=dict)

    def of_kernels(
        self, kind: Kind, base: int, grid: tuple[Ints, Ints], constants: Ints, at: tuple[Ints, Ints], truth: Bits | None
    ) -> Bits:
        """See `Mixer`."""
        assert truth is not None
        step = 1 + len(truth) // SAMPLES
        rows, columns = at[0][::step], at[1][::step]
        features = np.empty((len(rows), 2 + len(constants)))
        features[:, 0], features[:, 1], features[:, 2:] = grid[0][rows], grid[1][columns], constants
        times = np.full(len(rows), float(step))
        self._add(kind, np.full(len(rows), float(base)), features, times, np.where(truth[::step], float(step), 0.0))
        return truth

    def alike(self, _share: int, _n: int, truth: Bits | None) -> Bits:
        """See `Mixer`."""
        assert truth is not None
        return truth

    def in_cells(self, kind: Kind, base: Ints, features: Ints, cells: NDArray[np.int16], truth: Bits | None) -> Bits:
        """See `Mixer`."""
        assert truth is not None
        times = np.bincount(cells, minlength=len(base)).astype(float)
        ones = np.bincount(cells[truth], minlength=len(base)).astype(float)
        seen = np.flatnonzero(times)
        known = 256 * features[seen].astype(np.float64)
        self._add(kind, base[seen].astype(np.float64), known, times[seen], ones[seen])
        return truth

    def _add(self, kind: Kind, *run: NDArray[np.float64]) -> None:
        self.runs.setdefault(kind, []).append(run)

    def weights(self) -> dict[Kind, tuple[int, ...]]:
        """For each kind that pays for the bits of its weights, 1 if all are 0: they."""
        found = {}
        for kind, runs in self.runs.items():
            base, features, times, ones = (np.concatenate(column) for column in zip(*runs, strict=True))
            bits = _Bits(base / 256, features / 256, times, ones)
            weights = np.round(32 * bits.best()).clip(LIGHTEST, HEAVIEST)
            default = np.array(DEFAULT_WEIGHTS[kind])
            costs = bits.nats(default / 32), bits.nats(0 * default) + np.log(2)
            if bits.nats(weights / 32) + 8 * np.log(2) * len(weights) < min(costs):
                found[kind] = tuple(int(weight) for weight in weights)
            elif costs[1] < costs[0]:
                found[kind] = (0,) * len(weights)
        return found


@dataclass
class _Bits:
    """Bits grouped by context: log-odds without features, features, how many bits, how many ones."""

    base: NDArray[np.float64]
    features: NDArray[np.float64]
    times: NDArray[np.float64]
    ones: NDArray[np.float64]

    def nats(self, weights: NDArray[np.float64]) -> float:
        """What they cost."""
        odds = self._odds(weights)
        return float(np.sum(self.times * np.logaddexp(0, odds) - self.ones * odds))

    def best(self) -> NDArray[np.float64]:
        """argmin of nats(w) + ‖w‖², by Newton's method; a step that does not help is halved."""
        weights = np.zeros(self.features.shape[1])
        loss = self.nats(weights)
        for _ in range(10):
            p = 1 / (1 + np.exp(-self._odds(weights)))
            slope = self.features.T @ (self.ones - self.times * p) - 2 * weights
            bent = (self.features * (self.times * p * (1 - p))[:, None]).T @ self.features + 2 * np.eye(len(weights))
            step = np.linalg.solve(bent, slope)
            for _ in range(8):
                after = self.nats(weights + step) + float(np.sum((weights + step) ** 2))
                if after <= loss:
                    break
                step /= 2
            if loss - after < 0.5:
                return weights + step if after <= loss else weights
            weights, loss = weights + step, after
        return weights

    def _odds(self, weights: NDArray[np.float64]) -> NDArray[np.float64]:
        return (self.base + self.features @ weights).clip(-12, 12)
