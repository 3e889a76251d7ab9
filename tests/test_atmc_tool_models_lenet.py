"""LeNets and the digits network against the same layers written down one after the other."""

import pytest
import torch
from torch import nn

from atmc_tool.models.digits_cnn import digits_cnn
from atmc_tool.models.lenet import lenet, lenet_relu
from atmc_tool.models.lenet_adv import LeNetAdv


def _caffe(relu: bool) -> nn.Sequential:
    between: list[nn.Module] = [nn.ReLU()] if relu else []
    return nn.Sequential(
        *(nn.Conv2d(1, 20, 5), *between, nn.MaxPool2d(2), nn.Conv2d(20, 50, 5), *between, nn.MaxPool2d(2)),
        *(nn.Flatten(), nn.Linear(800, 500), nn.ReLU(), nn.Linear(500, 10)),
    )


def _adversarial(width: int) -> nn.Sequential:
    return nn.Sequential(
        *(nn.Conv2d(1, 2 * width, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(2 * width, 4 * width, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Flatten(), nn.Linear(196 * width, 64 * width), nn.ReLU(), nn.Linear(64 * width, 10)),
    )


def _digits() -> nn.Sequential:
    return nn.Sequential(
        *(nn.Conv2d(1, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(32, 64, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Flatten(), nn.Linear(256, 128), nn.ReLU(), nn.Linear(128, 10)),
    )


@pytest.mark.parametrize(
    ("network", "reference", "size"),
    [
        (lenet(), _caffe(False), 28),
        (lenet_relu(), _caffe(True), 28),
        (LeNetAdv(10, 3), _adversarial(3), 28),
        (digits_cnn(), _digits(), 8),
    ],
    ids=["lenet", "lenet-relu", "lenet-adv-3", "digits-cnn"],
)
@torch.no_grad()
def test_logits_are_those_of_the_layers_in_a_row(network: nn.Module, reference: nn.Module, size: int) -> None:
    for own, other in zip(network.parameters(), reference.parameters(), strict=True):
        own.copy_(torch.randn_like(own) * 0.1)
        other.copy_(own)
    images = torch.rand(5, 1, size, size)
    assert torch.allclose(network(images), reference(images), atol=1e-5)


@torch.no_grad()
def test_relu_after_convolutions_makes_the_difference() -> None:
    plain, relu = lenet(), lenet_relu()
    relu.load_state_dict(plain.state_dict())
    images = torch.rand(5, 1, 28, 28)
    assert not torch.allclose(plain(images), relu(images), atol=1e-3)
