"""scikit-learn's handwritten digits (8 × 8, UCI Optical Recognition of Handwritten Digits): no download."""

import numpy as np

from atmc_tool.data.data_set import Augmentation, Parts
from atmc_tool.data.images import Images
from atmc_tool.data.order import stratified_order

N_TEST = 360


def read_digits() -> Parts:
    """1,437 training and 360 test images, uint8 (n, 1, 8, 8), in a split that never changes.

    The split is ours, for the source has none, and stands apart from the seed of a run: a run could otherwise test on
    what another has trained on.
    """
    from sklearn.datasets import load_digits  # late: a second of imports that other sources don't need

    values, labels = load_digits(return_X_y=True)  # values 0 … 16, (1797, 64)
    images = np.rint(values.reshape(-1, 1, 8, 8) * (255 / 16)).astype(np.uint8)
    everything = Images(images, labels.astype(np.int64))
    order = stratified_order(everything.labels, 0)
    train, test = np.sort(order[N_TEST:]), np.sort(order[:N_TEST])
    # no shift: the digits fill the 8 × 8 frame, and one pixel cost robust accuracy (docs/log.md)
    return Parts(everything.take(train), everything.take(test), tuple(map(str, range(10))), Augmentation())
