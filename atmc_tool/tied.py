"""Tensors of a network that have several names: tied weights, and modules that are used under two names."""

from torch import Tensor, nn


def own_state(network: nn.Module) -> dict[str, Tensor]:
    """The tensors of the state dict, each once, by the first of its names; they share the network's memory."""
    other = tied(network)
    state = network.state_dict()
    return {name: entry for name, entry in state.items() if name not in other and isinstance(entry, Tensor)}


def tied(network: nn.Module) -> dict[str, str]:
    """Every further name of a tensor in the state dict → its first name."""
    first: dict[Tensor, str] = {}
    others: dict[str, str] = {}
    for name, entry in network.state_dict(keep_vars=True).items():
        if isinstance(entry, Tensor) and first.setdefault(entry, name) != name:
            others[name] = first[entry]
    return others
