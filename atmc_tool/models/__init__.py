"""Networks: a registry of built-in ones, the user's own by name of a callable, and their files.

No network normalises its input; the engine computes network((x − mean) / std) for images x in [0, 1].
"""

import difflib
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from types import MappingProxyType

from torch import nn

from atmc_tool.errors import AtmcError, UsageError
from atmc_tool.models import imagenet_resnet, vgg
from atmc_tool.models.digits_cnn import digits_cnn
from atmc_tool.models.imagenet_resnet import ResNet
from atmc_tool.models.lenet import lenet, lenet_relu
from atmc_tool.models.lenet_adv import LeNetAdv
from atmc_tool.models.mobilenet import MobileNetV2
from atmc_tool.models.resnet import resnet20
from atmc_tool.models.vgg import VGG16
from atmc_tool.models.wide_resnet import WideResNet
from atmc_tool.plugins import load_callable


@dataclass(frozen=True)
class Architecture:
    """How to build a network, and what it takes and gives.

    make:        number of classes → a new network with initial weights from torch's global generator
    image_shape: (channels, height, width) of one image; None: not one alone
    logits:      name of the linear layer whose units are the classes; None: the number of classes is the network's own
    mean, std:   per-channel normalisation for files that state none
    """

    name: str
    make: Callable[[int], nn.Module]
    image_shape: tuple[int, int, int] | None = None
    logits: str | None = None
    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)

    def build(self, n_classes: int = 10) -> nn.Module:
        """A new network; one of the user's own does not ask for `n_classes`."""
        return self.make(n_classes)


@dataclass(frozen=True)
class Family:
    """Networks that differ in a width, from 1 to `most`, which is the last number of their name.

    make: (number of classes, width) → network; the rest as in `Architecture`
    """

    make: Callable[[int, int], nn.Module]
    most: int
    image_shape: tuple[int, int, int] | None = None
    logits: str = "fc"
    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)

    def member(self, name: str, width: int) -> Architecture:
        """The network of that width, under `name`."""

        def make(n_classes: int) -> nn.Module:
            return self.make(n_classes, width)

        return Architecture(name, make, self.image_shape, self.logits, self.mean, self.std)


CIFAR = (3, 32, 32)
IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # mean and standard deviation that torchvision's networks take


def _resnet(depth: int, n_classes: int, width: int) -> nn.Module:
    return ResNet(depth, n_classes, width, large=False)


def _large_resnet(depth: int, n_classes: int, width: int) -> nn.Module:
    return ResNet(depth, n_classes, width, large=True)


FAMILIES: Mapping[str, Family] = MappingProxyType(
    {
        "lenet-adv": Family(LeNetAdv, 64, (1, 28, 28), "fc2"),
        **{f"resnet{depth}": Family(partial(_resnet, depth), 256) for depth in imagenet_resnet.BLOCKS},
        **{
            f"resnet{depth}-imagenet": Family(partial(_large_resnet, depth), 256, None, "fc", *IMAGENET)
            for depth in imagenet_resnet.BLOCKS
        },
        "vgg16": Family(VGG16, 256, CIFAR, "classifier.6"),
        "wrn-16": Family(partial(WideResNet, 16), 20),
        "wrn-28": Family(partial(WideResNet, 28), 20),
    }
)

ARCHITECTURES: Mapping[str, Architecture] = MappingProxyType(
    {
        architecture.name: architecture
        for architecture in (
            Architecture("digits-cnn", digits_cnn, (1, 8, 8), "fc2"),
            Architecture("lenet", lenet, (1, 28, 28), "fc2"),
            Architecture("lenet-relu", lenet_relu, (1, 28, 28), "fc2"),
            FAMILIES["lenet-adv"].member("lenet-adv", 2),
            # The normalisation of the public checkpoints of this network: ImageNet's, not CIFAR's own.
            Architecture("resnet20", resnet20, CIFAR, "linear", *IMAGENET),
            *(
                FAMILIES[f"resnet{depth}{stem}"].member(f"resnet{depth}{stem}", imagenet_resnet.WIDTH)
                for stem in ("", "-imagenet")
                for depth in imagenet_resnet.BLOCKS
            ),
            FAMILIES["wrn-16"].member("wrn-16-8", 8),
            # the network of the ATMC paper's SVHN experiments (arXiv:1902.03538)
            Architecture("wrn-16-8-dropout", lambda n_classes: WideResNet(16, n_classes, 8, dropout=0.4), None, "fc"),
            FAMILIES["wrn-28"].member("wrn-28-4", 4),
            FAMILIES["vgg16"].member("vgg16", vgg.WIDTH),
            Architecture("mobilenet-v2", partial(MobileNetV2, large=False), None, "classifier.1"),
            Architecture("mobilenet-v2-imagenet", partial(MobileNetV2, large=True), None, "classifier.1", *IMAGENET),
        )
    }
)


def find_architecture(name: str) -> Architecture | None:
    """The built-in network `name`, with the width that the name may end in; None where there is none."""
    if name in ARCHITECTURES:
        return ARCHITECTURES[name]
    match = re.fullmatch(r"(.+)-([1-9]\d{0,3})", name)
    family = FAMILIES.get(match[1]) if match else None
    if match is None or family is None or int(match[2]) > family.most:
        return None
    return family.member(name, int(match[2]))


def resolve_architecture(spec: str) -> Architecture:
    """A built-in name (see `find_architecture`), `pkg.mod:callable` or `file.py:callable` → Architecture.

    A callable is called without arguments whenever a network is built; `build` raises UsageError where that fails
    or gives no `torch.nn.Module`.

    Raises:
        UsageError: no such name, or the callable can't be had.
    """
    if known := find_architecture(spec):
        return known
    if ":" in spec:
        builder = load_callable(spec)
        return Architecture(spec, lambda _: _build(spec, builder))
    near = difflib.get_close_matches(spec, ARCHITECTURES, n=1, cutoff=0.5)
    names = ", ".join([*ARCHITECTURES, *(f"{name}-WIDTH" for name in FAMILIES)])
    raise UsageError(
        "unknown network",
        expected=f"one of {names}, pkg.mod:callable or file.py:callable",
        got=repr(spec),
        hint=f"did you mean {near[0]}?" if near else "",
    )


def _build(spec: str, builder: Callable[..., object]) -> nn.Module:
    """What the user's `builder` gives; its own failures become one line that names the kind."""
    expected = "a callable that takes no arguments and returns a torch.nn.Module"
    try:
        network = builder()
    except AtmcError:
        raise
    except (Exception, SystemExit) as error:  # user's code, any error
        message = f"{type(error).__name__}: {error}"
        raise UsageError(f"{spec} failed to build a network", expected=expected, got=message) from error
    if not isinstance(network, nn.Module):
        raise UsageError(f"{spec} built no network", expected=expected, got=f"{type(network).__name__}")
    return network
