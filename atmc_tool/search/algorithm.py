"""What a search algorithm is: it asks for outcomes of strategies and is told them."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from atmc_tool.search.evaluation import Outcome


@dataclass(frozen=True)
class Proposal:
    """Rates to try, one for each decision of the space, within the budget and of whole units.

    number: of the proposal, from 0 on
    """

    number: int
    rates: tuple[float, ...]


class Algorithm(Protocol):
    """Proposes several strategies at once and learns from all of them together.

    All that it does follows from its seed and what it is told, so that a search is repeated by telling it the same.
    """

    def ask(self, count: int) -> list[Proposal]:
        """The next `count` proposals."""
        ...

    def tell(self, proposals: Sequence[Proposal], outcomes: Sequence[Outcome]) -> None:
        """What became of the proposals of the last `ask`, in their order."""
        ...


class Fixed:
    """One proposal, made before: a built-in allocation."""

    def __init__(self, rates: Sequence[float]) -> None:
        self._rates = tuple(rates)

    def ask(self, count: int) -> list[Proposal]:  # noqa: ARG002 - there is one
        """The one proposal."""
        return [Proposal(0, self._rates)]

    def tell(self, proposals: Sequence[Proposal], outcomes: Sequence[Outcome]) -> None:
        """Nothing is learned."""
