"""A network that normalises its own input, as the exported ONNX file does."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn


class NormalizedNetwork(nn.Module):
    """network((x − mean) / std) of images x, float32 (N, C, H, W) in [0, 1] → logits (N, classes).

    network:   the bare network, whose state dict has the names of the files
    mean, std: one value, or one per channel
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
        logits: Tensor = self.network((images - self.mean) / self.std)
        return logits
