"""ATMC and every method that prunes: constraints of one adversarial training (arXiv:1902.03538, Algorithm 1).

min over θ = {U, V, C per weight} of the training loss, W = U V + C, subject to Σ ‖U‖₀ + ‖V‖₀ + ‖C‖₀ ≤ k and at most 2^b
distinct nonzero values in each factor. The schedule has parts (`parts.py`):

1. search: what to keep is looked for by one of the searches: `latent` or `hard` projection of the weights, `admm`
   (R-ADMM, arXiv:1903.12561), `scores` (HYDRA, arXiv:2002.10509) or `rates` (HARP, arXiv:2412.14714). What counts
   together, and whether the budget is one for the network or one per layer, is a `Selection`.
2. retrain: what was found is kept, its complement is zero for good. `fixed` begins here, with what is largest.
3. quantise: codebooks by ADMM, θ = z with z in the codebook set, on the support that was found. `hard` goes on
   projecting instead.

So ATMC is 1 and 3; Al0, AP, NAP, LWM, R-ADMM, HYDRA and HARP are 1 and 2 with plain W, and take 3 where bits are asked
for.

The end is a hard projection: what ships has at most k nonzeros and at most 2^b values in each factor, exactly.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from atmc_tool.bit_allocation import nominal_bits, size_projections
from atmc_tool.budget import Budget, compressible, kept_for_bytes
from atmc_tool.compressed import CompressedWeight
from atmc_tool.config import CompressConfig
from atmc_tool.factors import factorize, materialize, to_compressed
from atmc_tool.methods.admm_search import AdmmSearch
from atmc_tool.methods.method import learning_rate
from atmc_tool.methods.parts import Part, part_at, parts
from atmc_tool.methods.quantizer import BITS_UNTIL_CHOSEN, Quantizer
from atmc_tool.methods.rate_search import RateSearch
from atmc_tool.methods.score_search import ScoreSearch
from atmc_tool.methods.search import Fixed, Hard, Latent, Search
from atmc_tool.projections import cubic_budget
from atmc_tool.search.layers import layers_of
from atmc_tool.selection import Selection, layer_rate, layer_shares
from atmc_tool.structures import batch_norms


class Atmc:
    """State of a pruning method on `network`; factors stand for the compressed weights, the rest is trained in place.

    image_shape: (C, H, W), needed by `bn-filter` and `rates` alone
    """

    def __init__(
        self, network: nn.Module, config: CompressConfig, budget: Budget, image_shape: Sequence[int] = ()
    ) -> None:
        chosen, _ = compressible(network)
        self._config = config
        self._budget = budget
        self._shapes = {name: parameter.shape for name, parameter in chosen.items()}
        self._factors = {name: factorize(parameter, config.factors, config.start) for name, parameter in chosen.items()}
        self._rest = {name: p for name, p in network.named_parameters() if name not in chosen}
        self._flat = [t.requires_grad_() for factors in self._factors.values() for t in factors.values()]
        self._n_weights = sum(parameter.numel() for parameter in chosen.values())
        self._kept = budget.kept
        self._quantizer = Quantizer(self._flat, self._bits(), config.rho)
        norms = batch_norms(network, image_shape) if config.structure == "bn-filter" else {}
        self._scales = [self._rest[norms[name]] if name in norms else None for name in chosen] if norms else []
        self._selection = Selection(
            config.structure,
            config.scope,
            [shape for name, shape in self._shapes.items() for _ in self._factors[name]],
            layer_shares(self._shapes, config.structure, config.layers, norms),
            self._n_weights,
            self._kept,
        )
        if config.projection == "rates":
            layers = {layer.name: layer for layer in layers_of(network, image_shape)}
            self._search: Search = RateSearch(
                self._flat, self._selection, [layers[name] for name in chosen], config, self._kept
            )
        else:
            self._search = _search(self._flat, self._scales, self._selection, config)
        self._parts = parts(config)
        self._entered = -1  # index of the part that the last step was in
        self._masks: list[Tensor] | None = None  # what the last search found
        self._found = False  # whether that was the search for the budget itself, not one of a round before
        self._started = [t != 0 for t in self._flat] if config.keep_zeros else None
        self._finished = False

    def _bits(self) -> list[int]:
        """Bits of the codebook of every factor."""
        config = self._config
        default = BITS_UNTIL_CHOSEN if config.bits == "auto" else config.bits or 0
        stated = {name: layer_rate(name, config.layers) for name in self._factors}
        return [
            default if (rate := stated[name]) is None else rate.bits or default
            for name, factors in self._factors.items()
            for _ in factors
        ]

    @property
    def kept(self) -> int:
        """The number of entries that the budget allows."""
        return self._kept

    def parameters(self) -> list[Tensor]:
        return [*self._flat, *self._rest.values(), *self._search.parameters()]

    def learning_rate(self, progress: float) -> float:
        part = self._parts[part_at(self._parts, progress)]
        return learning_rate(self._config, part.peak, part.position(progress))

    def _named(self, flat: list[Tensor]) -> Iterator[tuple[str, dict[str, Tensor]]]:
        tensors = iter(flat)
        for name, factors in self._factors.items():
            yield name, {factor: next(tensors) for factor in factors}

    def _materialize(self, flat: list[Tensor]) -> dict[str, Tensor]:
        return {name: materialize(factors, self._shapes[name]) for name, factors in self._named(flat)}

    def weights(self, progress: float) -> dict[str, Tensor]:
        index = part_at(self._parts, progress)
        while self._entered < index:  # a time limit may jump over a part
            self._entered += 1
            self._enter(self._parts[self._entered])
        part = self._parts[index]
        if part.kind != "search":
            return {**self._materialize(self._flat), **self._rest}
        rest: dict[str, Tensor] = dict(self._rest)
        if not self._search.trains_weights:
            rest = {name: p.detach() if self._belongs_to_weight(name) else p for name, p in rest.items()}
        return {**self._materialize(self._search.effective(self._target(part, progress))), **rest}

    def _belongs_to_weight(self, name: str) -> bool:
        """Whether `name` is the bias of a layer whose weight is compressed."""
        return name.endswith("bias") and f"{name.removesuffix('bias')}weight" in self._shapes

    def _target(self, part: Part, progress: float) -> int:
        """Entries to keep at `progress` of a search."""
        kept, path = self._kept, self._config.path
        if part.budget < 1:
            kept = round(self._n_weights * (kept / self._n_weights) ** part.budget)
        return cubic_budget(kept, self._n_weights, part.position(progress) / path if path else 1.0)

    @torch.no_grad()
    def _enter(self, part: Part) -> None:
        before = self._parts[self._entered - 1] if self._entered else None
        after_search = before is not None and before.kind == "search"
        if part.kind == "search":
            if before is not None:
                if after_search:
                    self._project(self._target(before, before.end), self._search.importance())
                self._search.restart()
            return
        hard, auto = self._config.projection == "hard", part.kind == "quantize" and self._config.bits == "auto"
        if part.kind == "retrain" or (after_search and not (auto and self._bits_choose)) or (hard and not auto):
            if part.budget == 1:
                self._meet_limit(self._kept if hard else self._n_weights)
            self._project(self._target(part, part.end), self._search.importance())
            self._found = part.budget == 1
        if auto:
            self._choose_bits()
        if part.kind == "quantize" and self._config.bits is not None:
            assert self._masks is not None
            self._quantizer.start(self._masks)

    @property
    def _bits_choose(self) -> bool:
        """Whether `bits: auto` alone says what is kept: single entries of the whole network, by their magnitude."""
        return (self._selection.structure, self._selection.scope) == ("irregular", "global") and (
            self._config.projection not in ("scores", "rates")
        )

    def _select(self, selection: Selection, importance: Sequence[Tensor], kept: int) -> list[Tensor]:
        masks = self._search.allotted(selection, kept).masks(importance, kept)
        if self._started is None:
            return masks
        return [mask & started for mask, started in zip(masks, self._started, strict=True)]

    @torch.no_grad()
    def _project(self, kept: int, importance: Sequence[Tensor]) -> None:
        self._masks = self._select(self._selection, importance, kept)
        self._apply(self._masks)

    def _choose_bits(self) -> None:
        """Support and bits of every factor, the nearest to the weights whose file or nominal size is within the limit.

        Found by bisection over nominal sizes where the limit is one in bytes of the file.
        """
        limit, measure = self._budget.limit, self._budget.measure
        assert limit is not None
        assert measure is not None
        project = size_projections(self._flat)

        def size_of(budget: int) -> int:
            if (found := project(budget)) is None:
                return 0
            return measure(self._compressed(self._quantizer.quantized(*found)))

        least = nominal_bits([1] * len(self._flat), [1] * len(self._flat))
        most = 8 * limit if self._config.nominal_size else 16 * limit  # a file may be smaller than its nominal size
        found = project(kept_for_bytes(size_of, limit, least, most))
        assert found is not None
        self._masks, self._quantizer.bits = found
        self._kept, self._found = sum(int(mask.sum()) for mask in self._masks), True
        self._apply(self._masks)

    def _apply(self, masks: Sequence[Tensor]) -> None:
        for i, (tensor, mask) in enumerate(zip(self._flat, masks, strict=True)):
            tensor.mul_(mask)
            if self._scales and (scale := self._scales[i]) is not None:
                scale.mul_(mask.any(1))

    def _quantizes(self, progress: float) -> bool:
        return self._config.bits is not None and self._parts[part_at(self._parts, progress)].kind == "quantize"

    def penalty(self, progress: float) -> Tensor | None:
        if self._quantizes(progress):
            return self._quantizer.penalty()
        return self._search.penalty() if self._parts[part_at(self._parts, progress)].kind == "search" else None

    @torch.no_grad()
    def after_step(self, progress: float, step: int) -> None:
        part = self._parts[part_at(self._parts, progress)]
        if part.kind == "search":
            self._search.after_step(self._target(part, progress), part.position(progress))
            zeros = self._started if self._masks is None else self._masks
            if zeros is not None:  # what was pruned before stays so
                self._apply(zeros)
        elif self._config.projection == "hard" and part.kind == "quantize" and self._config.bits != "auto":
            self._project(self._kept, self._flat)
        else:
            assert self._masks is not None
            self._apply(self._masks)
        if self._quantizes(progress) and step % self._config.codebook_interval == 0:
            assert self._masks is not None
            self._quantizer.update(self._masks)

    @torch.no_grad()
    def _constrained(self, kept: int) -> list[Tensor]:
        """The factors projected on both constraints: what a budget of `kept` keeps, at most 2^b values each."""
        if self._found and self._masks is not None and kept == self._kept:
            masks = self._masks
        else:
            importance = self._flat if self._found else self._search.importance()
            masks = self._select(replace(self._selection, kept=kept), importance, kept)
        if self._config.bits is None:
            return [t.detach() * mask for t, mask in zip(self._flat, masks, strict=True)]
        return self._quantizer.quantized(masks, self._quantizer.bits)

    def shipped(self, progress: float = 1.0) -> dict[str, Tensor]:
        rest = {name: p.detach() for name, p in self._rest.items()}
        kind = self._parts[part_at(self._parts, progress)].kind
        if self._finished:
            flat = [t.detach() for t in self._flat]
        elif kind == "quantize":
            flat = self._constrained(self._kept)
        else:
            masks = self._search.masks() if kind == "search" or self._masks is None else self._masks
            flat = [t.detach() * mask for t, mask in zip(self._flat, masks, strict=True)]
        return {**self._materialize(flat), **rest}

    def _meet_limit(self, most: int) -> None:
        """Choose the number of kept entries, at most `most`, so that the file fits the budget's bytes."""
        limit, measure = self._budget.limit, self._budget.measure
        if limit is not None and measure is not None:
            self._kept = kept_for_bytes(
                lambda kept: measure(self._compressed(self._constrained(kept))), limit, len(self._shapes), most
            )
            self._selection = replace(self._selection, kept=self._kept)

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
        part = self._parts[max(0, self._entered)]
        masks = iter(self._search.masks() if part.kind == "search" or self._masks is None else self._masks)
        kept = {"U": 0, "V": 0, "C": 0}
        for factors in self._factors.values():
            for factor in factors:
                kept[factor] += int(next(masks).sum())
        total = sum(kept.values())
        result: dict[str, float] = {"kept": total, "density": total / self._n_weights}
        if self._config.factors != "none":
            result |= {f"kept_{name}": n for name, n in kept.items()}
        if part.kind == "search":
            result |= self._search.metrics()
        result |= self._quantizer.metrics()
        return result

    def state(self) -> dict[str, Any]:
        return {
            "factors": [t.detach() for t in self._flat],
            "search": self._search.state(),
            "masks": self._masks,
            "found": self._found,
            "quantizer": self._quantizer.state(),
            "kept": self._kept,
            "entered": self._entered,
        }

    @torch.no_grad()
    def load_state(self, state: dict[str, Any]) -> None:
        for tensor, saved in zip(self._flat, state["factors"], strict=True):
            tensor.copy_(saved)
        device = self._flat[0].device
        self._search.load_state(state["search"])
        self._masks = None if state["masks"] is None else [t.to(device) for t in state["masks"]]
        self._quantizer.load_state(state["quantizer"])
        self._kept, self._entered, self._found = state["kept"], state["entered"], state["found"]
        self._selection = replace(self._selection, kept=self._kept)


def _search(
    flat: Sequence[Tensor], scales: Sequence[Tensor | None], selection: Selection, config: CompressConfig
) -> Search:
    """The search that `config.projection` names; a batch norm's scale ranks the filters of its layer."""
    importance = [t if scale is None else scale for t, scale in zip(flat, scales or [None] * len(flat), strict=True)]
    if config.projection == "admm":
        return AdmmSearch(flat, selection, importance, config)
    if config.projection == "scores":
        return ScoreSearch(flat, selection)
    kinds = {"latent": Latent, "hard": Hard, "fixed": Fixed}
    return kinds[config.projection](flat, selection, importance)
