"""ResNets for 32 × 32 images with parameter-free shortcuts (He et al. 2016, arXiv:1512.03385, section 4.2)."""

import torch.nn.functional as F
from torch import Tensor, nn


class BasicBlock(nn.Module):
    """Two 3 × 3 convolutions with batch norm; (N, in, H, W) → (N, out, H/stride, W/stride).

    Shortcut of option A: every `stride`-th pixel, new channels zero, half of them on either side.
    """

    def __init__(self, in_channels: int, channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, channels, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self._stride = stride
        self._new_channels = channels - in_channels

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        if self._stride > 1:
            x = x[:, :, :: self._stride, :: self._stride]
        if self._new_channels:
            before = self._new_channels // 2
            x = F.pad(x, (0, 0, 0, 0, before, self._new_channels - before))
        return F.relu(out + x)


class CifarResNet(nn.Module):
    """6·depth + 2 layers in three stages of 16, 32 and 64 channels; (N, 3, 32, 32) → logits (N, classes).

    Names of parameters as in akamaster/pytorch_resnet_cifar10, so that its checkpoints load.
    """

    def __init__(self, depth: int, n_classes: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.layer1 = _stage(16, 16, depth, stride=1)
        self.layer2 = _stage(16, 32, depth, stride=2)
        self.layer3 = _stage(32, 64, depth, stride=2)
        self.linear = nn.Linear(64, n_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
        nn.init.kaiming_normal_(self.linear.weight, nonlinearity="linear")
        nn.init.zeros_(self.linear.bias)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        logits: Tensor = self.linear(x.mean((2, 3)))
        return logits


def _stage(in_channels: int, channels: int, depth: int, stride: int) -> nn.Sequential:
    first = BasicBlock(in_channels, channels, stride)
    return nn.Sequential(first, *(BasicBlock(channels, channels, 1) for _ in range(depth - 1)))


def resnet20(n_classes: int = 10) -> CifarResNet:
    """ResNet-20: 269,722 parameters for 10 classes."""
    return CifarResNet(depth=3, n_classes=n_classes)
