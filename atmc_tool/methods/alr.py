"""ALR: adversarial training of low-rank weights, one of the baselines of arXiv:1902.03538.

Each weight W (m × n) is B A with B m × r and A r × n. The ranks come from the singular values of all weights pooled:
the largest are kept, as many as the budget allows, and at least one of each weight; or a strategy states them. B and A
are then trained.

In files B A is (I + U) V with U = B − I in r columns and V = A in r rows where m ≤ n, else U (I + V) alike.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from atmc_tool.budget import Budget, compressible, kept_for_bytes
from atmc_tool.compressed import CompressedWeight
from atmc_tool.config import CompressConfig
from atmc_tool.factors import main_factor, to_compressed
from atmc_tool.methods.method import learning_rate
from atmc_tool.selection import layer_rate


def entries(m: int, n: int, rank: int) -> int:
    """Entries of an m × n weight of rank `rank`: r·(m + n), or m·n where that is fewer, for then it stays as it is."""
    return min(rank * (m + n), m * n)


def pooled_ranks(spectra: Mapping[str, Tensor], shapes: Mapping[str, tuple[int, int]], kept: int) -> dict[str, int]:
    """The rank of each weight: its singular values among the largest of all, as long as all entries are at most `kept`.

    Ranks grow by one in the order of the singular values, until the first that the budget does not allow.

    Args:
        spectra: name → singular values of the weight, descending.
        shapes: name → (m, n).
        kept: at least Σ (m + n).
    """
    ranks = dict.fromkeys(spectra, 1)
    total = sum(entries(*shapes[name], 1) for name in spectra)
    rest = [(value, name) for name, values in spectra.items() for value in values[1:].tolist()]
    for _, name in sorted(rest, key=lambda pair: -pair[0]):
        more = entries(*shapes[name], ranks[name] + 1) - entries(*shapes[name], ranks[name])
        if total + more > kept:
            break
        ranks[name] += 1
        total += more
    return ranks


def rank_of_share(m: int, n: int, share: float) -> int:
    """The largest rank at which an m × n weight keeps at most that share of its entries; at least 1.

    Of a share of 1 the full rank, at which the weight stays as it is.
    """
    return min(m, n) if share == 1 else max(1, min(int(share * m * n) // (m + n), min(m, n)))


class Alr:
    """State of ALR on `network`; `rank → factors` for the compressed weights, the rest is trained in place."""

    def __init__(self, network: nn.Module, config: CompressConfig, budget: Budget) -> None:
        chosen, _ = compressible(network)
        self._config = config
        self._shapes = {name: parameter.shape for name, parameter in chosen.items()}
        self._rest = {name: p for name, p in network.named_parameters() if name not in chosen}
        matrices = {name: parameter.detach().flatten(1) for name, parameter in chosen.items()}
        sizes = {name: (matrix.shape[0], matrix.shape[1]) for name, matrix in matrices.items()}
        decomposed = {name: _svd(matrix) for name, matrix in matrices.items()}
        spectra = {name: values for name, (_, values, _) in decomposed.items()}

        def factors(kept: int) -> dict[str, list[Tensor]]:
            ranks = pooled_ranks(spectra, sizes, kept)
            return {name: _factors(matrices[name], decomposed[name], rank) for name, rank in ranks.items()}

        if config.layers:
            stated = {name: layer_rate(name, config.layers) for name in chosen}
            fixed = {name: 1 if rate is None else rate.rank or 1 for name, rate in stated.items()}
            self._train({name: _factors(matrices[name], decomposed[name], rank) for name, rank in fixed.items()})
            return
        kept = budget.kept
        if budget.limit is not None and budget.measure is not None:
            measure, total = budget.measure, sum(m * n for m, n in sizes.values())
            kept = kept_for_bytes(
                lambda k: measure(self._compressed(_without_zeros(factors(k)))),
                budget.limit,
                least_entries(network),
                total,
            )
        self._train(factors(kept))

    def _train(self, factors: dict[str, list[Tensor]]) -> None:
        """Begin with `factors`."""
        self._factors = factors
        for factor in self._flat():
            factor.requires_grad_()

    def _flat(self) -> list[Tensor]:
        return [tensor for factors in self._factors.values() for tensor in factors]

    @property
    def kept(self) -> int:
        """The number of entries of all factors."""
        return sum(tensor.numel() for tensor in self._flat())

    def parameters(self) -> list[Tensor]:
        return [*self._flat(), *self._rest.values()]

    def learning_rate(self, progress: float) -> float:
        return learning_rate(self._config, self._config.lr, progress)

    def weights(self, progress: float) -> dict[str, Tensor]:  # noqa: ARG002
        return {**self._products(), **self._rest}

    def _products(self) -> dict[str, Tensor]:
        """Name → W: B A, or the weight itself where its rank is full; costs r·m·n multiply-adds each."""
        return {
            name: (factors[0] @ factors[1] if len(factors) == 2 else factors[0]).reshape(self._shapes[name])
            for name, factors in self._factors.items()
        }

    def penalty(self, progress: float) -> Tensor | None:  # noqa: ARG002
        return None

    def after_step(self, progress: float, step: int) -> None:
        pass

    @torch.no_grad()
    def shipped(self, progress: float = 1.0) -> dict[str, Tensor]:  # noqa: ARG002
        return {name: weight.detach() for name, weight in {**self._products(), **self._rest}.items()}

    def finish(self) -> None:
        pass

    def compressed(self) -> dict[str, CompressedWeight]:
        """The compressed weights by name, ready for a file."""
        return self._compressed(self._factors)

    def _compressed(self, factors: Mapping[str, list[Tensor]]) -> dict[str, CompressedWeight]:
        return {
            name: to_compressed(_as_uv(tensors, shape), shape, quantized=False)
            for (name, tensors), shape in zip(factors.items(), self._shapes.values(), strict=True)
        }

    def metrics(self) -> dict[str, float]:
        total = sum(shape.numel() for shape in self._shapes.values())
        return {"kept": self.kept, "density": self.kept / total}

    def state(self) -> dict[str, Any]:
        return {"factors": [tensor.detach() for tensor in self._flat()]}

    @torch.no_grad()
    def load_state(self, state: dict[str, Any]) -> None:
        for tensor, saved in zip(self._flat(), state["factors"], strict=True):
            tensor.copy_(saved)


def least_entries(network: nn.Module) -> int:
    """Entries where every weight of `network` has rank 1: no fewer are possible."""
    chosen, _ = compressible(network)
    return sum(entries(len(weight), weight[0].numel(), 1) for weight in chosen.values())


def _svd(matrix: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(U, singular values, Vᵀ), reduced."""
    left, values, right = torch.linalg.svd(matrix, full_matrices=False)
    return left, values, right


