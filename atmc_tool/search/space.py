"""The space that searches move in: a rate for every layer that is free, under one budget."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from atmc_tool.search.budget_wall import BudgetWall
from atmc_tool.search.evaluation import Outcome
from atmc_tool.search.layers import Layer
from atmc_tool.search.strategy import Strategy, StrategyBudget, strategy_of


@dataclass(frozen=True)
class Space:
    """Rates of the slots of `wall`, each between its bounds. A rate is executed where it is of whole units.

    budget: that of the wall, as strategies state it
    """

    wall: BudgetWall
    budget: StrategyBudget

    @property
    def decisions(self) -> list[list[Layer]]:
        """The layers of each slot: one rate decides about them."""
        return [[self.wall.layers[index] for index in slot] for slot in self.wall.slots]

    @property
    def whole(self) -> list[Layer]:
        """Layers that are left as they are."""
        decided = {index for slot in self.wall.slots for index in slot}
        return [layer for index, layer in enumerate(self.wall.layers) if index not in decided]

    def rate(self, action: float) -> float:
        """The rate at `action` in [0, 1] of the way between the bounds."""
        return self.wall.lower + action * (self.wall.upper - self.wall.lower)

    def action(self, rate: float) -> float:
        """The way to `rate`; rounding to units may have brought it beyond a bound."""
        span = self.wall.upper - self.wall.lower
        return min(1.0, max(0.0, (rate - self.wall.lower) / span)) if span else 0.0

    def log_rate(self, position: float) -> float:
        """The rate at `position` in [0, 1] on a logarithmic scale between the bounds."""
        return float(self.wall.lower * (self.wall.upper / self.wall.lower) ** position)

    def walled(self, before: Sequence[float], wanted: float) -> float:
        """The executed rate of the slot after those with the executed rates `before`, at most `wanted`; see `wall`."""
        return self.wall.wall(wanted, before)

    def filled(self, wanted: Sequence[float], share: float = 1.0) -> tuple[float, ...]:
        """`wanted`, all scaled by one factor so that they use up `share` of the budget, as far as the bounds let them.

        At the least the lowest rates, where these take more than the share.
        """
        lowest = self.spent([self.wall.lower] * len(self.wall.slots))
        wall = self.wall if share == 1 else replace(self.wall, limit=max(lowest, int(share * self.wall.limit)))
        rates = wall.project(wanted)
        return tuple(rates[slot[0]] for slot in wall.slots)

    def spent(self, rates: Sequence[float]) -> int:
        """What the slots' `rates` cost."""
        return self.wall.cost_at(rates)

    def strategy(self, rates: Sequence[float], found: Mapping[str, object]) -> Strategy:
        """The strategy with the slots' executed `rates`."""
        shares = self.wall.layer_rates(rates)
        named = {layer.name: share for layer, share in zip(self.wall.layers, shares, strict=True)}
        return strategy_of(named, self.wall.structure, self.budget, found)

    def size(self, outcome: Outcome) -> int:
        """What the outcome cost, in what the budget counts."""
        size: int | None = getattr(outcome, self.budget.measure)
        assert size is not None
        return size
