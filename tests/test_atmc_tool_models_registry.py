"""The registry of networks: sizes, shapes, sound initial weights; the user's own networks by name."""

import math
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import nn

from atmc_tool.errors import AtmcError, UsageError
from atmc_tool.models import ARCHITECTURES, FAMILIES, Architecture, find_architecture, resolve_architecture

# (name, size of an image) of networks small enough for what is tested of all of them
SMALL = [
    *(("digits-cnn", 8), ("lenet", 28), ("lenet-relu", 28), ("lenet-adv", 28), ("resnet20", 32), ("wrn-28-1", 16)),
    *(("resnet18-8", 16), ("resnet34-4", 16), ("resnet50-4", 8), ("resnet18-imagenet-8", 64), ("wrn-16-1", 16)),
    *(("vgg16-8", 32), ("mobilenet-v2", 8)),
]


@pytest.fixture(autouse=True)
def _seed() -> Iterator[None]:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield


def _found(name: str) -> Architecture:
    architecture = find_architecture(name)
    assert architecture is not None
    return architecture


def _inputs(name: str, size: int, n: int = 64) -> torch.Tensor:
    channels = 1 if name.startswith(("digits", "lenet")) else 3
    assert _found(name).image_shape in (None, (channels, size, size))
    return torch.rand(n, channels, size, size)


