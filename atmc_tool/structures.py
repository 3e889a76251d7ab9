"""Structures: which entries of a weight are kept or dropped together, and which of these units have the largest norm.

A weight (out, in, kh, kw) or (out, in) is a matrix m × n with m = out and n = in·kh·kw. Its units are

- `irregular`: single entries;
- `filter`: rows, all that makes one output channel;
- `column`: columns, the same position of every filter;
- `channel`: all kh·kw columns of one input channel;
- `bn-filter`: rows too, ranked by the scale of the batch norm behind them instead of their own norm;
- `N:M`, such as `2:4`: single entries, of which at most N are kept among M neighbouring input channels.

Zeroing all units but those of the largest L2 norms is the Euclidean projection onto weights with so many nonzero units.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from atmc_tool.projections import top_k_masks


def unit_norms(matrix: Tensor, shape: Sequence[int], structure: str) -> Tensor:
    """L2 norm of every unit of `matrix` (m, n), whose weight is of `shape`: (m, n), (m,), (n,) or (in,)."""
    if structure in ("filter", "bn-filter"):
        return matrix.square().sum(1).sqrt()
    if structure == "column":
        return matrix.square().sum(0).sqrt()
    if structure == "channel":
        return matrix.reshape(len(matrix), shape[1], -1).square().sum((0, 2)).sqrt()
    return matrix.abs()


def entries_of(units: Tensor, shape: Sequence[int], structure: str) -> Tensor:
    """Mask (m, n) of the entries that belong to the units that the mask `units` keeps."""
    m, n = shape[0], torch.Size(shape[1:]).numel()
    if structure in ("filter", "bn-filter"):
        return units[:, None].expand(m, n)
    if structure == "column":
        return units.expand(m, n)
    if structure == "channel":
        return units.repeat_interleave(n // shape[1], output_size=n).expand(m, n)
    return units


@torch.no_grad()
def n_of_m_mask(matrix: Tensor, shape: Sequence[int], n: int, m: int) -> Tensor:
    """Mask (rows, columns) of the n largest magnitudes of every m neighbouring input channels at one kernel position.

    The last group of a row is shorter where m does not divide the channels. Of entries that tie, the first are kept.
    Zhou et al. 2021 (arXiv:2102.04010); the layout is that of the sparse units of GPUs.
    """
    rows, channels = len(matrix), shape[1]
    spare = -channels % m
    magnitudes = nn.functional.pad(matrix.abs().reshape(rows, channels, -1), (0, 0, 0, spare), value=-1.0)
    groups = magnitudes.reshape(rows, (channels + spare) // m, m, -1)
    order = groups.sort(dim=2, descending=True, stable=True).indices
    kept = torch.zeros_like(groups, dtype=torch.bool).scatter_(2, order[:, :, :n], True)
    return kept.reshape(rows, channels + spare, -1)[:, :channels].reshape(matrix.shape)


def largest_units(norms: Tensor, count: int) -> Tensor:
    """Mask of the `count` largest of `norms`, any shape; the first ones of those that tie."""
    return top_k_masks([norms], count)[0]


def batch_norms(network: nn.Module, image_shape: Sequence[int]) -> dict[str, str]:
    """Name of a convolution's weight → name of the weight of the batch norm that takes just its output.

    Found by running a batch of two images through the network, which is left as it was.

    image_shape: (C, H, W)
    """
    outputs: dict[int, tuple[str, Tensor]] = {}
    pairs: dict[str, str] = {}

    def made(name: str, output: Tensor) -> None:
        outputs[id(output)] = (name, output)  # held, so that no other tensor gets its id

    def taken(name: str, image: Tensor) -> None:
        if id(image) in outputs:
            pairs[f"{outputs[id(image)][0]}.weight"] = f"{name}.weight"

    handles = []
    for name, module in network.named_modules():
        if isinstance(module, nn.Conv1d | nn.Conv2d | nn.Conv3d):
            handles.append(module.register_forward_hook(lambda _m, _i, output, name=name: made(name, output)))
        elif isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d) and module.affine:
            handles.append(module.register_forward_pre_hook(lambda _m, inputs, name=name: taken(name, inputs[0])))
    was_training = network.training
    device = next(network.parameters()).device
    try:
        with torch.no_grad():
            network.eval()(torch.zeros(2, *image_shape, device=device))
    finally:
        network.train(was_training)
        for handle in handles:
            handle.remove()
    return pairs
