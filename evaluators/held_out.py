"""Whether the images that were measured had been trained or selected on."""

import hashlib
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from evaluators.gate import Check

MOST = 0.01  # share of the measured images: data sets as published have some images twice


def check_held_out(measured: NDArray[np.uint8], seen: Sequence[NDArray[np.uint8]]) -> Check:
    """At most 1 % of the measured images (n, C, H, W) are, to the pixel, among those seen in training or validation.

    seen: arrays uint8 (m, C, H, W); none where they are not in memory
    """
    if not seen:
        return Check("held-out", None, "the training images stay in their files: not compared")
    known = {_digest(image) for images in seen for image in images}
    twice = sum(_digest(image) in known for image in measured)
    n, m = len(measured), sum(map(len, seen))
    evidence = {"n": n, "seen": m, "twice": twice}
    reason = f"{twice} of {n} images ({twice / n:.2%}) are among the {m} for training and validation"
    return Check("held-out", twice <= MOST * n, reason, evidence)


def _digest(image: NDArray[np.uint8]) -> bytes:
    return hashlib.blake2b(np.ascontiguousarray(image).data, digest_size=16).digest()
