"""How the entries to keep are found: the hooks of a search, and the two that train the weights themselves.

A search works on the factor tensors θ (m, n) of the compressed weights. When its part of the schedule ends, what its
importance ranks highest is kept for good.
"""

from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from atmc_tool.projections import straight_through_mask
from atmc_tool.selection import Selection


class Search(Protocol):
    """A search for the entries to keep. `kept` is the budget of the moment, `position` runs from 0 to 1 in its part."""

    trains_weights: bool  # or only what the search itself adds

    def parameters(self) -> list[Tensor]:
        """What is trained beside the factors."""
        ...

    def effective(self, kept: int) -> list[Tensor]:
        """The factors that the network runs with in this step; differentiable in what is trained."""
        ...

    def masks(self) -> list[Tensor]:
        """What is kept right now: what the network runs with, or what it would keep if the search ended here."""
        ...

    def penalty(self) -> Tensor | None:
        """A term to add to the loss."""
        ...

    def after_step(self, kept: int, position: float) -> None:
        """After the optimiser's step."""
        ...

    def importance(self) -> list[Tensor]:
        """By which `Selection` ranks, the larger the magnitude the better."""
        ...

    def allotted(self, selection: Selection, kept: int) -> Selection:
        """`selection` with the shares that the search has found for a budget of `kept` entries, where it finds any."""
        ...

    def restart(self) -> None:
        """Another round begins."""
        ...

    def metrics(self) -> dict[str, float]:
        """Numbers for the log."""
        ...

    def state(self) -> dict[str, Any]:
        """For a checkpoint."""
        ...

    def load_state(self, state: dict[str, Any]) -> None:
        """Continue from what `state` returned."""
        ...


class Fixed:
    """No search: what is largest at the start is kept. The others change what it does."""

    trains_weights = True

    def __init__(self, flat: Sequence[Tensor], selection: Selection, importance: Sequence[Tensor]) -> None:
        self._flat = list(flat)
        self._selection = selection
        self._importance = list(importance)
        self._masks = [torch.ones_like(t, dtype=torch.bool) for t in flat]

    def parameters(self) -> list[Tensor]:
        return []

    def effective(self, kept: int) -> list[Tensor]:  # noqa: ARG002
        return self._flat

    def masks(self) -> list[Tensor]:
        return self._masks

    def penalty(self) -> Tensor | None:
        return None

    def after_step(self, kept: int, position: float) -> None:
        pass

    def importance(self) -> list[Tensor]:
        return self._importance

    def allotted(self, selection: Selection, kept: int) -> Selection:  # noqa: ARG002
        return selection

    def restart(self) -> None:
        pass

    def metrics(self) -> dict[str, float]:
        return {}

    def state(self) -> dict[str, Any]:
        return {"masks": self._masks}

    def load_state(self, state: dict[str, Any]) -> None:
        self._masks = [mask.to(t.device) for mask, t in zip(state["masks"], self._flat, strict=True)]


class Latent(Fixed):
    """θ stays dense; the network runs with what the budget keeps of it, and the gradient goes straight to all of θ.

    So pruned entries can return. Lin et al. 2020 (arXiv:2006.07253).
    """

    def effective(self, kept: int) -> list[Tensor]:
        self._masks = self._selection.masks(self._importance, kept)
        return [straight_through_mask(t, mask) for t, mask in zip(self._flat, self._masks, strict=True)]


class Hard(Fixed):
    """θ is projected after every step, as published (arXiv:1902.03538, Algorithm 1, line 5)."""

    @torch.no_grad()
    def after_step(self, kept: int, position: float) -> None:  # noqa: ARG002
        self._masks = self._selection.masks(self._importance, kept)
        for tensor, mask in zip(self._flat, self._masks, strict=True):
            tensor.mul_(mask)
