"""The layers that a strategy speaks of, what they keep at a share, and what that costs.

A share is of a layer's units (structures.py), rounded, at least one: as `Selection` keeps them.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from atmc_tool.budget import compressible

Measure = Literal["weights", "flops", "shrunk", "bytes"]
First = Literal["auto", "whole", "pruned"]
Cost = Callable[[Sequence[int]], int]
"""Kept units of each layer → what they cost; never falls where one of them grows."""

FEW_CHANNELS = 4  # of images, and of the filters of a depthwise convolution


@dataclass(frozen=True)
class Layer:
    """A weight that strategies give a rate of its own.

    name:    of the weight
    shape:   (out, in, kh, kw) or (out, in)
    outputs: positions of its output map for one image, over all calls; 1 for a linear layer on a vector
    linear:  it has no kernel
    first:   it takes the images
    group:   name of the first weight that reads the same tensor: a shortcut's is that of the block's first convolution
    """

    name: str
    shape: tuple[int, ...]
    outputs: int
    linear: bool
    first: bool
    group: str

    @property
    def weights(self) -> int:
        """Entries of the weight."""
        return torch.Size(self.shape).numel()

    @property
    def macs(self) -> int:
        """Multiply-adds for one image."""
        return self.weights * self.outputs


def layers_of(network: nn.Module, image_shape: Sequence[int]) -> list[Layer]:
    """All compressible weights of `network` in order of execution; those no hook sees come last, with one position.

    image_shape: (C, H, W) of the images that it takes; the network runs on one black image
    """
    chosen, _ = compressible(network)
    names = {id(parameter): name for name, parameter in chosen.items()}
    reads: dict[str, Tensor] = {}
    outputs: dict[str, int] = {}

    def watch(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        name = names.get(id(module.weight))
        if name is None or not inputs or not isinstance(output, Tensor):
            return
        reads.setdefault(name, inputs[0])  # kept, so that no other tensor takes its place in memory
        seen = inputs[0] if isinstance(module, _ConvTransposeNd) else output
        outputs[name] = outputs.get(name, 0) + seen[0].numel() // len(chosen[name])

    hooks = [m.register_forward_hook(watch) for m in network.modules() if isinstance(m, _ConvNd | nn.Linear)]
    training = {module: module.training for module in network.modules()}
    try:
        network.eval()
        with torch.no_grad():
            network(torch.zeros(1, *image_shape, device=next(network.parameters()).device))
    finally:
        for hook in hooks:
            hook.remove()
        for module, mode in training.items():
            module.training = mode
    groups: dict[int, str] = {}
    for name, tensor in reads.items():
        groups.setdefault(id(tensor), name)
    group = {name: groups[id(tensor)] for name, tensor in reads.items()}
    order = [*reads, *(name for name in chosen if name not in reads)]
    return [
        Layer(
            name,
            tuple(chosen[name].shape),
            outputs.get(name, 1),
            chosen[name].dim() == 2,
            group.get(name, name) == order[0],
            group.get(name, name),
        )
        for name in order
    ]


def units_of(layer: Layer, structure: str) -> int:
    """How many units the layer has: entries (also for N:M), filters, columns or input channels."""
    units = {
        "filter": layer.shape[0],
        "bn-filter": layer.shape[0],
        "column": layer.weights // layer.shape[0],
        "channel": layer.shape[1],
    }
    return units.get(structure, layer.weights)


def kept_units(layer: Layer, structure: str, share: float) -> int:
    """The units that a share keeps: rounded, at least one."""
    return max(1, round(share * units_of(layer, structure)))


def slots(layers: Sequence[Layer], structure: str, first: First = "auto") -> list[list[int]]:
    """Positions of the layers that one rate decides, in order of execution; what is in none stays whole.

    For `channel` the weights that read the same tensor have one rate, for they drop the same channels. Whole stay, for
    `channel`, layers of at most 4 input channels (the images, depthwise convolutions); for `filter` and `column`,
    linear layers: filters of the last one are classes. The first layer is one like all others else; `first` decides
    where it is not "auto".
    """
    decided: dict[str, list[int]] = {}
    for i, layer in enumerate(layers):
        whole = {
            "channel": layer.shape[1] <= FEW_CHANNELS,
            "filter": layer.linear,
            "bn-filter": layer.linear,
            "column": layer.linear,
        }.get(structure, False)
        if layer.first and first != "auto":
            whole = first == "whole"
        if not whole:
            decided.setdefault(layer.group if structure == "channel" else layer.name, []).append(i)
    return list(decided.values())


def cost_of(layers: Sequence[Layer], structure: str, measure: Measure) -> Cost:
    """The cost of kept units by `measure`; bytes need a file, so whoever can write one brings that cost.

    `weights`: entries kept. `flops`: their multiply-adds for one image. `shrunk`: entries of the network without what
    was dropped, where the neighbour of a layer in the chain (without shortcuts) drops on the other side: Σ W·r·r' with
    r' the share of channels that the next layer takes, as Heracles counts (Zhao et al. 2022); for filters r' is what
    the layer before gives. For other structures it is `weights`. Where residual sums hold channels together, less can
    be removed than that.
    """
    sizes = [units_of(layer, structure) for layer in layers]
    unit = [layer.weights // size for layer, size in zip(layers, sizes, strict=True)]
    both = structure in ("channel", "filter", "bn-filter") and measure == "shrunk"
    neighbours = _neighbours(layers, structure == "channel") if both else [None] * len(layers)

    def cost(kept: Sequence[int]) -> int:
        total = 0
        for i, (layer, k, size) in enumerate(zip(layers, kept, unit, strict=True)):
            entries = k * size
            if (near := neighbours[i]) is not None:
                other = layer.shape[0] if structure == "channel" else layer.shape[1]
                entries = entries // other * max(1, round(other * kept[near] / sizes[near]))
            total += entries * (layer.outputs if measure == "flops" else 1)
        return total

    return cost


def _neighbours(layers: Sequence[Layer], after: bool) -> list[int | None]:
    """Position of the layer after, or before, each layer; shortcuts are no neighbours, and have that of their place."""
    chain = [i for i, layer in enumerate(layers) if layer.group == layer.name]
    position = {layers[i].name: i for i in chain}
    if after:
        return [next((j for j in chain if j > i), None) for i in range(len(layers))]
    return [next((j for j in reversed(chain) if j < position[layer.group]), None) for layer in layers]


def whole_cost(layers: Sequence[Layer], structure: str, cost: Cost) -> int:
    """What the network costs with nothing dropped."""
    return cost([units_of(layer, structure) for layer in layers])