def _factors(matrix: Tensor, decomposed: tuple[Tensor, Tensor, Tensor], rank: int) -> list[Tensor]:
    """[B, A] = [U √S, √S Vᵀ] of the `rank` largest singular values; [W] where that has no more entries."""
    m, n = matrix.shape
    if rank * (m + n) >= m * n:
        return [matrix.clone()]
    left, values, right = decomposed
    root = values[:rank].sqrt()
    return [left[:, :rank] * root, root[:, None] * right[:rank]]


def _without_zeros(factors: Mapping[str, list[Tensor]]) -> dict[str, list[Tensor]]:
    """`factors` with 1e-3 for zeros, such as those of dead units: training may move them, and files grow by that."""
    return {name: [t.masked_fill(t == 0, 1e-3) for t in tensors] for name, tensors in factors.items()}


@torch.no_grad()
def _as_uv(tensors: list[Tensor], shape: torch.Size) -> dict[str, Tensor]:
    """The factors of a file that stand for B A: (I + U) V or U (I + V)."""
    m, n = shape[0], shape[1:].numel()
    main = main_factor(m, n)
    if len(tensors) == 1:
        return {main: tensors[0]}
    left, right = tensors
    rank = left.shape[1]
    size = min(m, n)
    eye = torch.eye(size, device=left.device)
    side = left.new_zeros(size, size)
    whole = left.new_zeros(m, n)
    if main == "V":
        side[:, :rank], whole[:rank] = left - eye[:, :rank], right
        return {"U": side, "V": whole}
    whole[:, :rank], side[:rank] = left, right - eye[:rank]
    return {"U": whole, "V": side}
