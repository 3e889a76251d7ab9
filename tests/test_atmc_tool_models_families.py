"""Networks with a width: against the published layers written as plain functions of their state dict, and exported."""

from collections.abc import Callable, Iterator, Mapping

import numpy as np
import onnx
import pytest
import torch
import torch.nn.functional as F
from onnx_networks import images, randomized, run
from torch import Tensor, nn

from atmc_tool.models import ARCHITECTURES, find_architecture
from atmc_tool.models.wide_resnet import WideResNet
from evaluators.onnx_gradient import differentiate
from exporters.onnx_skeleton import trace_skeleton

State = Mapping[str, Tensor]

# narrow member → (its image, operators between image and logits)
NARROW = {
    "lenet-adv-1": ((1, 28, 28), {"Conv", "Relu", "MaxPool", "Reshape", "Gemm"}),
    "resnet18-4": ((3, 16, 16), {"Conv", "BatchNormalization", "Relu", "Add", "ReduceMean", "Gemm"}),
    "resnet50-1": ((3, 8, 8), {"Conv", "BatchNormalization", "Relu", "Add", "ReduceMean", "Gemm"}),
    "resnet18-imagenet-2": (
        (3, 64, 64),
        {"Conv", "BatchNormalization", "Relu", "MaxPool", "Add", "ReduceMean", "Gemm"},
    ),
    "wrn-16-1": ((3, 12, 12), {"Conv", "BatchNormalization", "Relu", "Add", "ReduceMean", "Gemm"}),
    "vgg16-2": ((3, 32, 32), {"Conv", "BatchNormalization", "Relu", "MaxPool", "Reshape", "Gemm"}),
    "mobilenet-v2": ((3, 16, 16), {"Conv", "BatchNormalization", "Clip", "Add", "ReduceMean", "Gemm"}),
}


@pytest.fixture(autouse=True)
def _seed() -> Iterator[None]:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield


def built(name: str, n_classes: int = 7) -> nn.Module:
    architecture = find_architecture(name)
    assert architecture is not None
    return architecture.build(n_classes)


def norm(s: State, name: str, x: Tensor) -> Tensor:
    """Batch norm in evaluation mode, by its definition."""
    mean, var, scale, shift = (
        s[f"{name}.{key}"][:, None, None] for key in ("running_mean", "running_var", "weight", "bias")
    )
    return (x - mean) / (var + 1e-5).sqrt() * scale + shift


