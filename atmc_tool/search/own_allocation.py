"""The allocation that a compressed model has come to: ATMC's one budget over all layers gives rates for free."""

from collections.abc import Mapping

import numpy as np

from atmc_tool.compressed import CompressedWeight
from atmc_tool.errors import UsageError
from atmc_tool.search.strategy import LayerRate, Strategy


def from_model(
    weights: Mapping[str, CompressedWeight], structure: str = "irregular", found: Mapping[str, object] | None = None
) -> Strategy:
    """What every layer of a compressed model keeps: kept units / units, and the bits of its codebook.

    The share of a layer whose weights are all zero is that of one unit. Units of channels and filters are kept where
    any of their entries is.

    Raises:
        UsageError: its weights are products U V (+ C), whose entries are no shares of W.
    """
    rates: dict[str, LayerRate] = {}
    for name, weight in weights.items():
        if any(factor != weight.main and tensor.kept for factor, tensor in weight.factors.items()):
            raise UsageError(
                f"{name} is stored as factors U V (+ C), which are no share of its entries",
                hint="take a model that was compressed with factors: none",
            )
        main = weight.factors.get(weight.main)
        kept, units = _units(weight, structure)
        quantized = main is not None and main.codebook is not None
        rates[name] = LayerRate(keep=max(1, kept) / units, bits=main.bits if main is not None and quantized else None)
    if any(rate.bits is None for rate in rates.values()):  # empty layers have no codebook
        most = max((rate.bits for rate in rates.values() if rate.bits is not None), default=None)
        rates = {name: LayerRate(keep=rate.keep, bits=rate.bits or most) for name, rate in rates.items()}
    return Strategy(structure=structure, layers=rates, found={"by": "a compressed model", **(found or {})})


def _units(weight: CompressedWeight, structure: str) -> tuple[int, int]:
    """(kept units, units)."""
    nonzero = weight.dense() != 0
    if structure == "channel":
        used = nonzero.any(axis=(0, *range(2, nonzero.ndim)))
    elif structure in ("filter", "bn-filter"):
        used = nonzero.reshape(len(nonzero), -1).any(1)
    elif structure == "column":
        used = nonzero.reshape(len(nonzero), -1).any(0)
    else:
        used = nonzero
    return int(np.count_nonzero(used)), used.size
