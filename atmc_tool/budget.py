"""Budgets: which parameters are compressed, how many entries may be kept, and what is feasible."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from decimal import ROUND_CEILING, Context, Decimal

from torch import nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd

from atmc_tool.compressed import CompressedWeight
from atmc_tool.errors import AtmcError, InfeasibleBudgetError

_NORMALISATIONS = (_NormBase, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm)
_LAYERS = (_ConvNd, nn.Linear)

Measure = Callable[[Mapping[str, CompressedWeight]], int]


@dataclass(frozen=True)
class Budget:
    """At most `kept` entries over all factors; where `limit` is given, a file of at most `limit` bytes as well.

    With a limit, `measure` gives the bytes of the file that would hold the given weights, and the number of kept
    entries follows from it.
    """

    kept: int
    limit: int | None = None
    measure: Measure | None = None


def compressible(network: nn.Module) -> tuple[dict[str, nn.Parameter], dict[str, str]]:
    """Parameters that are compressed, by name, and the reason for each other one.

    Compressed are the weights of layers: all floating-point parameters of two dimensions or more but those of
    normalisations, and those of a single row or column that are of no convolution or linear layer: class tokens,
    position embeddings (1, tokens, dim), scales (channels, 1, 1). Biases and batch norm are not (as in
    arXiv:1902.03538). One that has several names goes by the first.
    """
    chosen: dict[str, nn.Parameter] = {}
    left: dict[str, str] = {}
    owners = dict(network.named_modules())
    for name, parameter in network.named_parameters():
        reason = _why_not(parameter, owners[name.rpartition(".")[0]])
        if reason is None:
            chosen[name] = parameter
        else:
            left[name] = reason
    if not chosen:
        raise AtmcError("the network has no weight to compress", expected="a parameter of two dimensions or more")
    return chosen, left


def _why_not(parameter: nn.Parameter, owner: nn.Module) -> str | None:
    """Why `parameter` of the module `owner` is not compressed; None where it is."""
    if isinstance(owner, _NORMALISATIONS):
        return "normalisation"
    if parameter.dim() < 2:
        return "fewer than two dimensions (bias, scale)"
    if not parameter.is_floating_point():
        return "not floating point"
    if not isinstance(owner, _LAYERS) and (parameter.shape[0] == 1 or parameter.shape[1:].numel() == 1):
        return "one row or column, of no layer (token, position embedding, scale)"
    return None


def kept_for_share(keep: float, total: int, minimum: int) -> int:
    """⌊keep · total⌋ entries.

    Raises:
        InfeasibleBudgetError: fewer than `minimum`.
    """
    kept = int(keep * total)
    if kept < minimum:
        least = Context(prec=2, rounding=ROUND_CEILING).divide(Decimal(minimum), Decimal(total))  # so that it will do
        raise InfeasibleBudgetError(
            "the budget can't be met", expected=f"keep of at least {float(least):.2g}", got=keep
        )
    return kept


def kept_for_bytes(size_of: Callable[[int], int], limit: int, minimum: int, total: int) -> int:
    """A number of kept entries k in [minimum, total] with size_of(k) ≤ limit < size_of(k + 1), by bisection.

    `size_of` should grow with k; small dents in it cost a few entries, never the limit.

    Raises:
        InfeasibleBudgetError: size_of(minimum) > limit; the message names it.
    """
    smallest = size_of(minimum)
    if smallest > limit:
        raise InfeasibleBudgetError(
            "the budget can't be met", expected=f"at least {smallest} bytes", got=f"{limit} bytes"
        )
    if size_of(total) <= limit:
        return total
    fits, exceeds = minimum, total
    while exceeds - fits > 1:
        middle = (fits + exceeds) // 2
        if size_of(middle) <= limit:
            fits = middle
        else:
            exceeds = middle
    return fits
