import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from atmc_tool.first_layer import FirstLayer
from atmc_tool.torch_classifier import TorchClassifier


@settings(max_examples=40)
@given(
    size=st.tuples(st.integers(7, 12), st.integers(7, 12)),
    kernel=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    stride=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    padding=st.tuples(st.integers(0, 2), st.integers(0, 2)),
    dilation=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    bias=st.booleans(),
    channels_last=st.booleans(),
)
def test_gradients_of_one_channel_images_are_torch_s(
    size: tuple[int, int],
    kernel: tuple[int, int],
    stride: tuple[int, int],
    padding: tuple[int, int],
    dilation: tuple[int, int],
    bias: bool,
    channels_last: bool,
) -> None:
    torch.manual_seed(0)
    layer = nn.Conv2d(1, 4, kernel, stride, padding, dilation, bias=bias).requires_grad_(False)
    images = torch.rand(3, 1, *size, requires_grad=True)
    expected = layer(images)
    direction = torch.randn_like(expected)
    if channels_last:
        direction = direction.contiguous(memory_format=torch.channels_last)
    with FirstLayer(torch.float32):
        found = layer(images)
    torch.testing.assert_close(found, expected)
    gradients = [torch.autograd.grad(y, images, direction)[0] for y in (found, expected)]
    torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("layer", [nn.Conv2d(1, 6, 3), nn.Conv2d(1, 6, 3, padding="same"), nn.Linear(8, 5)])
def test_the_first_layer_alone_runs_in_float32(layer: nn.Module) -> None:
    images = torch.rand(4, 1, 8, 8)
    with torch.autocast("cpu", torch.bfloat16), FirstLayer(torch.bfloat16):
        first = layer(images)
        again = F.linear(first, torch.rand(3, first.shape[-1]))
    assert torch.equal(first, layer(images).bfloat16())
    assert again.dtype == torch.bfloat16


def test_what_bfloat16_rounds_away_in_images_still_counts() -> None:
    """A network that looks at a difference of 1/1000 between pixels near 1."""
    net = nn.Sequential(nn.Conv2d(1, 2, (1, 2), bias=False), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    weights = {"0.weight": torch.tensor([[[[1000.0, -1000.0]]], [[[-1000.0, 1000.0]]]])}
    images = torch.tensor([0.9965, 0.9975]).expand(1, 1, 4, 2)
    exact, rounded = (TorchClassifier(net, weights, (0.0,), (1.0,), dtype) for dtype in (None, torch.bfloat16))
    torch.testing.assert_close(rounded.logits(images), exact.logits(images), rtol=0.01, atol=0)
    assert torch.equal(images.bfloat16()[..., 0], images.bfloat16()[..., 1])


def test_weights_still_get_their_gradient() -> None:
    layer = nn.Conv2d(1, 4, 3)
    images = torch.rand(3, 1, 8, 8, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16), FirstLayer(torch.bfloat16):
        found = layer(images).float().square().sum()
    found.backward()
    expected = torch.autograd.grad(layer(images).square().sum(), layer.weight)[0]
    assert layer.weight.grad is not None
    torch.testing.assert_close(layer.weight.grad, expected, rtol=0.02, atol=0.05)
