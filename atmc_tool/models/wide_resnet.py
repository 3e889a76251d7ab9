"""Wide residual networks for 32 × 32 images (Zagoruyko and Komodakis 2016, arXiv:1605.07146)."""

from collections import OrderedDict

import torch.nn.functional as F
from torch import Tensor, nn

from atmc_tool.models.initial import he_weights


class Block(nn.Module):
    """Two 3 × 3 convolutions, each after its batch norm and ReLU; (N, in, H, W) → (N, out, H/stride, W/stride).

    A shortcut that changes the shape is a 1 × 1 convolution of what the first ReLU gives. `dropout` is the share of
    values that are dropped between the convolutions in training.
    """

    def __init__(self, in_channels: int, channels: int, stride: int, dropout: float) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(in_channels)
        self.conv1 = nn.Conv2d(in_channels, channels, 3, stride=stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        changes = stride > 1 or in_channels != channels
        self.convShortcut = nn.Conv2d(in_channels, channels, 1, stride=stride, bias=False) if changes else None
        self._dropout = dropout

    def forward(self, x: Tensor) -> Tensor:
        activated = F.relu(self.bn1(x))
        out = F.relu(self.bn2(self.conv1(activated)))
        if self._dropout:
            out = F.dropout(out, self._dropout, self.training)
        shortcut = x if self.convShortcut is None else self.convShortcut(activated)
        result: Tensor = shortcut + self.conv2(out)
        return result


class WideResNet(nn.Module):
    """Three stages of 16k, 32k and 64k channels with (depth − 4) / 6 blocks each; (N, 3, 32, 32) → logits (N, classes).

    Any size works. Names of parameters as in xternalz/WideResNet-pytorch, so that its checkpoints load.
    """

    def __init__(self, depth: int, n_classes: int, k: int, dropout: float = 0.0) -> None:
        super().__init__()
        n_blocks = (depth - 4) // 6
        self.conv1 = nn.Conv2d(3, 16, 3, padding=1, bias=False)
        self.block1 = _stage(16, 16 * k, n_blocks, 1, dropout)
        self.block2 = _stage(16 * k, 32 * k, n_blocks, 2, dropout)
        self.block3 = _stage(32 * k, 64 * k, n_blocks, 2, dropout)
        self.bn1 = nn.BatchNorm2d(64 * k)
        self.fc = nn.Linear(64 * k, n_classes)
        he_weights(self, self.fc)

    def forward(self, x: Tensor) -> Tensor:
        x = self.block3(self.block2(self.block1(self.conv1(x))))
        logits: Tensor = self.fc(F.relu(self.bn1(x)).mean((2, 3)))
        return logits


def _stage(in_channels: int, channels: int, n_blocks: int, stride: int, dropout: float) -> nn.Sequential:
    first = Block(in_channels, channels, stride, dropout)
    others = (Block(channels, channels, 1, dropout) for _ in range(n_blocks - 1))
    return nn.Sequential(OrderedDict(layer=nn.Sequential(first, *others)))
