"""LeNet of robust MNIST experiments, with a width (arXiv:1903.12561; w = 16 is the network of arXiv:1706.06083)."""

import torch.nn.functional as F
from torch import Tensor, nn

from atmc_tool.models.initial import he_weights


class LeNetAdv(nn.Module):
    """Two 5 × 5 convolutions that keep the size, of 2w and 4w channels, each with ReLU and max-pooling, and two linear
    layers, the first of 64w units; (N, 1, 28, 28) → logits (N, classes).

    12,744 w² + 120 w + 64 w · classes + classes parameters.
    """

    def __init__(self, n_classes: int, width: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 2 * width, 5, padding=2)
        self.conv2 = nn.Conv2d(2 * width, 4 * width, 5, padding=2)
        self.fc1 = nn.Linear(7 * 7 * 4 * width, 64 * width)
        self.fc2 = nn.Linear(64 * width, n_classes)
        he_weights(self, self.fc2)

    def forward(self, x: Tensor) -> Tensor:
        for convolution in (self.conv1, self.conv2):
            x = F.max_pool2d(F.relu(convolution(x)), 2)
        logits: Tensor = self.fc2(F.relu(self.fc1(x.flatten(1))))
        return logits
