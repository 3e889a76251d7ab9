"""Projected gradient descent on the input (Madry et al. 2018, arXiv:1706.06083)."""

from atmc_tool.attacks.classifier import Array, Classifier, Loss
from atmc_tool.attacks.norms import direction, projection
from atmc_tool.threat_model import Norm


def default_step_size(eps: float, steps: int) -> float:
    """2.5·eps/steps: any point of the ball can be reached from any start, with room to turn (Madry et al. 2018)."""
    return 2.5 * eps / steps


def pgd(
    classifier: Classifier,
    images: Array,
    labels: Array,
    eps: float,
    *,
    steps: int,
    step_size: float,
    noise: Array | None = None,
    loss: Loss = "cross_entropy",
    targets: Array | None = None,
    norm: Norm = "linf",
) -> Array:
    """argmax over the ball of the loss, approximately: x ← project(x + step_size·direction(∇loss)), `steps` times.

    images:  float32 (N, C, H, W) in [0, 1]; labels, and the classes to end at, targets, int64 (N,)
    noise:   (N, C, H, W) of norm at most 1; the start is then project(images + eps·noise). None: the images
    norm:    the direction is the gradient's sign in l-infinity, the gradient over its length in l2
    Returns: adversarial images (N, C, H, W). One step costs one input gradient; nothing is read back to the host.
    """
    project = projection(images, eps, norm)
    adversarial = images if noise is None else project(images + eps * noise)
    for _ in range(steps):
        step = direction(classifier.logits_and_gradient(adversarial, labels, loss, targets)[1], norm)
        step *= step_size
        step += adversarial
        adversarial = project(step)
    return adversarial
