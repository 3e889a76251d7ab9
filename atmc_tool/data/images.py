"""Labelled images as they are stored: uint8, so that a whole data set stays in memory."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from atmc_tool.data.order import Indices, permutation
from atmc_tool.errors import UsageError

MAX_BYTES = 16 * 2**30
"""Decoded images of one data set, at most; a header that claims more is damaged or hostile."""


@dataclass(frozen=True, eq=False)
class Images:
    """`images` uint8 (n, C, H, W), 0 … 255; `labels` int64 (n,), 0 … n_classes − 1."""

    images: NDArray[np.uint8]
    labels: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, indices: Indices) -> "Images":
        """The images at `indices`, in that order (a copy)."""
        return Images(self.images[indices], self.labels[indices])

    def floats(self) -> NDArray[np.float32]:
        """The images as float32 (n, C, H, W) in [0, 1]."""
        return np.divide(self.images, np.float32(255), dtype=np.float32)


def test_subset(images: Images, n: int, seed: int = 0) -> Images:  # noqa: PT028 - no test, in spite of its name
    """The first `n` images (all, where there are fewer) of a permutation fixed by `seed`.

    `compress` and `verify` measure on the same images because both take them from here.

    Raises:
        UsageError: n below 1.
    """
    if n < 1:
        raise UsageError("the number of test images is out of range", expected="at least 1", got=n)
    return images.take(permutation(len(images), seed)[:n])


def test_labels(images: Images, n: int, seed: int = 0) -> NDArray[np.int64]:  # noqa: PT028
    """The labels of `test_subset`."""
    return images.labels[permutation(len(images), seed)[:n]]
