"""Images spread over several processes, each of which attacks its share of them."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any, Protocol, TypeVar

import numpy as np

from atmc_tool.attacks.standing import WorstCase

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


def spread_attack(spread: Spread, images: Any, attack: Callable[[slice], WorstCase]) -> WorstCase:
    """What `attack` finds on all images, NumPy arrays, in every process; each attacks its share, which is not empty.

    The result does not depend on the shares, but for rounding, where the attack's random numbers belong to the images.
    """
    share = spread.share(len(images))
    own = WorstCase(np.zeros(0, np.bool_), np.zeros(0, np.bool_), images[:0], 0, 0.0)
    if share.start < share.stop:
        own = attack(share)
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
