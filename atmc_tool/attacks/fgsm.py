"""Attacks of a single step, each for one input gradient: FGSM, and those with which fast adversarial training works."""

from array_api_compat import array_namespace

from atmc_tool.attacks.classifier import Array, Classifier, Loss
from atmc_tool.attacks.pgd import pgd
from atmc_tool.threat_model import Norm

RS_STEP = 1.25  # times eps (Wong et al. 2020)
N_NOISE = 2  # times eps (de Jorge et al. 2022)


def fgsm(
    classifier: Classifier,
    images: Array,
    labels: Array,
    eps: float,
    *,
    loss: Loss = "cross_entropy",
    norm: Norm = "linf",
) -> Array:
    """x + eps·sign ∇loss(x), in l2 x + eps·∇/‖∇‖₂, in the box (Goodfellow et al. 2015, arXiv:1412.6572).

    images: float32 (N, C, H, W) in [0, 1]; labels int64 (N,)
    Returns: adversarial images (N, C, H, W).
    """
    return pgd(classifier, images, labels, eps, steps=1, step_size=eps, loss=loss, norm=norm)


def fgsm_rs(
    classifier: Classifier, images: Array, labels: Array, eps: float, *, noise: Array, loss: Loss = "cross_entropy"
) -> Array:
    """FGSM from a random start: x + P(η + 1.25·eps·sign ∇loss(x + η)), η = eps·noise, P the projection on the ball.

    images: float32 (N, C, H, W) in [0, 1]; labels int64 (N,); noise (N, C, H, W) uniform in [-1, 1]
    Returns: adversarial images (N, C, H, W) in the ball and in [0, 1]; x + η is clipped to [0, 1] too.
    Source: Wong et al. 2020 (arXiv:2001.03994), algorithm 3.
    """
    return pgd(classifier, images, labels, eps, steps=1, step_size=RS_STEP * eps, noise=noise, loss=loss)


def n_fgsm(
    classifier: Classifier, images: Array, labels: Array, eps: float, *, noise: Array, loss: Loss = "cross_entropy"
) -> Array:
    """FGSM on noisy images: x + η + eps·sign ∇loss(x + η), η = 2·eps·noise, with no projection on the ball.

    images: float32 (N, C, H, W) in [0, 1]; labels int64 (N,); noise (N, C, H, W) uniform in [-1, 1]
    Returns: images (N, C, H, W) in [0, 1], as far as 3·eps away: an attack to train with, not one to measure by. x + η
    is clipped to [0, 1] too.
    Source: de Jorge et al. 2022 (arXiv:2202.01181), algorithm 1, k = 2, α = eps.
    """
    xp = array_namespace(images)
    noisy = xp.clip(images + N_NOISE * eps * noise, 0, 1)
    return xp.clip(noisy + eps * xp.sign(classifier.logits_and_gradient(noisy, labels, loss)[1]), 0, 1)
