"""R-ADMM: adversarial training with weights drawn towards a structured sparse set (Ye et al. 2019, arXiv:1903.12561).

min f(θ) + rho/2·‖θ − z + u‖² with z in the set; now and then z ← P(θ + u), u ← u + θ − z, and rho grows. θ stays dense
until the search ends. For `bn-filter` θ is the scale of the batch norms, for every other structure the weights.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from atmc_tool import admm
from atmc_tool.config import CompressConfig
from atmc_tool.methods.search import Fixed
from atmc_tool.selection import Selection


class AdmmSearch(Fixed):
    """Auxiliaries z and scaled duals u of θ, `config.dual_updates` updates of them, at equal distances.

    The published code let u keep its graph, so that after n updates the gradient of the penalty was (n + 1) times as
    large; `config.rho_compounding` does that on purpose.
    """

    def __init__(
        self, flat: Sequence[Tensor], selection: Selection, importance: Sequence[Tensor], config: CompressConfig
    ) -> None:
        super().__init__(flat, selection, importance)
        self._config = config
        self._updates = -1  # so many updates were made; below 0: z is still to be made
        self._auxiliaries = [torch.zeros_like(t) for t in importance]
        self._before = [t.clone() for t in self._auxiliaries]
        self._duals = [t.clone() for t in self._auxiliaries]

    @property
    def _rho(self) -> float:
        """rho of the moment; grows with every update of the dual, but for the first."""
        updates = max(0, self._updates)
        compounded = updates + 1 if self._config.rho_compounding else 1
        return self._config.search_rho * self._config.rho_growth**updates * compounded

    def effective(self, kept: int) -> list[Tensor]:
        if self._updates < 0:
            self._updates = 0
            self._project(kept)
            self._before = self._auxiliaries
        return self._flat

    @torch.no_grad()
    def _project(self, kept: int) -> None:
        """z ← P(θ + u), and what of θ itself would be kept."""
        self._before = self._auxiliaries
        shifted = [t + dual for t, dual in zip(self._importance, self._duals, strict=True)]
        masks = self._selection.masks(shifted, kept)
        if self._selection.structure == "bn-filter":
            units = self._selection.units(shifted, kept)
            masks = [u if t.dim() == 1 else mask for t, u, mask in zip(shifted, units, masks, strict=True)]
        self._auxiliaries = [t * mask for t, mask in zip(shifted, masks, strict=True)]
        self._masks = self._selection.masks(self._importance, kept)

    def penalty(self) -> Tensor | None:
        return admm.penalty(self._importance, self._auxiliaries, self._duals, self._rho)

    @torch.no_grad()
    def after_step(self, kept: int, position: float) -> None:
        while self._updates < int(position * (self._config.dual_updates + 1)):
            self._updates += 1
            if not self._config.rho_compounding:
                for dual in self._duals:  # it is divided by rho, which has grown (Boyd et al. 2011, section 3.4.1)
                    dual.div_(self._config.rho_growth)
            self._project(kept)
            for tensor, z, dual in zip(self._importance, self._auxiliaries, self._duals, strict=True):
                dual.add_(tensor).sub_(z)

    def restart(self) -> None:
        self._updates = -1
        self._duals = [torch.zeros_like(dual) for dual in self._duals]

    def metrics(self) -> dict[str, float]:
        primal, dual = admm.residuals(self._importance, self._auxiliaries, self._before, self._rho)
        return {"primal_residual": primal, "dual_residual": dual, "rho": self._rho}

    def state(self) -> dict[str, Any]:
        return {
            **super().state(),
            "updates": self._updates,
            "auxiliaries": self._auxiliaries,
            "before": self._before,
            "duals": self._duals,
        }

    def load_state(self, state: dict[str, Any]) -> None:
        super().load_state(state)
        self._updates = state["updates"]
        device = self._flat[0].device
        self._auxiliaries, self._before, self._duals = (
            [t.to(device) for t in state[key]] for key in ("auxiliaries", "before", "duals")
        )
