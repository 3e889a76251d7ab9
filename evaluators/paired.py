"""Two classifiers on the same images: how many samples one of them lost, and how much worse it can be at most."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from evaluators.statistics import clopper_pearson, mcnemar

ONE_SIDED = 0.90  # a two-sided interval of 90 % leaves 5 % on either side: each end is a 95 % bound of its own


@dataclass(frozen=True)
class Paired:
    """Of `n` samples, `lost` are right before and wrong after, `gained` the other way round; both agree on the others.

    `drop` = (lost − gained) / n is the fall of the accuracy.
    """

    lost: int
    gained: int
    n: int

    def __post_init__(self) -> None:
        if min(self.lost, self.gained) < 0 or not 1 <= self.n >= self.lost + self.gained:
            raise ValueError(f"{self.lost} lost and {self.gained} gained of {self.n} samples can't be")

    @property
    def drop(self) -> float:
        """The point estimate."""
        return (self.lost - self.gained) / self.n

    @property
    def highest_drop(self) -> float:
        """The upper one-sided 95 % bound of the drop: to be compared with a non-inferiority margin.

        p and q are the shares lost and gained, P and Q their true values, U the upper exact 95 % bound of P and L the
        lower one of Q (Clopper & Pearson). The two are joined by square-and-add (Newcombe 1998, Statistics in Medicine
        17:2635; Zou & Donner 2008, ibid. 27:1693), with the correlation of two cells of a multinomial:

            bound = p − q + √((U − p)² + (q − L)² − 2r(U − p)(q − L)),   r = −√(pq / ((1 − p)(1 − q)))

        Nothing lost and nothing gained gives U = 1 − 0.05^(1/n): 0.30 % for n = 1,000. By enumeration of all outcomes,
        n from 20 to 1,000, the bound covers the true drop with probability 0.95 or more.
        """
        return _highest(self.lost, self.gained, self.n)

    @property
    def lowest_drop(self) -> float:
        """The lower one-sided 95 % bound of the drop."""
        return -_highest(self.gained, self.lost, self.n)

    def to_json(self) -> dict[str, Any]:
        """Everything as plain values."""
        return {
            "lost": self.lost,
            "gained": self.gained,
            "n": self.n,
            "drop": self.drop,
            "bounds_95": [self.lowest_drop, self.highest_drop],
            "mcnemar_p": mcnemar(self.lost, self.gained),
        }


def pair(before: NDArray[np.bool_], after: NDArray[np.bool_]) -> Paired:
    """Outcomes (n,) of the same samples, right or wrong, before and after."""
    return Paired(int(np.sum(before & ~after)), int(np.sum(~before & after)), len(before))


def _highest(lost: int, gained: int, n: int) -> float:
    p, q = lost / n, gained / n
    above = clopper_pearson(lost, n, ONE_SIDED).high - p
    below = q - clopper_pearson(gained, n, ONE_SIDED).low
    odds = p * q / ((1 - p) * (1 - q)) if lost < n and gained < n else 0.0
    return float(p - q + (above**2 + below**2 + 2 * odds**0.5 * above * below) ** 0.5)
