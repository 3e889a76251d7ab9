"""Whether the artefact takes the images that it is given: RGB in [0, 1], normalised inside the graph.

An attack in [0, 1] on a network that expects other numbers says nothing: eps is then not what it seems.
"""

from collections.abc import Callable

import numpy as np

from atmc_tool.attacks.classifier import Classifier, correct
from evaluators.accuracy import Floats, Labels, batched_logits
from evaluators.gate import Check
from evaluators.paired import pair

SAMPLES = 256
BETTER = 0.05  # of the accuracy: what another scale may be better by
BETTER_SWAPPED = 0.01  # the same of another order of channels, which helps no network that knows the right one
IMAGENET_MEAN = np.array([0.485, 0.456, 0.406], np.float32).reshape(1, 3, 1, 1)
IMAGENET_STD = np.array([0.229, 0.224, 0.225], np.float32).reshape(1, 3, 1, 1)


def check_normalisation(classifier: Classifier, images: Floats, labels: Labels, batch_size: int) -> Check:
    """No other scale or order of channels gives a much higher accuracy than images in [0, 1] as they are.

    Tried are 0 … 255, −1 … 1, the images' own mean and deviation taken out and put in, and for three channels those of
    ImageNet, and BGR. Another one is better where its gain exceeds `BETTER` and so does not only by chance: the lower
    95 % bound of the paired gain is above 0.
    """
    images, labels = images[:SAMPLES], labels[:SAMPLES]
    right = correct(batched_logits(classifier, images, batch_size), labels)
    found: dict[str, float] = {}
    better: dict[str, float] = {}
    for name, (change, least) in _changes(images).items():
        probe = correct(batched_logits(classifier, change(images).astype(np.float32), batch_size), labels)
        found[name] = float(probe.mean())
        paired = pair(right, probe)
        if -paired.drop > least and paired.highest_drop < 0:
            better[name] = found[name]
    evidence = {"n": len(labels), "as given": float(right.mean()), **found}
    if better:
        name = max(better, key=lambda name: better[name])
        reason = f"accuracy {right.mean():.4f} on images in [0, 1], but {better[name]:.4f} on {name} (n {len(labels)})"
        return Check("normalisation", False, f"{reason}: the graph expects other images than it gets", evidence)
    reason = f"accuracy {right.mean():.4f} on images in [0, 1], at most {max(found.values()):.4f} on others"
    return Check("normalisation", True, f"{reason} (n {len(labels)})", evidence)


def _changes(images: Floats) -> dict[str, tuple[Callable[[Floats], Floats], float]]:
    """What is tried → how, and by how much it may be better."""
    mean, std = images.mean((0, 2, 3), keepdims=True), images.std((0, 2, 3), keepdims=True) + np.float32(1e-6)
    changes: dict[str, tuple[Callable[[Floats], Floats], float]] = {
        "images in 0 … 255": (lambda x: x * 255, BETTER),
        "images in −1 … 1": (lambda x: 2 * x - 1, BETTER),
        "normalised images": (lambda x: (x - mean) / std, BETTER),
        "images whose normalisation is taken back": (lambda x: x * std + mean, BETTER),
        "inverted images": (lambda x: 1 - x, BETTER),
    }
    if images.shape[1] == 3:
        changes["images normalised as for ImageNet"] = (lambda x: (x - IMAGENET_MEAN) / IMAGENET_STD, BETTER)
        changes["images with red and blue exchanged"] = (lambda x: x[:, ::-1], BETTER_SWAPPED)
    return changes
