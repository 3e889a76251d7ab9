"""Networks of the training benchmark for 32 × 32 images: the ATMC paper's, narrower, so that a CPU can run them."""

import torch.nn.functional as F
from torch import Tensor, nn


class Block(nn.Module):
    """Two 3 × 3 convolutions; `preactivated` (WRN) or with the activations after them (ResNet)."""

    def __init__(self, before: int, channels: int, stride: int, preactivated: bool) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(before, channels, 3, stride, 1, bias=False)
        self.conv2 = nn.Conv2d(channels, channels, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(before if preactivated else channels)
        self.bn2 = nn.BatchNorm2d(channels)
        changes = stride > 1 or before != channels
        self.shortcut = nn.Conv2d(before, channels, 1, stride, bias=False) if changes else nn.Identity()
        self._preactivated = preactivated

    def forward(self, x: Tensor) -> Tensor:
        if self._preactivated:
            out = F.relu(self.bn1(x))
            kept = x if isinstance(self.shortcut, nn.Identity) else self.shortcut(out)
            return kept + self.conv2(F.relu(self.bn2(self.conv1(out))))
        out = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        return F.relu(out + self.shortcut(x))


class ResidualNetwork(nn.Module):
    """Stages of blocks with `channels` each, every stage but the first of stride 2; (N, 3, 32, 32) → (N, 10)."""

    def __init__(self, stem: int, channels: tuple[int, ...], blocks: int, preactivated: bool) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, stem, 3, 1, 1, bias=False)
        self.bn = nn.BatchNorm2d(channels[-1] if preactivated else stem)
        layers, before = [], stem
        for stage, width in enumerate(channels):
            for index in range(blocks):
                layers.append(Block(before, width, 2 if stage and not index else 1, preactivated))
                before = width
        self.layers = nn.Sequential(*layers)
        self.linear = nn.Linear(before, 10)
        self._preactivated = preactivated

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv1(x)
        x = F.relu(self.bn(self.layers(x))) if self._preactivated else self.layers(F.relu(self.bn(x)))
        logits: Tensor = self.linear(x.mean((2, 3)))
        return logits


def resnet18(width: int = 16) -> ResidualNetwork:
    """ResNet-18 for small images (He et al. 2016, arXiv:1512.03385); width 64 is the usual one."""
    return ResidualNetwork(width, (width, 2 * width, 4 * width, 8 * width), blocks=2, preactivated=False)


def wrn_16_2() -> ResidualNetwork:
    """WideResNet-16-2 (Zagoruyko & Komodakis 2016, arXiv:1605.07146), without dropout."""
    return ResidualNetwork(16, (32, 64, 128), blocks=2, preactivated=True)
