"""ATMC: pruning, factorisation and codebooks as constraints of adversarial training (arXiv:1902.03538, Algorithm 1).

min over θ = {U, V, C per weight} of the training loss, W = U V + C, subject to Σ ‖U‖₀ + ‖V‖₀ + ‖C‖₀ ≤ k over the whole
network and at most 2^b distinct nonzero values in each factor. Two parts of one schedule:

1. pruning: the l0 budget falls from dense to k. `hard`: θ is projected after every step, as published. `latent`: θ
   stays dense, the network runs with its k largest entries, and the gradient goes straight through to all of θ, so
   that pruned entries can return (Lin et al. 2020, arXiv:2006.07253). `fixed`: θ is projected once, before the first
   step, and its zeros stay zeros.
2. quantising: codebooks by ADMM, θ = z with z in the codebook set. `latent` freezes the support here, `hard` goes on
   projecting.

The paper's baselines are part 1 alone with plain W: Al0 `hard`, AP `fixed`, NAP `fixed` without attacks.

The end is a hard projection: what ships has at most k nonzeros and at most 2^b values in each factor, exactly.
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from atmc_tool import admm
from atmc_tool.budget import Budget, compressible, kept_for_bytes
from atmc_tool.codebooks import movement, positions, quantize
from atmc_tool.compressed import CompressedWeight
from atmc_tool.config import CompressConfig
from atmc_tool.factors import factorize, materialize, to_compressed
from atmc_tool.methods.method import one_cycle
from atmc_tool.projections import cubic_budget, straight_through_mask, top_k_masks

WARM_ITERATIONS = 10  # Lloyd iterations of an update that starts from the last codebook


class Atmc:
    """State of ATMC on `network`; factors stand for the compressed weights, the rest is trained in place."""

    def __init__(self, network: nn.Module, config: CompressConfig, budget: Budget) -> None:
        chosen, _ = compressible(network)
        self._config = config
        self._budget = budget
        self._shapes = {name: parameter.shape for name, parameter in chosen.items()}
        self._factors = {name: factorize(parameter, config.factors) for name, parameter in chosen.items()}
        self._rest = {name: p for name, p in network.named_parameters() if name not in chosen}
        self._flat = [t.requires_grad_() for factors in self._factors.values() for t in factors.values()]
        self._n_weights = sum(parameter.numel() for parameter in chosen.values())
        self._kept = budget.kept
        self._masks = [torch.ones_like(t, dtype=torch.bool) for t in self._flat]
        self._positions: list[Tensor] | None = None  # of what the masks keep, for as long as they stay as they are
        self._pruned = False  # the budget of `fixed` is met
        self._quantizing = False
        self._finished = False
        # made when quantising starts: until then they would only take memory, and bytes of checkpoints
        self._auxiliaries: list[Tensor] = []
        self._before: list[Tensor] = []
        self._duals: list[Tensor] = []
        self._centres: list[Tensor | None] = [None] * len(self._flat)
        self._centres_before = list(self._centres)

    @property
    def kept(self) -> int:
        """The number of entries that the budget allows."""
        return self._kept

    def parameters(self) -> list[Tensor]:
        return [*self._flat, *self._rest.values()]

    def _stage(self, progress: float) -> tuple[bool, float]:
        """(quantising?, position in [0, 1] within that part)."""
        start = 1 - self._config.quantize_share
        if progress < start or start == 1:
            return False, progress / start
        return True, (progress - start) / self._config.quantize_share

    def learning_rate(self, progress: float) -> float:
        quantizing, position = self._stage(progress)
        peak = self._config.quantize_lr if quantizing else self._config.lr
        return one_cycle(peak, self._config.warmup, position)

    def _named(self, flat: list[Tensor]) -> Iterator[tuple[str, dict[str, Tensor]]]:
        tensors = iter(flat)
        for name, factors in self._factors.items():
            yield name, {factor: next(tensors) for factor in factors}

    def _materialize(self, flat: list[Tensor]) -> dict[str, Tensor]:
        return {name: materialize(factors, self._shapes[name]) for name, factors in self._named(flat)}

    def weights(self, progress: float) -> dict[str, Tensor]:
        quantizing, position = self._stage(progress)
        if self._config.projection == "fixed" and not self._pruned:
            self._pruned = True
            self._meet_limit(self._n_weights)
            self._project(self._kept)
        if quantizing and not self._quantizing:
            self._start_quantizing()
        flat = self._flat
        if self._config.projection == "latent" and not quantizing:
            self._masks = top_k_masks(flat, self._path(position))
            flat = [straight_through_mask(t, mask) for t, mask in zip(flat, self._masks, strict=True)]
        return {**self._materialize(flat), **self._rest}

    def _path(self, position: float) -> int:
        path = self._config.path
        return cubic_budget(self._kept, self._n_weights, position / path if path else 1.0)

    @torch.no_grad()
    def _start_quantizing(self) -> None:
        self._quantizing = True
        self._meet_limit(self._n_weights if self._config.projection == "latent" else self._kept)
        self._project(self._kept)
        if self._config.bits is not None:
            self._duals = [torch.zeros_like(t) for t in self._flat]
            self._update_auxiliaries()
            self._before = self._auxiliaries

    @torch.no_grad()
    def _project(self, kept: int) -> None:
        self._masks, self._positions = top_k_masks(self._flat, kept), None
        for tensor, mask in zip(self._flat, self._masks, strict=True):
            tensor.mul_(mask)

    @torch.no_grad()
    def _update_auxiliaries(self) -> None:
        assert self._config.bits is not None
        self._before = self._auxiliaries
        self._centres_before = list(self._centres)
        self._auxiliaries = []
        if self._positions is None:
            self._positions = [positions(mask) for mask in self._masks]
        for i, (tensor, kept) in enumerate(zip(self._flat, self._positions, strict=True)):
            z, self._centres[i] = quantize(
                tensor + self._duals[i], kept, self._config.bits, self._centres[i], WARM_ITERATIONS
            )
            self._auxiliaries.append(z)

    def penalty(self, progress: float) -> Tensor | None:
        if not self._stage(progress)[0] or self._config.bits is None:
            return None
        return admm.penalty(self._flat, self._auxiliaries, self._duals, self._config.rho)

    @torch.no_grad()
    def after_step(self, progress: float, step: int) -> None:
        quantizing, position = self._stage(progress)
        if self._config.projection == "hard":
            self._project(self._kept if quantizing else self._path(position))
        elif quantizing or self._config.projection == "fixed":
            for tensor, mask in zip(self._flat, self._masks, strict=True):
                tensor.mul_(mask)
        if quantizing and self._config.bits is not None and step % self._config.codebook_interval == 0:
            self._update_auxiliaries()
            for tensor, z, dual, mask in zip(self._flat, self._auxiliaries, self._duals, self._masks, strict=True):
                admm.update_dual(tensor, z, dual, mask)

    @torch.no_grad()
    def _constrained(self, kept: int) -> list[Tensor]:
        """The factors projected on both constraints: at most `kept` nonzeros, at most 2^b values each."""
        masks = top_k_masks(self._flat, kept)
        if self._config.bits is None:
            return [t.detach() * mask for t, mask in zip(self._flat, masks, strict=True)]
        return [
            quantize(tensor.detach(), positions(mask), self._config.bits, centres)[0]
            for tensor, mask, centres in zip(self._flat, masks, self._centres, strict=True)
        ]

    def shipped(self, progress: float = 1.0) -> dict[str, Tensor]:
        rest = {name: p.detach() for name, p in self._rest.items()}
        if self._finished:
            flat = [t.detach() for t in self._flat]
        elif self._stage(progress)[0]:
            flat = self._constrained(self._kept)
        else:
            flat = [t.detach() * mask for t, mask in zip(self._flat, self._masks, strict=True)]
        return {**self._materialize(flat), **rest}

    def _meet_limit(self, most: int) -> None:
        """Choose the number of kept entries, at most `most`, so that the file fits the budget's bytes."""
        limit, measure = self._budget.limit, self._budget.measure
        if limit is not None and measure is not None:
            self._kept = kept_for_bytes(
                lambda kept: measure(self._compressed(self._constrained(kept))), limit, len(self._shapes), most
            )

    @torch.no_grad()
    def finish(self) -> None:
        self._meet_limit(self._kept)
        for tensor, constrained in zip(self._flat, self._constrained(self._kept), strict=True):
            tensor.copy_(constrained)
        self._masks = [t != 0 for t in self._flat]
        self._finished = True

    def _compressed(self, flat: list[Tensor]) -> dict[str, CompressedWeight]:
        quantized = self._config.bits is not None
        return {
            name: to_compressed(factors, self._shapes[name], quantized=quantized) for name, factors in self._named(flat)
        }

    def compressed(self) -> dict[str, CompressedWeight]:
        """The compressed weights by name, ready for a file; call after `finish`."""
        return self._compressed(self._flat)

    def metrics(self) -> dict[str, float]:
        kept = {"U": 0, "V": 0, "C": 0}
        masks = iter(self._masks)
        for factors in self._factors.values():
            for factor in factors:
                kept[factor] += int(next(masks).sum())
        total = sum(kept.values())
        result: dict[str, float] = {"kept": total, "density": total / self._n_weights}
        if self._config.factors == "uvc":
            result |= {f"kept_{name}": n for name, n in kept.items()}
        if self._quantizing and self._config.bits is not None:
            primal, dual = admm.residuals(self._flat, self._auxiliaries, self._before, self._config.rho)
            result |= {"primal_residual": primal, "dual_residual": dual}
            moved = movement(self._centres, self._centres_before)
            if moved is not None:
                result["codebook_movement"] = moved
        return result

    def state(self) -> dict[str, Any]:
        return {
            "factors": [t.detach() for t in self._flat],
            "masks": self._masks,
            "auxiliaries": self._auxiliaries,
            "before": self._before,
            "duals": self._duals,
            "centres": self._centres,
            "centres_before": self._centres_before,
            "kept": self._kept,
            "pruned": self._pruned,
            "quantizing": self._quantizing,
        }

    @torch.no_grad()
    def load_state(self, state: dict[str, Any]) -> None:
        for tensor, saved in zip(self._flat, state["factors"], strict=True):
            tensor.copy_(saved)
        device = self._flat[0].device
        self._masks, self._positions = [t.to(device) for t in state["masks"]], None
        self._auxiliaries = [t.to(device) for t in state["auxiliaries"]]
        self._before = [t.to(device) for t in state["before"]]
        self._duals = [t.to(device) for t in state["duals"]]
        self._centres, self._centres_before = (
            [None if t is None else t.to(device) for t in state[key]] for key in ("centres", "centres_before")
        )
        self._kept = state["kept"]
        self._pruned, self._quantizing = state["pruned"], state["quantizing"]
