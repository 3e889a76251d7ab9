"""Random rates: the control that every other search has to beat at the same number of evaluations."""

from collections.abc import Sequence

import numpy as np

from atmc_tool.search.algorithm import Proposal
from atmc_tool.search.evaluation import Outcome
from atmc_tool.search.space import Space


class RandomSearch:
    """Rates whose logarithms are uniform between the bounds, all scaled alike so that they use up the budget."""

    def __init__(self, space: Space, seed: int) -> None:
        self._space, self._generator, self._count = space, np.random.default_rng(seed), 0

    def ask(self, count: int) -> list[Proposal]:
        """The next `count` proposals."""
        proposals = []
        for _ in range(count):
            positions = self._generator.random(len(self._space.decisions))
            rates = self._space.filled([self._space.log_rate(position) for position in positions.tolist()])
            proposals.append(Proposal(self._count, rates))
            self._count += 1
        return proposals

    def tell(self, proposals: Sequence[Proposal], outcomes: Sequence[Outcome]) -> None:
        """Nothing is learned."""
