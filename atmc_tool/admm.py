"""ADMM in scaled form (Boyd et al. 2011, section 3.1.1) for weights that must lie in a set.

min f(θ) subject to θ = z, z in S. `weight` θ, `auxiliary` z, `dual` u (already divided by the penalty `rho`).
"""

from collections.abc import Sequence

import torch
from torch import Tensor


def penalty(weights: Sequence[Tensor], auxiliaries: Sequence[Tensor], duals: Sequence[Tensor], rho: float) -> Tensor:
    """rho/2 · Σ ‖θ − z + u‖², a scalar; its gradient in θ is rho·(θ − z + u) (Boyd et al., equation 3.5)."""
    terms = [
        (weight - auxiliary + dual).square().sum()
        for weight, auxiliary, dual in zip(weights, auxiliaries, duals, strict=True)
    ]
    return rho / 2 * torch.stack(terms).sum()


@torch.no_grad()
def update_dual(weight: Tensor, auxiliary: Tensor, dual: Tensor, mask: Tensor) -> None:
    """u ← u + θ − z under the mask, 0 elsewhere, in place (equation 3.7). Never part of an autograd graph."""
    dual.add_(weight).sub_(auxiliary).mul_(mask)


@torch.no_grad()
def residuals(
    weights: Sequence[Tensor], auxiliaries: Sequence[Tensor], before: Sequence[Tensor], rho: float
) -> tuple[float, float]:
    """Primal ‖θ − z‖ / ‖θ‖ and dual rho·‖z − z_before‖ / ‖θ‖ residuals, relative to the weights (section 3.3)."""
    size = torch.stack([weight.square().sum() for weight in weights]).sum().sqrt().clamp(min=1e-12)
    primal = torch.stack([(w - z).square().sum() for w, z in zip(weights, auxiliaries, strict=True)]).sum().sqrt()
    dual = torch.stack([(z - b).square().sum() for z, b in zip(auxiliaries, before, strict=True)]).sum().sqrt()
    return float(primal / size), float(rho * dual / size)
