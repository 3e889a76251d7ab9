"""Adversarial images to look at: the clean image, the one that fools the network, and their difference."""

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from atmc_tool.attacks.classifier import Classifier
from evaluators.accuracy import Floats, Labels, batched_logits

MOST = 6
CANDIDATES = 128  # fooled images looked at
BATCH = 32
LONGEST_SIDE = 96  # pixels; of larger images every second (third, …) row and column is shown


@dataclass(frozen=True, eq=False)
class Example:
    """clean, adversarial: float32 (C, H, W) in [0, 1]; before, after: what the network says, first correctly."""

    clean: Floats
    adversarial: Floats
    before: str
    after: str

    @property
    def amplification(self) -> float:
        """What the difference is multiplied with, so that its largest value reaches black or white."""
        largest = float(np.abs(self.adversarial - self.clean).max())
        return 0.5 / largest if largest > 0 else 1.0

    def pictures(self) -> dict[str, str]:
        """PNG data URIs: clean, adversarial, and difference, in which the middle grey is no change."""
        difference = 0.5 + self.amplification * (self.adversarial - self.clean)
        shown = {"clean": self.clean, "adversarial": self.adversarial, "difference": difference}
        return {name: data_uri(image) for name, image in shown.items()}


def fooled_examples(
    classifier: Classifier,
    images: NDArray[Any],
    labels: Labels,
    robust: NDArray[np.bool_],
    adversarial: Floats,
    class_names: Sequence[str],
) -> list[Example]:
    """Up to MOST images that the network classifies correctly until attacked; of each class one in turn.

    images:      (n, C, H, W), uint8 or floats in [0, 1]; `labels` (n,)
    robust:      bool (n,), correct and not fooled
    adversarial: (n, C, H, W), where an image is not robust one that the network errs on
    """
    fooled = np.flatnonzero(~robust)[:CANDIDATES]
    right = fooled[_said(classifier, _floats(images[fooled])) == labels[fooled]]
    chosen = in_turn(right, labels)[:MOST]
    clean, attacked = _floats(images[chosen]), adversarial[chosen]

    def name(label: int) -> str:
        return class_names[label] if label < len(class_names) else str(label)

    said = zip(clean, attacked, labels[chosen].tolist(), _said(classifier, attacked).tolist(), strict=True)
    return [Example(image, other, name(label), name(after)) for image, other, label, after in said if label != after]


def _said(classifier: Classifier, images: Floats) -> NDArray[np.intp]:
    """The class of the largest logit, (m,), of images (m, C, H, W)."""
    return batched_logits(classifier, images, BATCH).argmax(1) if len(images) else np.empty(0, np.intp)


def _floats(images: NDArray[Any]) -> Floats:
    return np.divide(images, np.float32(255), dtype=np.float32) if images.dtype == np.uint8 else images


def in_turn(indices: NDArray[np.intp], labels: Labels) -> NDArray[np.intp]:
    """`indices` in the order: the first of each class, the second of each class, …"""
    seen: dict[int, int] = {}
    ranks = []
    for index in indices:
        label = int(labels[index])
        ranks.append((seen.get(label, 0), label))
        seen[label] = ranks[-1][0] + 1
    order = sorted(range(len(indices)), key=ranks.__getitem__)
    return indices[np.array(order, np.intp)]


def data_uri(image: Floats) -> str:
    """The image (C, H, W) in [0, 1] as a PNG; of other than three channels the first alone."""
    step = -(-max(image.shape[1:]) // LONGEST_SIDE)
    pixels = np.rint(255 * image[:, ::step, ::step].clip(0, 1)).astype(np.uint8)
    buffer = io.BytesIO()
    picture = Image.fromarray(pixels.transpose(1, 2, 0).copy() if len(pixels) == 3 else pixels[0])
    picture.save(buffer, "PNG", optimize=True)
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"
