"""Networks: a registry of built-in ones, the user's own by name of a callable, and their files.

No network normalises its input; the engine computes network((x − mean) / std) for images x in [0, 1].
"""

import difflib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

from torch import nn

from atmc_tool.errors import AtmcError, UsageError
from atmc_tool.models.digits_cnn import digits_cnn
from atmc_tool.models.lenet import lenet, lenet_relu
from atmc_tool.models.resnet import resnet20
from atmc_tool.plugins import load_callable


@dataclass(frozen=True)
class Architecture:
    """How to build a network, and what it takes and gives.

    build:       a new network with initial weights from torch's global generator
    image_shape: (channels, height, width) of one image; None: as the data
    n_classes:   number of logits; None: as the data
    mean, std:   per-channel normalisation for files that state none
    """

    name: str
    build: Callable[[], nn.Module]
    image_shape: tuple[int, int, int] | None = None
    n_classes: int | None = None
    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)


ARCHITECTURES: Mapping[str, Architecture] = MappingProxyType(
    {
        architecture.name: architecture
        for architecture in (
            Architecture("digits-cnn", digits_cnn, (1, 8, 8), 10),
            Architecture("lenet", lenet, (1, 28, 28), 10),
            Architecture("lenet-relu", lenet_relu, (1, 28, 28), 10),
            # The normalisation of the public checkpoints of this network: ImageNet's, not CIFAR's own.
            Architecture("resnet20", resnet20, (3, 32, 32), 10, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
        )
    }
)


def resolve_architecture(spec: str) -> Architecture:
    """A registry name, `pkg.mod:callable` or `file.py:callable` → Architecture.

    A callable is called without arguments whenever a network is built; `build` raises UsageError where that fails
    or gives no `torch.nn.Module`.

    Raises:
        UsageError: no such name, or the callable can't be had.
    """
    if spec in ARCHITECTURES:
        return ARCHITECTURES[spec]
    if ":" in spec:
        builder = load_callable(spec)
        return Architecture(spec, lambda: _build(spec, builder))
    near = difflib.get_close_matches(spec, ARCHITECTURES, n=1, cutoff=0.5)
    raise UsageError(
        "unknown network",
        expected=f"one of {', '.join(ARCHITECTURES)}, pkg.mod:callable or file.py:callable",
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
