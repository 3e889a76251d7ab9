from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pytest
from numpy_classifiers import Floats, Mlp, digits, fit

from evaluators.normalisation import check_normalisation

HELD_OUT = slice(1200, 1456)


@dataclass
class Expecting:
    """`base` behind the inverse of what its images must have gone through."""

    base: Mlp
    undo: Callable[[Floats], Floats]

    def logits(self, images: Floats) -> Floats:
        return self.base.logits(self.undo(images))


def test_images_as_they_are() -> None:
    images, labels = digits()
    check = check_normalisation(fit(), images[HELD_OUT].astype(np.float32) / 255, labels[HELD_OUT], 100)
    assert check.passed
    assert check.evidence["as given"] > 0.9


@pytest.mark.parametrize(
    ("undo", "words"),
    [
        (lambda x: x / 255, "images in 0 … 255"),
        (lambda x: (x + 1) / 2, "images in −1 … 1"),
        (lambda x: x * np.float32(0.376) + np.float32(0.305), "normalised images"),
        (lambda x: 1 - x, "inverted images"),
    ],
    ids=["levels", "signed", "normalised", "inverted"],
)
def test_another_scale_is_found(undo: Callable[[Floats], Floats], words: str) -> None:
    images, labels = digits()
    classifier = Expecting(fit(), undo)
    check = check_normalisation(classifier, images[HELD_OUT].astype(np.float32) / 255, labels[HELD_OUT], 100)
    assert check.passed is False
    assert words in check.reason


def in_colour() -> tuple[Floats, np.ndarray]:
    """The digits with a red, a green and a blue that differ."""
    images, labels = digits()
    grey = images.astype(np.float32) / 255
    return np.concatenate([grey, np.roll(grey, 1, 3) / 2, 1 - grey], 1), labels


@pytest.mark.parametrize("swapped", [False, True])
def test_exchanged_channels_are_found(swapped: bool) -> None:
    images, labels = in_colour()
    features = images[:1200].reshape(1200, -1).astype(np.float64)
    features = np.concatenate([features, np.ones((1200, 1))], 1)
    solution = np.linalg.solve(features.T @ features + np.eye(193), features.T @ np.eye(10)[labels[:1200]])
    readout, bias = solution[:-1].astype(np.float32), solution[-1].astype(np.float32)
    classifier = Expecting(Mlp(readout, bias), (lambda x: x[:, ::-1]) if swapped else (lambda x: x))
    check = check_normalisation(classifier, images[HELD_OUT], labels[HELD_OUT], 100)
    assert check.passed is (not swapped)
    if swapped:
        assert "red and blue exchanged" in check.reason


def test_a_gain_by_chance_is_none() -> None:
    """Three images of which one more is right under another scale prove nothing."""
    images, labels = digits()
    floats = images[:3].astype(np.float32) / 255
    readout = np.zeros((64, 10), np.float32)
    classifier = Expecting(Mlp(readout, np.eye(10, dtype=np.float32)[labels[0]]), lambda x: x)
    assert check_normalisation(classifier, floats, labels[:3], 3).passed
