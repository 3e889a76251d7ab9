"""The basic iterative method, PGD from the image itself (Kurakin et al. 2017, arXiv:1607.02533)."""

from atmc_tool.attacks.classifier import Array, Classifier, Loss
from atmc_tool.attacks.pgd import pgd
from atmc_tool.threat_model import Norm


def bim(
    classifier: Classifier,
    images: Array,
    labels: Array,
    eps: float,
    *,
    steps: int,
    loss: Loss = "cross_entropy",
    norm: Norm = "linf",
) -> Array:
    """`steps` steps of eps/steps from the image, which just reach the ball's surface; the same images every time.

    images: float32 (N, C, H, W) in [0, 1]; labels int64 (N,)
    Returns: adversarial images (N, C, H, W), for `steps` input gradients.
    """
    return pgd(classifier, images, labels, eps, steps=steps, step_size=eps / steps, loss=loss, norm=norm)
