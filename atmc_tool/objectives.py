"""The losses of adversarial training."""

from collections.abc import Iterator

import torch.nn.functional as F
from torch import Tensor

from atmc_tool.torch_classifier import TorchClassifier


def mixed(
    classifier: TorchClassifier, images: Tensor, adversarial: Tensor | None, labels: Tensor, clean_weight: float
) -> Iterator[Tensor]:
    """w·CE(f(x), y) + (1 − w)·CE(f(x'), y), batch means; `w` = 1/2 in ATMC (arXiv:1902.03538). With no x' CE(f(x), y).

    Yields its terms, scalars: with the gradient taken of each before the next, only one term's graph is in memory. A
    weight of 0 or 1 skips the forward pass it mutes.
    """
    if adversarial is None or clean_weight == 1:
        yield F.cross_entropy(classifier.logits(images), labels)
        return
    yield (1 - clean_weight) * F.cross_entropy(classifier.logits(adversarial), labels)
    if clean_weight:
        yield clean_weight * F.cross_entropy(classifier.logits(images), labels)
