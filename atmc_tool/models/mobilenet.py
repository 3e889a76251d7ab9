"""MobileNet-V2 (Sandler et al. 2018, arXiv:1801.04381)."""

from collections import OrderedDict

from torch import Tensor, nn

from atmc_tool.models.initial import he_weights

STAGES = (
    # expansion, channels, blocks, stride of the first block (arXiv:1801.04381, table 2)
    (1, 16, 1, 1),
    (6, 24, 2, 2),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
)
STEM, HEAD = 32, 1280


class InvertedResidual(nn.Module):
    """1 × 1 to `expansion` times the channels, 3 × 3 of each channel alone, 1 × 1 back without an activation.

    (N, in, H, W) → (N, channels, H/stride, W/stride); with a shortcut where that changes nothing.
    """

    def __init__(self, in_channels: int, channels: int, stride: int, expansion: int) -> None:
        super().__init__()
        hidden = in_channels * expansion
        expand = [_layer(in_channels, hidden, 1)] if expansion > 1 else []
        depthwise = _layer(hidden, hidden, 3, stride, groups=hidden)
        project = nn.Conv2d(hidden, channels, 1, bias=False)
        self.conv = nn.Sequential(*expand, depthwise, project, nn.BatchNorm2d(channels))
        self._shortcut = stride == 1 and in_channels == channels

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.conv(x)
        return x + out if self._shortcut else out


class MobileNetV2(nn.Module):
    """17 inverted residuals between two convolutions; (N, 3, H, W) → logits (N, classes).

    `large`: as published, for 224 × 224. Otherwise the first two strides are 1, for 32 × 32. Any size works. No
    dropout. Names of parameters as in torchvision, so that its checkpoints load.
    """

    def __init__(self, n_classes: int, *, large: bool) -> None:
        super().__init__()
        layers: list[nn.Module] = [_layer(3, STEM, 3, 2 if large else 1)]
        before = STEM
        for expansion, channels, n_blocks, first in STAGES:
            for index in range(n_blocks):
                stride = 1 if index or (channels == 24 and not large) else first
                layers.append(InvertedResidual(before, channels, stride, expansion))
                before = channels
        self.features = nn.Sequential(*layers, _layer(before, HEAD, 1))
        logits = nn.Linear(HEAD, n_classes)
        self.classifier = nn.Sequential(OrderedDict({"1": logits}))  # 0: torchvision's dropout
        he_weights(self, logits)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.classifier(self.features(x).mean((2, 3)))
        return logits


def _layer(in_channels: int, channels: int, size: int, stride: int = 1, groups: int = 1) -> nn.Sequential:
    """Convolution, batch norm, ReLU6."""
    convolution = nn.Conv2d(in_channels, channels, size, stride, size // 2, groups=groups, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(channels), nn.ReLU6())
