"""A strategy by the sensitivity of layers: prune one alone, see what it costs, and prune most where it costs least."""

from collections.abc import Callable, Sequence

from atmc_tool.search.budget_wall import BudgetWall

RATES = (0.5, 0.25, 0.1, 0.05, 0.02, 0.01)


def sensitivities(
    wall: BudgetWall, loss: Callable[[Sequence[float]], float], rates: Sequence[float] = RATES
) -> list[list[float]]:
    """What the network loses where one slot alone is pruned: [slot][rate], at least 0, never less at a lower rate.

    loss:  shares of all layers → how bad the network is with them, such as 1 − accuracy or a cross-entropy
    rates: descending, below 1
    """
    whole = loss(wall.shares_of_whole())
    table = []
    for j in range(len(wall.slots)):
        worst, row = 0.0, []
        for rate in rates:
            worst = max(worst, loss(wall.with_slot(j, rate)) - whole)
            row.append(worst)
        table.append(row)
    return table


def by_sensitivity(
    wall: BudgetWall, loss: Callable[[Sequence[float]], float], rates: Sequence[float] = RATES
) -> list[float]:
    """Shares of all layers: from the whole network the step down of least loss for what it saves, until it fits.

    Losses of single layers are taken to add up (as in Li et al. 2017, arXiv:1608.08710, whose rates were set by hand).
    Costs len(rates) · slots + 1 calls of `loss`. What the last step saved too much is given back by `wall.project`.
    Where even the lowest rate everywhere does not fit, rates are scaled down alike.
    """
    table = sensitivities(wall, loss, rates)
    steps = [-1] * len(wall.slots)  # index into `rates`; -1: whole

    def current() -> list[float]:
        return [1.0 if step < 0 else rates[step] for step in steps]

    def priced(j: int) -> float:
        """Loss for each unit of cost that the next step of slot j saves."""
        now, then = current(), current()
        then[j] = rates[steps[j] + 1]
        saved = wall.cost_at(now) - wall.cost_at(then)
        more = table[j][steps[j] + 1] - (table[j][steps[j]] if steps[j] >= 0 else 0.0)
        return more / saved if saved > 0 else float("inf")

    while not wall.allows(current()):
        open_slots = [j for j, step in enumerate(steps) if step + 1 < len(rates)]
        if not open_slots:
            break
        best = min(open_slots, key=priced)
        steps[best] += 1
    return wall.project(current())
