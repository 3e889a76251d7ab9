"""ResNet-18, -34 and -50 with projections as shortcuts (He et al. 2016, arXiv:1512.03385, table 1).

Parameters are named as in torchvision, so that its checkpoints load.
"""

import torch.nn.functional as F
from torch import Tensor, nn

from atmc_tool.models.initial import he_weights

BLOCKS = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3), 50: (3, 4, 6, 3)}  # depth → blocks of each stage
WIDTH = 64
"""Channels of the first stage as published; each stage has twice those of the one before."""


class Basic(nn.Module):
    """Two 3 × 3 convolutions beside a shortcut; (N, in, H, W) → (N, channels, H/stride, W/stride)."""

    expansion = 1

    def __init__(self, in_channels: int, channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, channels, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.downsample = _projection(in_channels, channels, stride)

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        return F.relu(out + (x if self.downsample is None else self.downsample(x)))


class Bottleneck(nn.Module):
    """Convolutions of 1 × 1, 3 × 3 and 1 × 1 beside a shortcut; (N, in, H, W) → (N, 4·channels, H/stride, W/stride).

    The stride is that of the 3 × 3 convolution, as in torchvision.
    """

    expansion = 4

    def __init__(self, in_channels: int, channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, channels, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, stride=stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.conv3 = nn.Conv2d(channels, 4 * channels, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(4 * channels)
        self.downsample = _projection(in_channels, 4 * channels, stride)

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.bn1(self.conv1(x)))
        out = F.relu(self.bn2(self.conv2(out)))
        out = self.bn3(self.conv3(out))
        return F.relu(out + (x if self.downsample is None else self.downsample(x)))


class ResNet(nn.Module):
    """Four stages of w, 2w, 4w and 8w channels, four times as many at the ends of bottlenecks; → logits (N, classes).

    CIFAR stem: a 3 × 3 convolution, for (N, 3, 32, 32), any size works. ImageNet stem (`large`): 7 × 7 of stride 2 and
    max-pooling of stride 2, for (N, 3, 224, 224), any size works.
    """

    def __init__(self, depth: int, n_classes: int, width: int, *, large: bool) -> None:
        super().__init__()
        size, stride, padding = (7, 2, 3) if large else (3, 1, 1)
        block = Bottleneck if depth == 50 else Basic
        self.conv1 = nn.Conv2d(3, width, size, stride=stride, padding=padding, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=1) if large else nn.Identity()
        self._channels = width
        self.layer1, self.layer2, self.layer3, self.layer4 = (
            self._stage(block, width << stage, n, stride=2 if stage else 1) for stage, n in enumerate(BLOCKS[depth])
        )
        self.fc = nn.Linear(self._channels, n_classes)
        he_weights(self, self.fc)

    def _stage(self, block: type[Basic] | type[Bottleneck], channels: int, n_blocks: int, stride: int) -> nn.Sequential:
        blocks: list[nn.Module] = []
        for index in range(n_blocks):
            blocks.append(block(self._channels, channels, 1 if index else stride))
            self._channels = channels * block.expansion
        return nn.Sequential(*blocks)

    def forward(self, x: Tensor) -> Tensor:
        x = self.maxpool(F.relu(self.bn1(self.conv1(x))))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        logits: Tensor = self.fc(x.mean((2, 3)))
        return logits


def _projection(in_channels: int, channels: int, stride: int) -> nn.Sequential | None:
    """The shortcut of a block that changes the shape."""
    if stride == 1 and in_channels == channels:
        return None
    convolution = nn.Conv2d(in_channels, channels, 1, stride=stride, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(channels))
