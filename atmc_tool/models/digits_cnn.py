"""A small convolutional network for 8 × 8 digits, the one of the quickstart."""

import torch.nn.functional as F
from torch import Tensor, nn


class DigitsCNN(nn.Module):
    """Two 3 × 3 convolutions, each with max-pooling, and two linear layers; (N, 1, 8, 8) → logits (N, classes).

    For 10 classes 52,768 weights and 234 biases.
    """

    def __init__(self, n_classes: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 32, 3, padding=1)
        self.conv2 = nn.Conv2d(32, 64, 3, padding=1)
        self.fc1 = nn.Linear(64 * 2 * 2, 128)
        self.fc2 = nn.Linear(128, n_classes)
        for layer in (self.conv1, self.conv2, self.fc1, self.fc2):
            nn.init.kaiming_normal_(layer.weight, nonlinearity="linear" if layer is self.fc2 else "relu")
            assert layer.bias is not None
            nn.init.zeros_(layer.bias)

    def forward(self, x: Tensor) -> Tensor:
        for convolution in (self.conv1, self.conv2):
            x = F.max_pool2d(F.relu(convolution(x)), 2)
        logits: Tensor = self.fc2(F.relu(self.fc1(x.flatten(1))))
        return logits


def digits_cnn(n_classes: int = 10) -> DigitsCNN:
    """The network for scikit-learn's digits."""
    return DigitsCNN(n_classes)
