"""Random orders that stay the same for ever: they fix splits and subsets that published numbers rest on."""

import numpy as np
from numpy.typing import NDArray

Indices = NDArray[np.int64]


def permutation(n: int, *seed: int) -> Indices:
    """A random permutation of 0 … n−1, a function of the non-negative integers `seed` alone.

    Sorts raw 64-bit words of PCG64: NumPy promises that stream for every version (NEP 19), the streams of
    `Generator.permutation` it does not.
    """
    return np.argsort(np.random.PCG64(list(seed)).random_raw(n), kind="stable")


def stratified_order(labels: Indices, *seed: int) -> Indices:
    """A random order of the indices in which every prefix holds each class in its proportion, within one image or so.

    With equally frequent classes every prefix holds each class equally often, give or take one. The image of
    rank r among the n images of its class is placed at (r + u) / n, u in [0, 1) drawn per class.
    """
    shuffled = permutation(len(labels), *seed)
    _, classes, counts = np.unique(labels[shuffled], return_inverse=True, return_counts=True)
    by_class = np.argsort(classes, kind="stable")
    rank = np.empty(len(labels), np.int64)
    rank[by_class] = np.arange(len(labels)) - np.repeat(np.cumsum(counts) - counts, counts)
    offset = np.random.PCG64([*seed, len(counts)]).random_raw(len(counts)) / 2.0**64
    return shuffled[np.argsort((rank + offset[classes]) / counts[classes], kind="stable")]
