"""The losses of adversarial training.

Each is a function of a classifier, images x (N, C, H, W), adversarial images x' or None, labels y (N,), a weight, and a
label smoothing s. It yields terms, scalars that add up to the loss: with the gradient taken of each before the next,
only one term's graph is in memory. p are probabilities, CE cross-entropies, all are batch means. CE(f(x), y) is the
cross-entropy to the target (1 − s)·onehot(y) + s/classes.
"""

from collections.abc import Callable, Iterator, Mapping
from types import MappingProxyType

import torch
import torch.nn.functional as F
from torch import Tensor

from atmc_tool.config import ObjectiveName, ScheduleConfig
from atmc_tool.torch_classifier import TorchClassifier

Objective = Callable[[TorchClassifier, Tensor, Tensor | None, Tensor, float, float], Iterator[Tensor]]
ALMOST_ONE = 1 + 1e-6  # keeps the logarithm of 1 − p finite


def mixed(
    classifier: TorchClassifier,
    images: Tensor,
    adversarial: Tensor | None,
    labels: Tensor,
    weight: float,
    smoothing: float = 0.0,
) -> Iterator[Tensor]:
    """(1 − w)·CE(f(x'), y) + w·CE(f(x), y); w = 1/2 in ATMC (arXiv:1902.03538), 0 in Madry et al. (arXiv:1706.06083).

    With no x' CE(f(x), y). A weight of 0 or 1 skips the forward pass it mutes.
    """
    if adversarial is None or weight == 1:
        yield F.cross_entropy(classifier.logits(images), labels, label_smoothing=smoothing)
        return
    yield (1 - weight) * F.cross_entropy(classifier.logits(adversarial), labels, label_smoothing=smoothing)
    if weight:
        yield weight * F.cross_entropy(classifier.logits(images), labels, label_smoothing=smoothing)


def trades(
    classifier: TorchClassifier,
    images: Tensor,
    adversarial: Tensor | None,
    labels: Tensor,
    weight: float,
    smoothing: float = 0.0,
) -> Iterator[Tensor]:
    """CE(f(x), y) + β·KL(p(x) ‖ p(x')) (Zhang et al. 2019, arXiv:1901.08573, equation 5); with no x' CE(f(x), y)."""
    clean = classifier.logits(images)
    loss = F.cross_entropy(clean, labels, label_smoothing=smoothing)
    if adversarial is not None:
        loss = loss + weight * _divergence(clean, classifier.logits(adversarial)).mean()
    yield loss


def mart(
    classifier: TorchClassifier,
    images: Tensor,
    adversarial: Tensor | None,
    labels: Tensor,
    weight: float,
    smoothing: float = 0.0,  # noqa: ARG001
) -> Iterator[Tensor]:
    """BCE(p(x'), y) + λ·KL(p(x) ‖ p(x'))·(1 − p_y(x)), with BCE = −log p_y − log(1 − max_{k ≠ y} p_k).

    With no x' CE(f(x), y). Labels are never smoothed. Source: Wang et al. 2020, "Improving adversarial robustness
    requires revisiting misclassified examples", equations 8 to 11.
    """
    if adversarial is None:
        yield F.cross_entropy(classifier.logits(images), labels)
        return
    clean, attacked = classifier.logits(images), classifier.logits(adversarial)
    chosen = labels[:, None]
    wrong = attacked.softmax(1).scatter(1, chosen, 0.0).amax(1)
    boosted = F.cross_entropy(attacked, labels) - (ALMOST_ONE - wrong).log().mean()
    unsure = 1 - clean.softmax(1).gather(1, chosen)[:, 0]
    yield boosted + weight * (_divergence(clean, attacked) * unsure).mean()


def _divergence(logits: Tensor, others: Tensor) -> Tensor:
    """KL(p ‖ q) of the softmaxes of two batches of logits (N, classes): (N,)."""
    return F.kl_div(others.log_softmax(1), logits.log_softmax(1), reduction="none", log_target=True).sum(1)


@torch.no_grad()
def attack_targets(name: ObjectiveName, classifier: TorchClassifier, images: Tensor, labels: Tensor) -> Tensor:
    """What the training attack maximises the cross-entropy to: labels (N,), or for TRADES p(x) (N, classes).

    The gradient of KL(p(x) ‖ p(x')) in x' is that of the cross-entropy of f(x') to the probabilities p(x).
    """
    return classifier.logits(images).softmax(1) if name == "trades" else labels


OBJECTIVES: Mapping[ObjectiveName, Objective] = MappingProxyType(
    {
        "natural": mixed,
        "mixed": mixed,
        "pgd-at": mixed,
        "trades": trades,
        "mart": mart,
        "free": mixed,
        "fgsm-rs": mixed,
        "n-fgsm": mixed,
    }
)


def loss_weight(schedule: ScheduleConfig) -> float:
    """The weight in the loss of the objective: w of `mixed`, which is 1 for `natural` and 0 for the others; β, λ."""
    weights = {"natural": 1.0, "mixed": schedule.clean_weight, "trades": schedule.beta, "mart": schedule.beta}
    return weights.get(schedule.objective, 0.0)


def needs_attack(schedule: ScheduleConfig) -> bool:
    """Whether x' takes part in the loss."""
    return OBJECTIVES[schedule.objective] is not mixed or loss_weight(schedule) != 1
