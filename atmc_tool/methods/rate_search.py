"""HARP: how much each layer keeps and which of its weights are trained together (Zhao and Wressnegger 2023).

min over scores s and rates r of the adversarial loss of W·m + γ·max(kept(r) / budget − 1, 0), with a_l = g(r_l) in
(a_min, 1) the share that layer l keeps, g(r) = (1 − a_min)·σ(r) + a_min, and m_l the mask of its largest |s_l|
(arXiv:2412.14714, equations 2 to 5). The gradient goes straight through the mask: ∂L/∂s = sign(s)·∂L/∂m and
∂L/∂a_l = Σ ∂L/∂m over the entries of the layer. γ is small at first, so that robustness comes first, grows in equal
steps until the budget is met, and then stays.

What is found is scaled to the budget, which it then meets exactly.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from atmc_tool.config import CompressConfig
from atmc_tool.methods.score_search import ScoreSearch
from atmc_tool.search.budget_wall import BudgetWall
from atmc_tool.search.layers import Layer, cost_of, kept_units
from atmc_tool.selection import Selection

LEAST = 0.1  # a_min, as a share of the budget's share
GROWTHS = 20  # of γ in a search; the paper's is an epoch of 20


class _RatedMask(torch.autograd.Function):
    @staticmethod
    def forward(scores: Tensor, rate: Tensor, weight: Tensor, mask: Tensor) -> Tensor:  # noqa: ARG004
        return weight * mask

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor, Tensor], _output: Tensor) -> None:
        scores, _, weight, _ = inputs
        ctx.save_for_backward(scores, weight)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, None, None]:
        scores, weight = ctx.saved_tensors
        of_mask = gradients[0] * weight
        return scores.sign() * of_mask, of_mask.sum(), None, None


class RateSearch(ScoreSearch):
    """Scores as in HYDRA, and a rate for every slot of layers whose share the configuration leaves open.

    layers: of the factor tensors `flat`, in their order
    kept:   entries that the budget allows
    """

    def __init__(
        self,
        flat: Sequence[Tensor],
        selection: Selection,
        layers: Sequence[Layer],
        config: CompressConfig,
        kept: int,
    ) -> None:
        super().__init__(flat, selection)
        self._config = config
        self._layers = list(layers)
        self._total = sum(layer.weights for layer in layers)
        structure = selection.structure
        stated = {i: share for i, share in enumerate(selection.shares) if share is not None}
        self._open = [i for i in range(len(layers)) if i not in stated]
        self._cost = cost_of([layers[i] for i in self._open], structure, "weights")
        self._taken = cost_of([layers[i] for i in stated], structure, "weights")(
            [kept_units(layers[i], structure, share) for i, share in stated.items()]
        )
        wall = self._wall(kept)
        self._slots = wall.slots
        self._slot_of = {self._open[i]: j for j, slot in enumerate(wall.slots) for i in slot}
        share = kept / self._total
        self._least = LEAST * share
        # halfway, in logarithms, from all entries to the budget: 0.1 on the way to 0.01
        start = torch.tensor([(share**0.5 - self._least) / (1 - self._least)], device=flat[0].device).clamp(
            1e-4, 0.9999
        )
        self._raw = torch.logit(start).repeat(len(self._slots)).requires_grad_()
        self._kept = kept
        self._stage, self._met = 0, False

    def _wall(self, kept: int) -> BudgetWall:
        """The budget of what is open: what is left of it after the shares that are stated.

        Below what one unit of each layer costs it is that, as in every method.
        """
        whole = BudgetWall([self._layers[i] for i in self._open], self._selection.structure, self._cost, self._total)
        least = whole.cost_at([0.0] * len(whole.slots))
        return replace(whole, limit=max(kept - self._taken, least))

    def parameters(self) -> list[Tensor]:
        return [*super().parameters(), self._raw]

    def rates(self) -> Tensor:
        """a (slots,): the shares that the slots keep."""
        return (1 - self._least) * self._raw.sigmoid() + self._least

    def _shares(self, rates: Mapping[int, float]) -> list[float | None]:
        """Shares of all tensors, of which `rates` says the open ones by position."""
        return [rates.get(i, share) for i, share in enumerate(self._selection.shares)]

    def effective(self, kept: int) -> list[Tensor]:
        self._kept = kept
        rates = self.rates()
        values = rates.detach().tolist()
        shares = self._shares({i: values[j] for i, j in self._slot_of.items()})
        self._masks = replace(self._selection, shares=shares, kept=kept).masks(self._scores, kept)
        one = rates.new_ones(())
        rated: list[Tensor] = []
        for i, (scores, tensor, mask) in enumerate(zip(self._scores, self._flat, self._masks, strict=True)):
            rate = rates[self._slot_of[i]] if i in self._slot_of else one
            rated.append(_RatedMask.apply(scores, rate, tensor.detach(), mask))  # type: ignore[no-untyped-call]
        return rated

    def _used(self) -> Tensor:
        """Entries that are kept, before the rates are rounded to units: a scalar."""
        weights = [sum(self._layers[self._open[i]].weights for i in slot) for slot in self._slots]
        rates = self.rates()
        return self._taken + (rates * rates.new_tensor(weights)).sum()

    @property
    def _gamma(self) -> float:
        return self._config.budget_weight * (1 + self._stage)

    def penalty(self) -> Tensor | None:
        """γ·max(kept(r) / budget − 1, 0)."""
        return self._gamma * (self._used() / self._kept - 1).clamp(min=0)

    @torch.no_grad()
    def after_step(self, kept: int, position: float) -> None:
        self._met = self._met or float(self._used()) <= kept
        if not self._met:
            self._stage = int(GROWTHS * position)

    def allotted(self, selection: Selection, kept: int) -> Selection:
        """`selection` with the rates scaled to a budget of `kept` entries."""
        found = self._wall(kept).project(self.rates().detach().tolist())
        return replace(selection, shares=self._shares(dict(zip(self._open, found, strict=True))), kept=kept)

    def restart(self) -> None:
        super().restart()
        self._stage, self._met = 0, False

    def metrics(self) -> dict[str, float]:
        rates = self.rates().detach()
        if not len(rates):
            return {}
        return {
            "rate_min": float(rates.min()),
            "rate_max": float(rates.max()),
            "budget_used": float(self._used().detach()) / self._kept,
            "budget_weight": self._gamma,
        }

    def state(self) -> dict[str, Any]:
        return {
            **super().state(),
            "rates": self._raw.detach(),
            "stage": self._stage,
            "met": self._met,
            "kept": self._kept,
        }

    @torch.no_grad()
    def load_state(self, state: dict[str, Any]) -> None:
        super().load_state(state)
        self._raw.copy_(state["rates"])
        self._stage, self._met, self._kept = state["stage"], state["met"], state["kept"]
