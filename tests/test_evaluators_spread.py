import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import pytest
from numpy_classifiers import digits, fit

from evaluators.attack_plan import AttackSettings
from evaluators.robustness import attack
from evaluators.spread import Spread

T = TypeVar("T")


@dataclass(frozen=True)
class Thread:
    """One of several threads that attack together."""

    number: int
    values: list[object]
    barrier: threading.Barrier

    def share(self, n: int) -> slice:
        size = len(self.values)
        return slice(n * self.number // size, n * (self.number + 1) // size)

    def each(self, value: T) -> list[T]:
        self.values[self.number] = value
        self.barrier.wait(60)
        values = list(self.values)
        self.barrier.wait(60)
        return values  # type: ignore[return-value]


@pytest.mark.parametrize(("n", "size"), [(101, 2), (100, 3), (2, 3)])
def test_attacks_find_the_same_however_many_share_them(n: int, size: int) -> None:
    classifier = fit()
    images, labels = digits()
    images, labels = images[1200 : 1200 + n].astype(np.float32) / 255, labels[1200 : 1200 + n]
    settings = AttackSettings(steps=4, restarts=2, square_queries=5, batch_size=32)

    def run(spread: Spread | None) -> tuple[object, ...]:
        result = attack(classifier, images, labels, 0.06, settings, None, spread)
        assert result.robust is not None
        assert result.adversarial is not None
        facts = [(each.to_json(), each.violations, round(each.largest, 6)) for each in result.attacks]
        return facts, result.robust.tolist(), result.adversarial

    alone = run(None)
    barrier, values = threading.Barrier(size), [None] * size
    with ThreadPoolExecutor(size) as pool:
        found = list(pool.map(run, [Thread(number, values, barrier) for number in range(size)]))
    for facts, robust, adversarial in found:
        assert (facts, robust) == alone[:2]
        np.testing.assert_allclose(adversarial, alone[2], atol=1e-5)