@pytest.mark.parametrize(
    ("name", "parameters", "weights"),
    [
        ("digits-cnn", 53_002, 52_768),
        ("lenet", 431_080, 430_500),
        ("lenet-relu", 431_080, 430_500),
        ("lenet-adv", 52_506, 52_356),
        ("lenet-adv-16", 3_274_634, 3_273_504),  # 32 and 64 channels, 1024 units: arXiv:1706.06083's
        ("resnet20", 269_722, 268_336),
        # sizes of the ATMC paper (arXiv:1902.03538), which counts the weights of convolutions and linear layers
        ("resnet34", 21_282_122, 680_482_816 // 32),
        ("wrn-16-8", 10_961_370, 350_533_120 // 32),
        ("wrn-16-8-dropout", 10_961_370, 350_533_120 // 32),
        ("resnet18", 11_173_962, 11_164_352),
        ("resnet50", 23_520_842, 23_467_712),
        ("wrn-28-4", 5_849_050, 5_841_840),
        ("vgg16", 15_253_578, 15_239_872),
        ("mobilenet-v2", 3_504_872 - 990 * 1281, 2_202_560),
    ],
)
def test_sizes(name: str, parameters: int, weights: int) -> None:
    with torch.device("meta"):
        network = _found(name).build()
    assert sum(p.numel() for p in network.parameters()) == parameters
    assert sum(p.numel() for p in network.parameters() if p.ndim >= 2) == weights


@pytest.mark.parametrize(
    ("name", "n_classes", "parameters"),
    [
        # torchvision's
        ("resnet18-imagenet", 1000, 11_689_512),
        ("resnet34-imagenet", 1000, 21_797_672),
        ("resnet50-imagenet", 1000, 25_557_032),
        ("mobilenet-v2-imagenet", 1000, 3_504_872),
        # the ATMC paper's for CIFAR-100, 681,957,376 bits of weights, beside 17,024 of batch norm and 100 biases
        ("resnet34", 100, 681_957_376 // 32 + 17_024 + 100),
    ],
)
def test_sizes_for_other_numbers_of_classes(name: str, n_classes: int, parameters: int) -> None:
    with torch.device("meta"):
        network = ARCHITECTURES[name].build(n_classes)
    assert sum(p.numel() for p in network.parameters()) == parameters


@pytest.mark.parametrize(("depth", "k"), [(16, 1), (16, 8), (28, 4), (28, 10)])
def test_sizes_of_wide_resnets_by_hand(depth: int, k: int) -> None:
    weights, norms, before = 3 * 16 * 9, 0, 16
    for channels in (16 * k, 32 * k, 64 * k):
        for _ in range((depth - 4) // 6):
            weights += before * channels * 9 + channels * channels * 9
            weights += before * channels if before != channels else 0
            norms += before + channels
            before = channels
    expected = weights + 2 * (norms + before) + 10 * before + 10
    with torch.device("meta"):
        network = _found(f"wrn-{depth}-{k}").build()
    assert sum(p.numel() for p in network.parameters()) == expected


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_the_classes_are_the_units_of_the_layer_it_names(name: str) -> None:
    architecture = ARCHITECTURES[name]
    with torch.device("meta"):
        network = architecture.build(7)
    assert architecture.logits is not None
    layer = network.get_submodule(architecture.logits)
    assert isinstance(layer, nn.Linear)
    assert layer.out_features == 7
    others = [p for name, p in network.named_parameters() if not name.startswith(f"{architecture.logits}.")]
    assert sum(p.numel() for p in others) + 7 * (layer.in_features + 1) == sum(p.numel() for p in network.parameters())


@pytest.mark.parametrize("name", FAMILIES)
def test_a_name_may_end_in_a_width(name: str) -> None:
    family = FAMILIES[name]
    assert _found(f"{name}-1").name == f"{name}-1"
    with torch.device("meta"):
        sizes = [sum(p.numel() for p in _found(f"{name}-{width}").build().parameters()) for width in (1, 2, 3)]
    assert sizes == sorted(set(sizes))
    for width in (0, -1, family.most + 1, 10**9, "01", "1.5", "", "x", "1-1"):
        assert find_architecture(f"{name}-{width}") is None
    usual = [a for a in ARCHITECTURES.values() if a.name.startswith(name)]
    assert usual
    assert {a.logits for a in usual} == {family.logits}


def test_widths_are_those_of_the_names() -> None:
    with torch.device("meta"):
        for name, same in (("resnet18", "resnet18-64"), ("vgg16", "vgg16-64"), ("lenet-adv", "lenet-adv-2")):
            one, other = (_found(each).build().state_dict() for each in (name, same))
            assert [(key, one[key].shape) for key in one] == [(key, other[key].shape) for key in other]
        assert _found("resnet50-imagenet-16").build().get_submodule("layer1.0.conv1").weight.shape == (16, 16, 1, 1)


@pytest.mark.parametrize(("name", "size"), SMALL)
def test_a_new_network_gives_one_logit_per_class_and_soft_predictions(name: str, size: int) -> None:
    logits = _found(name).build()(_inputs(name, size))
    assert logits.shape == (64, 10)
    # Not dead, and not saturated: a network that starts far from chance trains badly.
    assert 0.1 < logits.std() < 3
    assert nn.functional.cross_entropy(logits, torch.arange(64) % 10) < 3 * math.log(10)


@pytest.mark.parametrize("name", [name for name, _ in SMALL])
def test_initial_weights_come_from_the_seed_alone(name: str) -> None:
    states = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        states.append(_found(name).build().state_dict())
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])
    assert not all(torch.equal(states[0][key], states[2][key]) for key in states[0])


@pytest.mark.parametrize(("name", "size"), SMALL)
def test_every_parameter_takes_part(name: str, size: int) -> None:
    network = _found(name).build()
    loss = nn.functional.cross_entropy(network(_inputs(name, size)), torch.arange(64) % 10)
    names, parameters = zip(*network.named_parameters(), strict=True)
    for parameter, gradient in zip(names, torch.autograd.grad(loss, parameters), strict=True):
        assert gradient.abs().sum() > 0, parameter


@pytest.mark.parametrize(("spec", "near"), [("resnet2", "resnet20"), ("lenet_relu", "lenet-relu")])
def test_unknown_name_lists_the_known_and_suggests_the_nearest(spec: str, near: str) -> None:
    with pytest.raises(UsageError) as caught:
        resolve_architecture(spec)
    message = str(caught.value)
    assert message.endswith(f"did you mean {near}?")
    assert all(name in message for name in ARCHITECTURES)


def test_unlike_any_name_suggests_nothing() -> None:
    with pytest.raises(UsageError, match="unknown network") as caught:
        resolve_architecture("zzzzzz")
    assert "did you mean" not in str(caught.value)


@pytest.fixture
def user_file(tmp_path: Path) -> Path:
    path = tmp_path / "mine.py"
    path.write_text(
        "import sys\n"
        "from torch import nn\n"
        "def small(): return nn.Sequential(nn.Flatten(), nn.Linear(4, 2))\n"
        "def needs(width): return nn.Linear(width, 2)\n"
        "def nothing(): pass\n"
        "def broken(): raise ValueError('two\\nlines')\n"
        "def leaves(): sys.exit(3)\n"
        "built = small()\n"
    )
    return path


def test_users_callables_build_networks(user_file: Path) -> None:
    architecture = resolve_architecture(f"{user_file}:small")
    first, second = architecture.build(), architecture.build()
    assert first(torch.rand(3, 1, 2, 2)).shape == (3, 2)
    assert first is not second
    assert architecture.name == f"{user_file}:small"
    assert (architecture.image_shape, architecture.logits) == (None, None)
    assert architecture.build(5)(torch.rand(3, 1, 2, 2)).shape == (3, 2)
    assert type(resolve_architecture("atmc_tool.models.lenet:lenet").build()).__name__ == "LeNet"


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("needs", "TypeError: needs() missing 1 required positional argument"),
        ("nothing", "got NoneType"),
        ("broken", "ValueError: two lines"),
        ("leaves", "SystemExit: 3"),
        ("built", "TypeError"),
    ],
)
def test_users_callables_that_build_no_network(user_file: Path, name: str, says: str) -> None:
    with pytest.raises(UsageError) as caught:
        resolve_architecture(f"{user_file}:{name}").build()
    message = str(caught.value)
    assert says in message
    assert "takes no arguments and returns a torch.nn.Module" in message
    assert "\n" not in message


@pytest.mark.parametrize(
    "spec", ["no_such_module:net", "no/such/file.py:net", "atmc_tool.models.lenet:nett", ":", "a:"]
)
def test_callables_that_are_not_there(spec: str) -> None:
    with pytest.raises(AtmcError) as caught:
        resolve_architecture(spec)
    assert "\n" not in str(caught.value)
