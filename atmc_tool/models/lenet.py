"""LeNet as in Caffe's examples, the network of the ATMC paper's MNIST experiments (arXiv:1902.03538)."""

import torch.nn.functional as F
from torch import Tensor, nn


class LeNet(nn.Module):
    """Two 5 × 5 convolutions, each with max-pooling, and two linear layers; (N, 1, 28, 28) → logits (N, classes).

    For 10 classes 431,080 parameters. Caffe's (and the paper's) has no ReLU after the convolutions, so max-pooling is
    the only nonlinearity there; `relu` puts one in. The parameters are the same either way.
    """

    def __init__(self, n_classes: int, *, relu: bool) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 20, 5)
        self.conv2 = nn.Conv2d(20, 50, 5)
        self.fc1 = nn.Linear(50 * 4 * 4, 500)
        self.fc2 = nn.Linear(500, n_classes)
        self._relu = relu
        for layer in (self.conv1, self.conv2, self.fc1, self.fc2):
            nonlinear = layer is self.fc1 or (relu and isinstance(layer, nn.Conv2d))
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu" if nonlinear else "linear")
            assert layer.bias is not None
            nn.init.zeros_(layer.bias)

    def forward(self, x: Tensor) -> Tensor:
        for convolution in (self.conv1, self.conv2):
            x = convolution(x)
            x = F.max_pool2d(F.relu(x) if self._relu else x, 2)
        logits: Tensor = self.fc2(F.relu(self.fc1(x.flatten(1))))
        return logits


def lenet(n_classes: int = 10) -> LeNet:
    """LeNet as published: no ReLU after the convolutions."""
    return LeNet(n_classes, relu=False)


def lenet_relu(n_classes: int = 10) -> LeNet:
    """LeNet with a ReLU after each convolution."""
    return LeNet(n_classes, relu=True)
