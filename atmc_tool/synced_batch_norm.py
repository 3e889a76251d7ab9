"""Batch norm over the whole batch where several ranks hold a share of it each, on any device.

torch's SyncBatchNorm has no CPU version. This one changes no module: it puts another `forward` on the batch norms of
a network for as long as a training lasts, so names, types and what is saved stay as they are.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from atmc_tool.distributed import Ranks


@contextmanager
def synced_batch_norm(network: nn.Module, ranks: Ranks) -> Iterator[None]:
    """While inside, batch norms of `network` in training mode take mean and variance over all ranks' images.

    Running statistics move as torch's do for the whole batch, to the same bits on every rank. Batch norms in
    evaluation mode are as ever. Every rank must run the network equally often, and its backward pass too. A subclass
    with a `forward` of its own is left alone.
    """
    modules = [m for m in network.modules() if isinstance(m, _BatchNorm) and type(m).forward is _BatchNorm.forward]
    if ranks.size == 1:
        modules = []
    for module in modules:
        module.__dict__["forward"] = partial(_forward, module, ranks)
    try:
        yield
    finally:
        for module in modules:
            del module.__dict__["forward"]


@torch.compiler.disable  # type: ignore[untyped-decorator]
def _forward(module: _BatchNorm, ranks: Ranks, x: Tensor) -> Tensor:
    if not module.training:
        return type(module).forward(module, x)
    module._check_input_dim(x)  # type: ignore[no-untyped-call]
    normalized, mean, variance, count = _Normalize.apply(  # type: ignore[no-untyped-call]
        x, module.weight, module.bias, module.eps, ranks
    )
    if module.track_running_stats and module.running_mean is not None and module.running_var is not None:
        assert module.num_batches_tracked is not None
        module.num_batches_tracked.add_(1)
        momentum = 1 / float(module.num_batches_tracked) if module.momentum is None else module.momentum
        module.running_mean.lerp_(mean.to(module.running_mean.dtype), momentum)
        unbiased = variance * (count / (count - 1))
        module.running_var.lerp_(unbiased.to(module.running_var.dtype), momentum)
    return normalized  # type: ignore[no-any-return]


class _Normalize(torch.autograd.Function):
    """y = (x − μ) / √(σ² + ε) · weight + bias with μ, σ² per channel over all ranks (arXiv:1502.03167)."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float, ranks: Ranks
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """(y, μ, σ², number of values per channel); x is (N, C, …), N may differ between ranks."""
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        others = [0, *range(2, x.dim())]
        local = wide.numel() // x.shape[1]
        # (count, mean, sum of squares about the mean) of each rank, joined without loss (Chan et al. 1983)
        own_mean = wide.mean(others)
        own_squares = (wide - _wide(own_mean, x)).square().sum(others)
        counts, means, squares = ranks.gather(
            torch.stack([torch.full_like(own_mean, local), own_mean, own_squares])
        ).unbind(1)
        count = counts[:, 0].sum()
        if count <= 1:
            raise ValueError("Expected more than 1 value per channel when training")
        mean = (counts * means).sum(0) / count
        variance = (squares + counts * (means - mean).square()).sum(0) / count
        inverse = torch.rsqrt(variance + eps)
        y = (wide - _wide(mean, x)) * _wide(inverse, x)
        if weight is not None:
            y = y * _wide(weight, x)
        if bias is not None:
            y = y + _wide(bias, x)
        ctx.save_for_backward(x, weight, mean, inverse, count)
        ctx.ranks, ctx.others = ranks, others
        ctx.mark_non_differentiable(mean, variance, count)
        return y.to(x.dtype), mean, variance, count

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> tuple[Tensor | None, ...]:
        """With x̂ = (x − μ)/σ and means over all ranks: dx = weight/σ · (g − mean(g) − x̂ · mean(g·x̂)).

        dweight = Σ g·x̂ and dbias = Σ g are this rank's alone: they are added up with the other gradients.
        """
        x, weight, mean, inverse, count = ctx.saved_tensors
        g = gradients[0].to(mean.dtype)
        normalized = (x.to(mean.dtype) - _wide(mean, x)) * _wide(inverse, x)
        sums = torch.stack([g.sum(ctx.others), (g * normalized).sum(ctx.others)])
        d_bias, d_weight = sums.clone()
        d_x = None
        if ctx.needs_input_grad[0]:
            ctx.ranks.add_up([sums])
            centred = g - _wide(sums[0] / count, x) - normalized * _wide(sums[1] / count, x)
            scale = inverse if weight is None else inverse * weight
            d_x = (centred * _wide(scale, x)).to(x.dtype)
        needs_weight, needs_bias = ctx.needs_input_grad[1:3]
        return d_x, d_weight if needs_weight else None, d_bias if needs_bias else None, None, None


def _wide(channels: Tensor, x: Tensor) -> Tensor:
    """(C,) so that it goes with x (N, C, …)."""
    return channels.view(1, -1, *[1] * (x.dim() - 2))
