"""C&W-inf: PGD on the loss of Carlini & Wagner (2017, arXiv:1608.04644), as papers on robust compression state it."""

from dataclasses import dataclass

from array_api_compat import array_namespace

from atmc_tool.attacks.classifier import Array, Classifier, Loss, margin
from atmc_tool.attacks.pgd import pgd
from atmc_tool.threat_model import Norm

CONFIDENCE = 50.0  # κ


def cw(
    classifier: Classifier,
    images: Array,
    labels: Array,
    eps: float,
    *,
    steps: int,
    step_size: float,
    noise: Array | None = None,
    confidence: float = CONFIDENCE,
    norm: Norm = "linf",
) -> Array:
    """PGD on min(max over j ≠ y of z_j − z_y, κ): it stops where the wrong class leads by the confidence κ.

    images: float32 (N, C, H, W) in [0, 1]; labels int64 (N,); noise as of `pgd`
    Returns: adversarial images (N, C, H, W), for `steps` input gradients.
    """
    confident = _Confident(classifier, confidence)
    return pgd(confident, images, labels, eps, steps=steps, step_size=step_size, noise=noise, loss="margin", norm=norm)


@dataclass(frozen=True)
class _Confident:
    """The classifier, whose gradient of the margin is 0 where the margin has reached the confidence."""

    classifier: Classifier
    confidence: float

    def logits(self, images: Array) -> Array:
        return self.classifier.logits(images)

    def logits_and_gradient(
        self, images: Array, labels: Array, loss: Loss, targets: Array | None = None
    ) -> tuple[Array, Array]:
        logits, gradient = self.classifier.logits_and_gradient(images, labels, loss, targets)
        below = margin(logits, labels) < self.confidence
        return logits, gradient * array_namespace(gradient).astype(below, gradient.dtype)[:, None, None, None]
