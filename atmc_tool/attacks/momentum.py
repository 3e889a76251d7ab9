"""MI-FGSM, the iterative method with momentum (Dong et al. 2018, arXiv:1710.06081, algorithm 1)."""

from array_api_compat import array_namespace

from atmc_tool.attacks.classifier import Array, Classifier, Loss
from atmc_tool.attacks.norms import direction, projection
from atmc_tool.threat_model import Norm

DECAY = 1.0  # μ of the paper


def momentum(
    classifier: Classifier,
    images: Array,
    labels: Array,
    eps: float,
    *,
    steps: int,
    loss: Loss = "cross_entropy",
    norm: Norm = "linf",
) -> Array:
    """g ← μ·g + ∇/‖∇‖₁, x ← project(x + eps/steps·direction(g)), μ = 1, `steps` times from g = 0 and the image.

    images: float32 (N, C, H, W) in [0, 1]; labels int64 (N,)
    Returns: adversarial images (N, C, H, W), for `steps` input gradients.
    """
    xp = array_namespace(images)
    project, adversarial, mean = projection(images, eps, norm), images, xp.zeros_like(images)
    for _ in range(steps):
        gradient = classifier.logits_and_gradient(adversarial, labels, loss)[1]
        size = xp.sum(xp.abs(gradient), axis=(1, 2, 3), keepdims=True)
        mean = DECAY * mean + gradient / xp.where(size > 0, size, xp.ones_like(size))
        adversarial = project(adversarial + eps / steps * direction(mean, norm))
    return adversarial
