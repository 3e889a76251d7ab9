"""Images spread over several processes, each of which attacks its share of them."""

from dataclasses import replace
from typing import Any, Protocol, TypeVar

import numpy as np

from atmc_tool.attacks.classifier import Classifier
from atmc_tool.attacks.worst_case import WorstCase, worst_case

T = TypeVar("T")


class Spread(Protocol):
    """The processes, every one of which calls the same functions in the same order."""

    def share(self, n: int) -> slice:
        """This process's part of n images: consecutive ones, in the order of the processes."""
        ...

    def each(self, value: T) -> list[T]:
        """The processes' values in their order, the same list for all."""
        ...


class Alone:
    """One process."""

    def share(self, n: int) -> slice:
        """All of them."""
        return slice(0, n)

    def each(self, value: T) -> list[T]:
        """This one's."""
        return [value]


def spread_worst_case(
    spread: Spread, classifier: Classifier, images: Any, labels: Any, eps: float, **options: Any
) -> WorstCase:
    """`worst_case` of all images, NumPy arrays, in every process; what its attack finds does not depend on the shares,
    but for rounding: the noise of an image belongs to its place among all of them."""
    share = spread.share(len(images))
    own = WorstCase(np.zeros(0, np.bool_), np.zeros(0, np.bool_), images[:0], 0, 0.0)
    if share.start < share.stop:
        own = worst_case(classifier, images[share], labels[share], eps, first_index=share.start, **options)
    parts = spread.each(own)
    joined = {
        name: np.concatenate([getattr(part, name) for part in parts]) for name in ("correct", "robust", "adversarial")
    }
    return replace(
        own,
        **joined,
        violations=sum(part.violations for part in parts),
        largest=max(part.largest for part in parts),
    )
