"""Intervals for counts."""

from dataclasses import dataclass
from typing import Any

from scipy import special  # scipy.stats takes a second to import

CONFIDENCE = 0.95


@dataclass(frozen=True)
class Interval:
    """A two-sided interval for a probability, 0 ≤ low ≤ high ≤ 1."""

    low: float
    high: float


@dataclass(frozen=True)
class Proportion:
    """`successes` of `n` samples, n ≥ 1; `balanced`: the mean of the classes' shares, where classes are unbalanced."""

    successes: int
    n: int
    balanced: float | None = None

    @property
    def value(self) -> float:
        """The point estimate."""
        return self.successes / self.n

    @property
    def clopper_pearson(self) -> Interval:
        """The exact 95 % interval; the gate uses its lower end."""
        return clopper_pearson(self.successes, self.n)

    @property
    def wilson(self) -> Interval:
        """The 95 % score interval, closer to its nominal coverage on average."""
        return wilson(self.successes, self.n)

    def to_json(self) -> dict[str, Any]:
        """Everything as plain values."""
        exact, score = self.clopper_pearson, self.wilson
        return {
            "accuracy": self.value,
            **({} if self.balanced is None else {"balanced_accuracy": self.balanced}),
            "correct": self.successes,
            "n": self.n,
            "clopper_pearson_95": [exact.low, exact.high],
            "wilson_95": [score.low, score.high],
        }


def clopper_pearson(successes: int, n: int, confidence: float = CONFIDENCE) -> Interval:
    """The exact two-sided interval (Clopper & Pearson 1934): each tail has probability at most (1 − confidence)/2.

    Its low end solves P(X ≥ successes) = (1 − confidence)/2 and its high end P(X ≤ successes) = (1 − confidence)/2;
    0 and 1 where there is no solution.
    """
    _check(successes, n)
    tail = (1 - confidence) / 2
    low = float(special.betaincinv(successes, n - successes + 1, tail)) if successes > 0 else 0.0
    high = float(special.betainccinv(successes + 1, n - successes, tail)) if successes < n else 1.0
    return Interval(low, high)


def wilson(successes: int, n: int, confidence: float = CONFIDENCE) -> Interval:
    """The score interval (Wilson 1927): all p with |successes/n − p| ≤ z·√(p(1 − p)/n)."""
    _check(successes, n)
    z = -float(special.ndtri((1 - confidence) / 2))
    p = successes / n
    centre = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * (p * (1 - p) / n + z * z / (4 * n * n)) ** 0.5
    low = 0.0 if successes == 0 else max(0.0, centre - half)
    high = 1.0 if successes == n else min(1.0, centre + half)
    return Interval(low, high)


def mcnemar(lost: int, gained: int) -> float:
    """Exact two-sided p-value of McNemar's test (1947): the samples on which two classifiers differ are lost or gained
    with equal chance. P(|X − m/2| ≥ |lost − m/2|), X binomial of m = lost + gained and 1/2; 1 where m = 0."""
    if lost == gained:
        return 1.0
    return float(2 * special.bdtr(min(lost, gained), lost + gained, 0.5))


def _check(successes: int, n: int) -> None:
    if not 0 <= successes <= n or n == 0:
        raise ValueError(f"expected 0 ≤ successes ≤ n and n ≥ 1, got {successes} of {n}")
