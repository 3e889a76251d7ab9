"""Numbers of half precision (IEEE binary16) in place of single precision, where that changes next to nothing."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from atmc_tool.attacks.classifier import Classifier

RELATIVE_ERROR = 2.0**-11  # of rounding to half precision, from 2⁻¹⁴ to 65,504
MOST_LOGITS_MOVE = 0.01  # a hundredth: log-odds between two classes by at most two


def half_values(tensor: Tensor) -> Tensor:
    """The float32 `tensor` with every value rounded to half precision; itself where one would move by more than 2⁻¹¹.

    So by half of the last of 11 bits, relative to the value. Too large or too small ones move by more. Zeros stay. On a
    GPU nothing waits for it.
    """
    rounded = tensor.half().to(tensor.dtype)
    return torch.where(((rounded - tensor).abs() <= RELATIVE_ERROR * tensor.abs()).all(), rounded, tensor)


def half_array(array: NDArray[Any]) -> NDArray[Any]:
    """A float32 `array` with every value rounded to half precision; itself where one would move by too much.

    That is by more than 2⁻¹¹ of the largest magnitude in it, or to infinity. Arrays of other types stay as they are.
    """
    if array.dtype != np.float32 or not array.size:
        return array
    with np.errstate(over="ignore"):
        rounded = array.astype(np.float16).astype(np.float32)
    return rounded if (np.abs(rounded - array) <= RELATIVE_ERROR * np.abs(array).max()).all() else array


def half_rest(rest: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    """`half_array` of each."""
    return {name: half_array(array) for name, array in rest.items()}


@torch.no_grad()
def harmless(before: Classifier, after: Classifier, images: Tensor, batch_size: int) -> bool:
    """Whether no logit of `after` is further than 0.01 from that of `before` and no prediction another one.

    images: float32 (n, C, H, W) in [0, 1]
    """
    for batch in torch.split(images, batch_size):
        old, new = before.logits(batch), after.logits(batch)
        if (old - new).abs().max() > MOST_LOGITS_MOVE or not torch.equal(old.argmax(1), new.argmax(1)):
            return False
    return True
