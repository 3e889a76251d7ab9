"""Small classifiers in NumPy with exact gradients, and planted faults that hide them."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray
from sklearn.datasets import load_digits

from atmc_tool.attacks.classifier import Loss
from atmc_tool.errors import AtmcError

Floats = NDArray[np.float32]
Classes = NDArray[np.int64]


def output_gradient(logits: Floats, labels: Classes, loss: Loss, targets: Classes | None = None) -> Floats:
    """Gradient of the loss, summed over the batch, with respect to the logits."""
    rows = np.arange(len(labels))
    if loss == "cross_entropy":
        exponentials = np.exp(logits - logits.max(1, keepdims=True))
        probabilities = exponentials / exponentials.sum(1, keepdims=True)
        sign, towards = (1, labels) if targets is None else (-1, targets)
        probabilities[rows, towards] -= 1
        return sign * probabilities
    others = logits.copy()
    others[rows, labels] = -np.inf
    best = others.argmax(1) if targets is None else targets
    gradient = np.zeros_like(logits)
    gradient[rows, best] = 1
    gradient[rows, labels] = -1
    if loss == "margin" or logits.shape[1] < (3 if targets is None else 4):
        return gradient
    order = np.argsort(-logits, 1)
    lower = [(1, order[:, 2])] if targets is None else [(0.5, order[:, 2]), (0.5, order[:, 3])]
    width = logits[rows, order[:, 0]] - sum(share * logits[rows, low] for share, low in lower)
    ratio = (logits[rows, best] - logits[rows, labels]) / width
    gradient[rows, order[:, 0]] -= ratio
    for share, low in lower:
        gradient[rows, low] += share * ratio
    return gradient / width[:, None]


@dataclass
class Mlp:
    """scale · (relu(x·hidden + offset)·readout + bias); without `hidden` a linear classifier."""

    readout: Floats
    bias: Floats
    hidden: Floats | None = None
    offset: Floats | None = None
    scale: float = 1.0

    def logits(self, images: Floats) -> Floats:
        features = images.reshape(len(images), -1)
        if self.hidden is not None:
            features = np.maximum(features @ self.hidden + self.offset, 0)
        return np.float32(self.scale) * (features @ self.readout + self.bias)

    def logits_and_gradient(
        self, images: Floats, labels: Classes, loss: Loss, targets: Classes | None = None
    ) -> tuple[Floats, Floats]:
        flat, logits = images.reshape(len(images), -1), self.logits(images)
        gradient = np.float32(self.scale) * output_gradient(logits, labels, loss, targets) @ self.readout.T
        if self.hidden is not None:
            gradient = (gradient * (flat @ self.hidden + self.offset > 0)) @ self.hidden.T
        return logits, gradient.reshape(images.shape)


@dataclass
class Masked:
    """`base` behind an output or input function whose derivative is zero almost everywhere."""

    base: Mlp
    on_input: Callable[[Floats], Floats] = lambda x: x
    on_output: Callable[[Floats], Floats] = lambda z: z

    def logits(self, images: Floats) -> Floats:
        return self.on_output(self.base.logits(self.on_input(images)))

    def logits_and_gradient(self, images: Floats, *_: object) -> tuple[Floats, Floats]:
        return self.logits(images), np.zeros_like(images)


class Noisy(Mlp):
    """Adds noise to its input: no two runs are equal."""

    def logits(self, images: Floats) -> Floats:
        noise = np.random.default_rng().normal(0, 0.08, images.shape)
        return super().logits((images + noise).astype(np.float32))


class Softmax(Mlp):
    """Puts out probabilities."""

    def logits(self, images: Floats) -> Floats:
        exponentials = np.exp(super().logits(images))
        return exponentials / exponentials.sum(1, keepdims=True)


class BatchNormalised(Mlp):
    """Its logits depend on the other images of the batch."""

    def logits(self, images: Floats) -> Floats:
        return super().logits(images - images.mean(0))


class BlackBox(Mlp):
    """Has no gradient."""

    def logits_and_gradient(self, *_: object) -> tuple[Floats, Floats]:
        raise AtmcError("no derivative is known for operator Mystery")


class HalfWay(Mlp):
    """Has a gradient of the cross-entropy alone."""

    def logits_and_gradient(
        self, images: Floats, labels: Classes, loss: Loss, targets: Classes | None = None
    ) -> tuple[Floats, Floats]:
        if loss != "cross_entropy":
            raise AtmcError("no derivative is known for operator Mystery")
        return super().logits_and_gradient(images, labels, loss, targets)


@cache
def digits() -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Real handwritten digits: uint8 (1797, 1, 8, 8) and labels."""
    data = load_digits()
    return np.rint(data.images[:, None] * (255 / 16)).astype(np.uint8), data.target.astype(np.int64)


@cache
def fit(kind: type[Mlp] = Mlp, hidden: int = 200, scale: float = 10.0) -> Mlp:
    """Random features and a ridge readout on the first 1,200 digits (closed form); hidden = 0: linear."""
    images, labels = digits()
    x = images[:1200].reshape(1200, -1).astype(np.float32) / 255
    rng = np.random.default_rng(0)
    weight = rng.normal(0, 0.25, (64, hidden)).astype(np.float32) if hidden else None
    offset = rng.normal(0, 0.25, hidden).astype(np.float32) if hidden else None
    features = x if weight is None else np.maximum(x @ weight + offset, 0)
    features = np.concatenate([features, np.ones((1200, 1), np.float32)], 1).astype(np.float64)
    targets = np.eye(10)[labels[:1200]]
    solution = np.linalg.solve(features.T @ features + np.eye(features.shape[1]), features.T @ targets)
    return kind(solution[:-1].astype(np.float32), solution[-1].astype(np.float32), weight, offset, scale)


def random_linear(rng: np.random.Generator, classes: int, pixels: int) -> Mlp:
    """A linear classifier with Gaussian weights that is undecided about the grey image."""
    readout = rng.normal(size=(pixels, classes)).astype(np.float32)
    return Mlp(readout, -0.5 * readout.sum(0))
