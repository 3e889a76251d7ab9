"""A torch network under given dense weights, as attacks see it."""

from collections.abc import Mapping, Sequence
from functools import lru_cache
from weakref import WeakKeyDictionary

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from atmc_tool.attacks.classifier import Loss
from atmc_tool.attacks.losses import loss_values
from atmc_tool.first_layer import FirstLayer


class TorchClassifier:
    """`network` run with `weights` in place of its own parameters, on images in [0, 1].

    The weights are materialised by the caller, once; a whole attack then runs on plain tensors. Convolutions run
    channels-last, which is faster on the CPU (LeNet, batch 128, input gradient: 36 ms against 61 ms), unless the
    network's code does not: `x.view(len(x), -1)` can't flatten channels-last images. Whether batch norm and dropout
    run in training or evaluation mode is the network's own mode, set by the caller.

    dtype: of convolutions and matrix products (autocast), such as bfloat16; None: that of the weights. Images, the
        layer that takes them, logits and gradients are float32 in any case
    """

    def __init__(
        self,
        network: nn.Module,
        weights: Mapping[str, Tensor],
        mean: Sequence[float],
        std: Sequence[float],
        dtype: torch.dtype | None = None,
    ) -> None:
        self._network = network
        self._dtype = dtype
        self._given = weights
        self._weights: dict[str, Tensor] = {}  # in the layout in which they run; made when the first images come
        like = next(iter(weights.values()))
        self._mean = _per_channel(tuple(mean), like.dtype, like.device)
        self._std = _per_channel(tuple(std), like.dtype, like.device)
        self._normalizes = bool(any(mean)) or any(s != 1 for s in std)

    def logits(self, images: Tensor) -> Tensor:
        """Logits (N, classes) of images (N, C, H, W), float32 in [0, 1]; differentiable in images and weights."""
        if self._normalizes:
            images = (images - self._mean) / self._std
        if not self._weights:
            self._lay_out(images)
        images = self._layout(images)
        if self._dtype is None:
            logits: Tensor = functional_call(self._network, self._weights, (images,))
            return logits
        with torch.autocast(images.device.type, self._dtype), FirstLayer(self._dtype):
            logits = functional_call(self._network, self._weights, (images,))
        return logits.float()

    def _lay_out(self, images: Tensor) -> None:
        channels_last = _runs_channels_last(self._network, self._given, images)
        self._layout = _channels_last if channels_last else Tensor.contiguous
        self._weights = {name: self._layout(weight) for name, weight in self._given.items()}

    def logits_and_gradient(
        self, images: Tensor, labels: Tensor, loss: Loss, targets: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Logits (N, classes) and the gradient (N, C, H, W) of the loss summed over the batch; see `Classifier`.

        For the cross-entropy away from the labels, these may also be probabilities (N, classes).
        """
        with torch.enable_grad():
            leaf = images.detach().requires_grad_()
            logits = self.logits(leaf)
            if loss == "cross_entropy" and targets is None:
                total = F.cross_entropy(logits, labels, reduction="sum")
            elif loss == "margin" and targets is None:
                total = margin(logits, labels).sum()
            else:
                total = loss_values(logits, labels, loss, targets).sum()
            return logits.detach(), torch.autograd.grad(total, leaf)[0]


_CHANNELS_LAST: WeakKeyDictionary[nn.Module, bool] = WeakKeyDictionary()


def _runs_channels_last(network: nn.Module, weights: Mapping[str, Tensor], images: Tensor) -> bool:
    """Whether the code of `network` runs on channels-last images; tried once, on two images, in evaluation mode."""
    if network not in _CHANNELS_LAST:
        modes = {module: module.training for module in network.modules()}
        last = {name: _channels_last(weight) for name, weight in weights.items()}
        with torch.no_grad(), torch.random.fork_rng([images.device] if images.device.type == "cuda" else []):
            network.eval()
            try:
                functional_call(network, last, (_channels_last(images[:2]),))
                _CHANNELS_LAST[network] = True
            except RuntimeError:  # where there is more that is wrong, the caller's own run says so
                _CHANNELS_LAST[network] = False
        for module, training in modes.items():
            module.training = training
    return _CHANNELS_LAST[network]


@lru_cache
def _per_channel(values: tuple[float, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """(1, C, 1, 1), made once: what comes from the host makes it wait for a GPU."""
    return torch.tensor(values, dtype=dtype, device=device).reshape(1, -1, 1, 1)


def _channels_last(tensor: Tensor) -> Tensor:
    if tensor.dim() != 4:
        return tensor
    tensor = tensor.contiguous(memory_format=torch.channels_last)
    _, channels, height, width = tensor.shape
    if channels == 1:  # either layout fits; the strides have to say which, for what is computed from it
        tensor = tensor.as_strided(tensor.shape, (height * width, 1, width, 1))
    return tensor


def margin(logits: Tensor, labels: Tensor) -> Tensor:
    """max over j ≠ y of z_j − z_y, (N,): positive exactly where the sample is misclassified."""
    own = logits.gather(1, labels[:, None])
    others = logits.scatter(1, labels[:, None], -torch.inf)
    return others.amax(1) - own[:, 0]