def resnet(s: State, x: Tensor, *, large: bool) -> Tensor:
    """He et al. 2016: as many blocks and layers as the names say."""
    x = F.conv2d(x, s["conv1.weight"], stride=2, padding=3) if large else F.conv2d(x, s["conv1.weight"], padding=1)
    x = norm(s, "bn1", x).relu()
    x = F.max_pool2d(x, 3, 2, 1) if large else x
    for stage in range(1, 5):
        for index in range(sum(f"layer{stage}.{i}.conv1.weight" in s for i in range(40))):
            block = f"layer{stage}.{index}"
            stride = 2 if stage > 1 and index == 0 else 1
            layers = 3 if f"{block}.conv3.weight" in s else 2
            out = x
            for number in range(1, layers + 1):
                weight = s[f"{block}.conv{number}.weight"]
                here = stride if number == (2 if layers == 3 else 1) else 1
                out = norm(s, f"{block}.bn{number}", F.conv2d(out, weight, stride=here, padding=weight.shape[2] // 2))
                out = out if number == layers else out.relu()
            if f"{block}.downsample.0.weight" in s:
                x = norm(s, f"{block}.downsample.1", F.conv2d(x, s[f"{block}.downsample.0.weight"], stride=stride))
            x = (out + x).relu()
    return F.adaptive_avg_pool2d(x, 1).flatten(1) @ s["fc.weight"].T + s["fc.bias"]


def wide_resnet(s: State, x: Tensor) -> Tensor:
    x = F.conv2d(x, s["conv1.weight"], padding=1)
    for stage in range(1, 4):
        for index in range(sum(f"block{stage}.layer.{i}.conv1.weight" in s for i in range(40))):
            block = f"block{stage}.layer.{index}"
            stride = 2 if stage > 1 and index == 0 else 1
            before = norm(s, f"{block}.bn1", x).relu()
            out = F.conv2d(before, s[f"{block}.conv1.weight"], stride=stride, padding=1)
            out = F.conv2d(norm(s, f"{block}.bn2", out).relu(), s[f"{block}.conv2.weight"], padding=1)
            shortcut = s.get(f"{block}.convShortcut.weight")
            x = out + (x if shortcut is None else F.conv2d(before, shortcut, stride=stride))
    x = F.avg_pool2d(norm(s, "bn1", x).relu(), x.shape[2]).flatten(1)
    return x @ s["fc.weight"].T + s["fc.bias"]


def vgg16(s: State, x: Tensor) -> Tensor:
    number = 0
    for n_convolutions in (2, 2, 3, 3, 3):
        for _ in range(n_convolutions):
            x = F.conv2d(x, s[f"features.{number}.weight"], s[f"features.{number}.bias"], padding=1)
            x = norm(s, f"features.{number + 1}", x).relu()
            number += 3  # convolution, batch norm, ReLU
        x = F.max_pool2d(x, 2)
        number += 1
    x = x.flatten(1)
    for name in ("0", "3", "6"):
        x = x @ s[f"classifier.{name}.weight"].T + s[f"classifier.{name}.bias"]
        x = x if name == "6" else x.relu()
    return x


def mobilenet(s: State, x: Tensor, *, large: bool) -> Tensor:
    strides = [1, 2 if large else 1, 1, 2, 1, 1, 2, 1, 1, 1, 1, 1, 1, 2, 1, 1, 1]
    x = norm(s, "features.0.1", F.conv2d(x, s["features.0.0.weight"], stride=2 if large else 1, padding=1)).clamp(0, 6)
    for number, stride in enumerate(strides, 1):
        out, inner = x, 0
        while f"features.{number}.conv.{inner}.0.weight" in s:
            name = f"features.{number}.conv.{inner}"
            weight = s[f"{name}.0.weight"]
            if weight.shape[2] == 3:
                out = F.conv2d(out, weight, stride=stride, padding=1, groups=len(weight))
            else:
                out = F.conv2d(out, weight)
            out = norm(s, f"{name}.1", out).clamp(0, 6)
            inner += 1
        out = F.conv2d(out, s[f"features.{number}.conv.{inner}.weight"])
        out = norm(s, f"features.{number}.conv.{inner + 1}", out)
        x = x + out if out.shape == x.shape else out
    x = norm(s, "features.18.1", F.conv2d(x, s["features.18.0.weight"])).clamp(0, 6)
    return x.mean((2, 3)) @ s["classifier.1.weight"].T + s["classifier.1.bias"]


@pytest.mark.parametrize(
    ("name", "size", "reference"),
    [
        *((f"resnet{depth}-2", 17, lambda s, x: resnet(s, x, large=False)) for depth in (18, 34, 50)),
        *((f"resnet{depth}-imagenet-2", 70, lambda s, x: resnet(s, x, large=True)) for depth in (18, 34, 50)),
        ("wrn-16-2", 12, wide_resnet),
        ("wrn-28-1", 32, wide_resnet),
        ("vgg16-3", 32, vgg16),
        ("mobilenet-v2", 20, lambda s, x: mobilenet(s, x, large=False)),
        ("mobilenet-v2-imagenet", 70, lambda s, x: mobilenet(s, x, large=True)),
    ],
)
@torch.no_grad()
def test_logits_are_those_of_the_published_layers(
    name: str, size: int, reference: Callable[[State, Tensor], Tensor]
) -> None:
    network = randomized(built(name)).eval().double()
    x = torch.rand(2, 3, size, size, dtype=torch.float64)
    torch.testing.assert_close(network(x), reference(network.state_dict(), x))


@torch.no_grad()
def test_dropout_acts_in_training_alone() -> None:
    network, x = WideResNet(16, 10, 1, dropout=0.4), torch.rand(2, 3, 8, 8)
    plain = WideResNet(16, 10, 1)
    plain.load_state_dict(network.state_dict())
    torch.manual_seed(1)
    assert not torch.allclose(network(x), plain(x), atol=1e-3)
    plain.load_state_dict(network.state_dict())  # the statistics of batch norm have moved
    assert torch.equal(network.eval()(x), plain.eval()(x))
    dropped = ARCHITECTURES["wrn-16-8-dropout"].build()
    assert {block._dropout for block in dropped.modules() if hasattr(block, "_dropout")} == {0.4}


@pytest.mark.parametrize("name", NARROW)
def test_exports_and_its_gradient_is_torchs(name: str) -> None:
    shape, operators = NARROW[name]
    network = randomized(built(name)).eval()
    skeleton = trace_skeleton(network, shape, 7, (0.4,), (0.3,))
    model = onnx.load_from_string(skeleton)
    assert {node.op_type for node in model.graph.node} - {"Sub", "Div"} == operators
    state = network.state_dict()
    fed = {info.name: state[info.name].numpy() for info in model.graph.input[1:]}
    x, labels = images(shape, 2), np.array([1, 5])
    content = differentiate(model).SerializeToString()
    logits, gradient, _ = run(content, {"input": x, "labels": labels, **fed})
    image = torch.from_numpy(x).requires_grad_()
    expected = network((image - 0.4) / 0.3)
    np.testing.assert_allclose(logits, expected.detach(), atol=1e-4 * float(expected.detach().abs().max()))
    (of_torch,) = torch.autograd.grad(F.cross_entropy(expected, torch.from_numpy(labels), reduction="sum"), image)
    assert of_torch.abs().max() > 0
    np.testing.assert_allclose(gradient, of_torch, atol=2e-3 * float(of_torch.abs().max()))
