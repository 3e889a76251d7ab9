"""The test images that accuracies are measured on."""

import numpy as np
from numpy.typing import NDArray

from atmc_tool.data.images import Images
from atmc_tool.data.order import permutation
from atmc_tool.data.streamed import StreamedImages
from atmc_tool.errors import UsageError


def test_subset(images: Images | StreamedImages, n: int, seed: int = 0) -> Images:  # noqa: PT028 - no test, in spite of its name
    """The first `n` images (all, where there are fewer) of a permutation fixed by `seed`.

    `compress` and `verify` measure on the same images because both take them from here.

    Raises:
        UsageError: n below 1.
        InputError: one of them is a damaged file.
    """
    if n < 1:
        raise UsageError("the number of test images is out of range", expected="at least 1", got=n)
    return images.take(permutation(len(images), seed)[:n]).read()


def test_labels(images: Images | StreamedImages, n: int, seed: int = 0) -> NDArray[np.int64]:  # noqa: PT028
    """The labels of `test_subset`."""
    return images.labels[permutation(len(images), seed)[:n]]
