"""Compression methods, one file each: what is trained, what is constrained, and when."""

from collections.abc import Sequence

from torch import nn

from atmc_tool.budget import Budget, compressible
from atmc_tool.config import CompressConfig
from atmc_tool.methods.alr import Alr, least_entries
from atmc_tool.methods.atmc import Atmc
from atmc_tool.methods.method import CompressionMethod


def compression_method(
    network: nn.Module, config: CompressConfig, budget: Budget, image_shape: Sequence[int] = ()
) -> CompressionMethod:
    """The method that `config` names, at its start on `network`, which takes images of `image_shape` (C, H, W)."""
    if config.method == "alr":
        return Alr(network, config, budget)
    return Atmc(network, config, budget, image_shape)


def least_kept(network: nn.Module, config: CompressConfig) -> int:
    """The fewest entries that the method can keep: one of each weight, for `alr` rank 1."""
    return least_entries(network) if config.method == "alr" else len(compressible(network)[0])
