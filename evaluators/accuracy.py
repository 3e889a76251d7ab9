"""Clean accuracy, and whether the outputs can be judged at all."""

import hashlib
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from atmc_tool.attacks.classifier import Classifier, correct
from atmc_tool.class_balance import balanced_accuracy, class_counts, is_unbalanced
from evaluators.gate import Check
from evaluators.statistics import Proportion

Progress = Callable[[int, int], None]
Floats = NDArray[np.float32]
Labels = NDArray[np.int64]

# Sums of floats depend on the order of summation, which depends on the batch: relative to the largest logit.
NUMERICAL_TOLERANCE = 1e-3
SINGLE_IMAGES = 8


def images_digest(images: NDArray[Any], labels: Labels) -> str:
    """SHA-256 of the pixels and labels, in order: two measurements with the same digest used the same images."""
    digest = hashlib.sha256(f"{images.dtype} {images.shape}".encode())
    digest.update(np.ascontiguousarray(images).data)
    digest.update(np.ascontiguousarray(labels, np.dtype("<i8")).data)
    return digest.hexdigest()


def batched_logits(
    classifier: Classifier, images: Floats, batch_size: int, progress: Progress | None = None
) -> NDArray[np.float32]:
    """Logits (n, classes) of images (n, C, H, W), `batch_size` at a time."""
    parts = []
    for first in range(0, len(images), batch_size):
        parts.append(np.asarray(classifier.logits(images[first : first + batch_size])))
        if progress is not None:
            progress(min(first + batch_size, len(images)), len(images))
    return np.concatenate(parts)


def accuracy(logits: NDArray[np.float32], labels: Labels) -> Proportion:
    """Share of samples whose largest logit is the label's."""
    return share(correct(logits, labels), labels)


def share(right: NDArray[np.bool_], labels: Labels) -> Proportion:
    """The samples that are `right`, bool (n,), of all; class by class as well where the classes are unbalanced."""
    counts = class_counts(labels)
    balanced = None
    if is_unbalanced(counts):
        balanced = balanced_accuracy(np.bincount(labels[right], minlength=len(counts)), counts)
    return Proportion(int(np.count_nonzero(right)), len(labels), balanced)


def chance(labels: Labels, classes: int) -> float:
    """The accuracy of who always guesses the most frequent class."""
    return max(1 / classes, float(np.bincount(labels).max() / len(labels)))


def check_logits(logits: NDArray[np.float32], n: int) -> Check:
    """Outputs are (n, classes ≥ 2), finite, and no probabilities, whose gradients vanish where the model is sure."""
    evidence: dict[str, Any] = {"shape": list(logits.shape), "dtype": str(logits.dtype)}
    if logits.ndim != 2 or len(logits) != n or logits.shape[1] < 2:
        return Check("logits", False, f"expected outputs of shape ({n}, classes ≥ 2), got {logits.shape}", evidence)
    bad = int(np.count_nonzero(~np.isfinite(logits).all(1)))
    if bad:
        return Check("logits", False, f"{bad} of {n} images have logits that are not finite", evidence)
    sums = logits.sum(1, dtype=np.float64)
    if (logits >= 0).all() and (logits <= 1).all() and np.allclose(sums, 1, rtol=0, atol=1e-4):
        return Check("logits", False, "outputs are probabilities: export the network without its softmax", evidence)
    evidence["largest"] = float(np.abs(logits).max())
    return Check("logits", True, f"finite, {logits.shape[1]} classes, no probabilities", evidence)


def check_determinism(classifier: Classifier, images: Floats) -> Check:
    """Repeated runs give the same bits, and one image alone gets the logits that it gets in a batch."""
    batch = np.asarray(classifier.logits(images))
    repeated = float(np.abs(np.asarray(classifier.logits(images)) - batch).max())
    alone = np.concatenate([np.asarray(classifier.logits(image[None])) for image in images[:SINGLE_IMAGES]])
    batching = float(np.abs(alone - batch[: len(alone)]).max())
    scale = max(1.0, float(np.abs(batch).max()))
    evidence = {"images": len(images), "repeated": repeated, "batching": batching, "largest_logit": scale}
    if repeated != 0:
        return Check("determinism", False, f"repeated runs differ by {repeated:.3g}: is there noise inside?", evidence)
    if not batching <= NUMERICAL_TOLERANCE * scale:
        reason = f"logits change by {batching:.3g} with the batch size: is a batch norm in training mode?"
        return Check("determinism", False, reason, evidence)
    return Check("determinism", True, f"repeated runs equal, batch 1 and batch N within {batching:.1g}", evidence)
