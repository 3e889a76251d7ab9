"""Compression methods, one file each: what is trained, what is constrained, and when."""

from torch import nn

from atmc_tool.budget import Budget, compressible
from atmc_tool.config import CompressConfig
from atmc_tool.methods.alr import Alr, least_entries
from atmc_tool.methods.atmc import Atmc
from atmc_tool.methods.method import CompressionMethod


def compression_method(network: nn.Module, config: CompressConfig, budget: Budget) -> CompressionMethod:
    """The method that `config` names, at its start on `network`."""
    return Alr(network, config, budget) if config.method == "alr" else Atmc(network, config, budget)


def least_kept(network: nn.Module, config: CompressConfig) -> int:
    """The fewest entries that the method can keep: one of each weight, for `alr` rank 1."""
    return least_entries(network) if config.method == "alr" else len(compressible(network)[0])
