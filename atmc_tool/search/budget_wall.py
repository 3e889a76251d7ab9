"""The budget wall: from any wished rates to rates that the budget allows, exactly, after rounding to units."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from atmc_tool.errors import InfeasibleBudgetError
from atmc_tool.search.layers import Cost, First, Layer, kept_units, slots, units_of

BISECTIONS = 60
MOST = 1e18  # a factor that raises every rate above 0 to the upper bound


@dataclass(frozen=True)
class BudgetWall:
    """A budget over the layers of a network. One action decides one slot; layers in no slot stay whole.

    cost, limit:  what is kept costs at most `limit`
    lower, upper: bounds of a rate; the lower one keeps at least one unit
    """

    layers: Sequence[Layer]
    structure: str
    cost: Cost
    limit: int
    lower: float = 0.0
    upper: float = 1.0
    first: First = "auto"
    slots: list[list[int]] = field(init=False)

    def __post_init__(self) -> None:
        """Raises InfeasibleBudgetError where even the lower bounds cost too much."""
        object.__setattr__(self, "slots", slots(self.layers, self.structure, self.first))
        least = self.cost(self._kept([0.0] * len(self.slots)))
        if least > self.limit:
            raise InfeasibleBudgetError("no strategy meets the budget", expected=f"at least {least}", got=self.limit)

    def kept(self, actions: Sequence[float]) -> list[int]:
        """Units that every layer keeps: `project` before it is divided by the layer's units."""
        factor = self._factor(actions)
        kept = self._kept([factor * max(action, 1e-12) for action in actions])
        return self._filled(kept, [factor * max(action, 1e-12) for action in actions])

    def project(self, actions: Sequence[float]) -> list[float]:
        """Wished rates of the slots → executed rates of all layers, which cost at most the limit.

        All rates are multiplied by one factor, the largest that the budget allows, and clipped to the bounds; what
        rounding leaves goes, a unit each, to the slots that it cut most. So the budget is spent by any actions: where
        it is a bound above, ERK's and others' `densities above 1 are fixed at 1 and the rest is rescaled`.

        Raises:
            ValueError: not one action, at least 0, for each slot.
        """
        if len(actions) != len(self.slots) or not all(action >= 0 for action in actions):
            raise ValueError(f"expected {len(self.slots)} rates of at least 0")
        return self.shares(self.kept(actions))

    def wall(self, action: float, before: Sequence[float]) -> float:
        """The rate of the next slot: `action`, or the largest that lets the slots after it have their lower bound.

        `before` are the executed rates of the slots before it (Heracles' wall: a ≤ (target − done − rest)/W).
        """
        slot = self.slots[len(before)]
        rest = [0.0] * (len(self.slots) - len(before) - 1)

        def fits(rate: float) -> bool:
            return self.allows([*before, rate, *rest])

        layer = self.layers[slot[0]]
        units = units_of(layer, self.structure)
        fewest, most = (kept_units(layer, self.structure, self._clipped(a)) for a in (0.0, action))
        while fewest < most:
            middle = (fewest + most + 1) // 2
            if fits(middle / units):
                fewest = middle
            else:
                most = middle - 1
        return fewest / units

    def allows(self, rates: Sequence[float]) -> bool:
        """Whether these rates of the slots, clipped and rounded, cost at most the limit."""
        return self.cost_at(rates) <= self.limit

    def cost_at(self, rates: Sequence[float]) -> int:
        """What these rates of the slots cost, clipped and rounded."""
        return self.cost(self._kept(rates))

    def shares_of_whole(self) -> list[float]:
        """1 for every layer."""
        return [1.0] * len(self.layers)

    def with_slot(self, slot: int, rate: float) -> list[float]:
        """Shares of all layers where one slot has `rate` and the others are whole."""
        shares = self.shares_of_whole()
        for i in self.slots[slot]:
            shares[i] = kept_units(self.layers[i], self.structure, rate) / units_of(self.layers[i], self.structure)
        return shares

    def layer_rates(self, rates: Sequence[float]) -> list[float]:
        """Executed rates of the slots → of all layers."""
        return self.shares(self._kept(rates))

    def shares(self, kept: Sequence[int]) -> list[float]:
        """Kept units of all layers → shares."""
        return [k / units_of(layer, self.structure) for layer, k in zip(self.layers, kept, strict=True)]

    def _clipped(self, rate: float) -> float:
        return min(self.upper, max(self.lower, rate))

    def _kept(self, rates: Sequence[float]) -> list[int]:
        kept = [units_of(layer, self.structure) for layer in self.layers]
        for slot, rate in zip(self.slots, rates, strict=True):
            for i in slot:
                kept[i] = kept_units(self.layers[i], self.structure, self._clipped(rate))
        return kept

    def _factor(self, actions: Sequence[float]) -> float:
        """The largest factor, to 60 bisections in its logarithm, at which the clipped rates cost at most the limit."""

        def fits(factor: float) -> bool:
            return self.allows([factor * max(action, 1e-12) for action in actions])

        if fits(MOST):
            return MOST
        low, high = 1 / MOST, MOST
        for _ in range(BISECTIONS):
            middle = (low * high) ** 0.5
            low, high = (middle, high) if fits(middle) else (low, middle)
        return low if fits(low) else 0.0

    def _filled(self, kept: list[int], wished: Sequence[float]) -> list[int]:
        """`kept` with one more unit for each slot that it fits, by how much rounding took of the wish."""

        def cut(j: int) -> float:
            i = self.slots[j][0]
            return self._clipped(wished[j]) * units_of(self.layers[i], self.structure) - kept[i]

        for j in sorted(range(len(self.slots)), key=cut, reverse=True):
            more = list(kept)
            for i in self.slots[j]:
                more[i] += 1
            i = self.slots[j][0]
            most = kept_units(self.layers[i], self.structure, self.upper)
            if more[i] <= most and self.cost(more) <= self.limit:
                kept = more
        return kept
