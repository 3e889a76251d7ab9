"""VGG-16 with batch norm for 32 × 32 images (Simonyan and Zisserman 2015, arXiv:1409.1556, table 1, D)."""

from collections import OrderedDict

from torch import Tensor, nn

from atmc_tool.models.initial import he_weights

STAGES = ((1, 2), (2, 2), (4, 3), (8, 3), (8, 3))  # (multiple of the width, convolutions), max-pooling after each
WIDTH = 64


class VGG16(nn.Module):
    """13 convolutions of 3 × 3 with batch norm, two linear layers of 8w units; (N, 3, 32, 32) → logits (N, classes).

    No dropout. Names of parameters as in torchvision's, whose linear layers are larger.
    """

    def __init__(self, n_classes: int, width: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        before = 3
        for multiple, n_convolutions in STAGES:
            for _ in range(n_convolutions):
                channels = multiple * width
                layers += [nn.Conv2d(before, channels, 3, padding=1), nn.BatchNorm2d(channels), nn.ReLU()]
                before = channels
            layers.append(nn.MaxPool2d(2))
        self.features = nn.Sequential(*layers)
        logits = nn.Linear(before, n_classes)
        linear = {"0": nn.Linear(before, before), "1": nn.ReLU(), "3": nn.Linear(before, before), "4": nn.ReLU()}
        self.classifier = nn.Sequential(OrderedDict({**linear, "6": logits}))  # 2 and 5: torchvision's dropout
        he_weights(self, logits)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.classifier(self.features(x).flatten(1))
        return logits
