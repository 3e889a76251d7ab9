"""The losses of adversarial training."""

import torch.nn.functional as F
from torch import Tensor

from atmc_tool.torch_classifier import TorchClassifier


def mixed(
    classifier: TorchClassifier, images: Tensor, adversarial: Tensor | None, labels: Tensor, clean_weight: float
) -> Tensor:
    """w·CE(f(x), y) + (1 − w)·CE(f(x'), y), batch means, a scalar; `w` = 1/2 in ATMC (arXiv:1902.03538).

    With `adversarial` None it is the natural loss CE(f(x), y). A weight of 0 or 1 skips the forward pass it mutes.
    """
    if adversarial is None or clean_weight == 1:
        return F.cross_entropy(classifier.logits(images), labels)
    loss = (1 - clean_weight) * F.cross_entropy(classifier.logits(adversarial), labels)
    if clean_weight:
        loss = loss + clean_weight * F.cross_entropy(classifier.logits(images), labels)
    return loss
