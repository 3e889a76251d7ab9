"""The registry of networks: sizes, shapes, sound initial weights; the user's own networks by name."""

import math
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import nn

from atmc_tool.errors import AtmcError, UsageError
from atmc_tool.models import ARCHITECTURES, resolve_architecture


@pytest.fixture(autouse=True)
def _seed() -> Iterator[None]:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield


def _inputs(shape: tuple[int, int, int], n: int = 64) -> torch.Tensor:
    return torch.rand((n, *shape))


@pytest.mark.parametrize(
    ("name", "parameters", "weights"),
    [
        ("digits-cnn", 53_002, 52_768),
        ("lenet", 431_080, 430_500),
        ("lenet-relu", 431_080, 430_500),
        ("resnet20", 269_722, 268_336),
    ],
)
def test_sizes(name: str, parameters: int, weights: int) -> None:
    network = ARCHITECTURES[name].build()
    assert sum(p.numel() for p in network.parameters()) == parameters
    assert sum(p.numel() for p in network.parameters() if p.ndim >= 2) == weights


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_stated_input_gives_one_logit_per_class_and_soft_predictions(name: str) -> None:
    architecture = ARCHITECTURES[name]
    assert architecture.image_shape is not None
    logits = architecture.build()(_inputs(architecture.image_shape))
    assert logits.shape == (64, architecture.n_classes)
    # Not dead, and not saturated: a network that starts far from chance trains badly.
    assert 0.1 < logits.std() < 3
    assert nn.functional.cross_entropy(logits, torch.arange(64) % 10) < 3 * math.log(10)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_initial_weights_come_from_the_seed_alone(name: str) -> None:
    states = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        states.append(ARCHITECTURES[name].build().state_dict())
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])
    assert not all(torch.equal(states[0][key], states[2][key]) for key in states[0])


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_every_parameter_takes_part(name: str) -> None:
    architecture = ARCHITECTURES[name]
    network = architecture.build()
    assert architecture.image_shape is not None
    loss = nn.functional.cross_entropy(network(_inputs(architecture.image_shape)), torch.arange(64) % 10)
    names, parameters = zip(*network.named_parameters(), strict=True)
    for name, gradient in zip(names, torch.autograd.grad(loss, parameters), strict=True):
        assert gradient.abs().sum() > 0, name


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
    assert architecture.image_shape is None
    assert architecture.n_classes is None
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
