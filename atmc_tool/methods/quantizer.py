"""Codebooks by ADMM (arXiv:1902.03538, Algorithm 1): θ = z with z in the codebook set, on a support that is given.

min f(θ) + rho/2·‖θ − z + u‖²; every so many steps z ← the nearest to θ + u with at most 2^b values, u ← u + θ − z.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from atmc_tool import admm
from atmc_tool.codebooks import movement, positions, quantiles, quantize
from atmc_tool.half_precision import half_values

WARM_ITERATIONS = 10  # Lloyd iterations of an update that starts from the last codebook
BITS_UNTIL_CHOSEN = 4  # of `bits: auto`, before its part of the schedule


class Quantizer:
    """Auxiliaries z, duals u and codebooks of the factor tensors `flat`, each with its own number of bits."""

    def __init__(self, flat: Sequence[Tensor], bits: Sequence[int], rho: float) -> None:
        self.bits = list(bits)
        self._flat = list(flat)
        self._rho = rho
        # made when quantising starts: until then they would only take memory, and bytes of checkpoints
        self._auxiliaries: list[Tensor] = []
        self._before: list[Tensor] = []
        self._duals: list[Tensor] = []
        self._centres: list[Tensor | None] = [None] * len(self._flat)
        self._centres_before = list(self._centres)
        self._kept: tuple[Sequence[Tensor], list[Tensor]] | None = None  # the masks of the last update, and where

    def start(self, masks: Sequence[Tensor]) -> None:
        """The first codebooks; duals are 0."""
        self._duals = [torch.zeros_like(t) for t in self._flat]
        self._project(masks)
        self._before = self._auxiliaries

    def update(self, masks: Sequence[Tensor]) -> None:
        """New codebooks, then the duals."""
        self._project(masks)
        for tensor, z, dual, mask in zip(self._flat, self._auxiliaries, self._duals, masks, strict=True):
            admm.update_dual(tensor, z, dual, mask)

    @torch.no_grad()
    def _project(self, masks: Sequence[Tensor]) -> None:
        self._before = self._auxiliaries
        self._centres_before = list(self._centres)
        self._auxiliaries = []
        if self._kept is None or self._kept[0] is not masks:  # to find positions, the host waits for a GPU
            self._kept = masks, [positions(mask) for mask in masks]
        for i, (tensor, kept) in enumerate(zip(self._flat, self._kept[1], strict=True)):
            z, self._centres[i] = quantize(
                tensor + self._duals[i], kept, self.bits[i], self._centres[i], WARM_ITERATIONS
            )
            self._auxiliaries.append(z)

    def penalty(self) -> Tensor:
        """rho/2·Σ ‖θ − z + u‖²."""
        return admm.penalty(self._flat, self._auxiliaries, self._duals, self._rho)

    @torch.no_grad()
    def quantized(self, masks: Sequence[Tensor], bits: Sequence[int]) -> list[Tensor]:
        """What the masks keep of θ, in codebooks of `bits`, their values of half precision where that is exact enough.

        Before there are any, they start from quantiles: only the size of the result counts then.
        """
        result = []
        for tensor, mask, b, centres in zip(self._flat, masks, bits, self._centres, strict=True):
            kept, start = positions(mask), centres
            if start is None and len(kept):
                start = quantiles(tensor.detach().reshape(-1)[kept], 2**b)
            result.append(half_values(quantize(tensor.detach(), kept, b, start)[0]))
        return result

    def metrics(self) -> dict[str, float]:
        """Residuals, and how far the codebooks moved at their last update."""
        if not self._auxiliaries:
            return {}
        primal, dual = admm.residuals(self._flat, self._auxiliaries, self._before, self._rho)
        moved = movement(self._centres, self._centres_before)
        return {
            "primal_residual": primal,
            "dual_residual": dual,
            **({} if moved is None else {"codebook_movement": moved}),
        }

    def state(self) -> dict[str, Any]:
        """For a checkpoint."""
        return {
            "bits": self.bits,
            "auxiliaries": self._auxiliaries,
            "before": self._before,
            "duals": self._duals,
            "centres": self._centres,
            "centres_before": self._centres_before,
        }

    def load_state(self, state: dict[str, Any]) -> None:
        """Continue from what `state` returned."""
        device = self._flat[0].device
        self.bits, self._kept = state["bits"], None
        self._auxiliaries, self._before, self._duals = (
            [t.to(device) for t in state[key]] for key in ("auxiliaries", "before", "duals")
        )
        self._centres, self._centres_before = (
            [None if t is None else t.to(device) for t in state[key]] for key in ("centres", "centres_before")
        )
