"""A network that normalises its own input, as the exported ONNX file does."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from atmc_tool.errors import UsageError


class NormalizedNetwork(nn.Module):
    """network((x − mean) / std) of images x, float32 (N, C, H, W) in [0, 1] → logits (N, classes).

    network:   the bare network, whose state dict has the names of the files
    mean, std: one value, or one per channel

    Images of integers are refused by UsageError: from 0 to 255 they would be taken for images in [0, 1].
    """

    mean: Tensor
    std: Tensor

    def __init__(self, network: nn.Module, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        self.network = network
        device = next((tensor.device for tensor in network.parameters()), torch.device("cpu"))
        for name, values in (("mean", mean), ("std", std)):
            per_channel = torch.tensor(values, dtype=torch.float32, device=device).reshape(-1, 1, 1)
            self.register_buffer(name, per_channel, persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        if not images.is_floating_point():
            expected = "floating point in [0, 1]: images.float() / 255"
            raise UsageError("images of integers", expected=expected, got=str(images.dtype).removeprefix("torch."))
        logits: Tensor = self.network((images - self.mean) / self.std)
        return logits
