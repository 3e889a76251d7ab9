"""Labelled images as they are stored: uint8, so that a whole data set stays in memory."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from atmc_tool.data.order import Indices

MAX_BYTES = 16 * 2**30
"""Decoded images of one data set, at most; a header that claims more is damaged or hostile."""


@dataclass(frozen=True, eq=False)
class Images:
    """`images` uint8 (n, C, H, W), 0 … 255; `labels` int64 (n,), 0 … n_classes − 1."""

    images: NDArray[np.uint8]
    labels: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(channels, height, width)."""
        _, channels, height, width = self.images.shape
        return channels, height, width

    def read(self) -> "Images":
        """Themselves, for they are in memory."""
        return self

    def take(self, indices: Indices) -> "Images":
        """The images at `indices`, in that order (a copy)."""
        return Images(self.images[indices], self.labels[indices])

    def floats(self) -> NDArray[np.float32]:
        """The images as float32 (n, C, H, W) in [0, 1]."""
        return np.divide(self.images, np.float32(255), dtype=np.float32)
