"""Accuracy where classes are not equally frequent: the mean of the recalls of the classes."""

import numpy as np
from numpy.typing import NDArray

UNBALANCED = 1.5
"""Classes are unbalanced where the most frequent one has more than so many times the images of the rarest one."""


def class_counts(labels: NDArray[np.int64]) -> NDArray[np.int64]:
    """Images of each class, 0 … the largest label."""
    return np.bincount(labels).astype(np.int64)


def is_unbalanced(counts: NDArray[np.int64]) -> bool:
    """Whether the classes that have images at all have very different numbers of them; see UNBALANCED."""
    present = counts[counts > 0]
    return bool(present.max() > UNBALANCED * present.min())


def balanced_accuracy(correct: NDArray[np.int64], counts: NDArray[np.int64]) -> float:
    """The mean of correct / counts over the classes that have images (Brodersen et al. 2010).

    correct, counts: images of each class that are right, and all of them
    """
    present = counts > 0
    return float(np.mean(correct[present] / counts[present]))
