"""Projected gradient descent on the input (Madry et al. 2018, arXiv:1706.06083)."""

from array_api_compat import array_namespace

from atmc_tool.attacks.classifier import Array, Classifier, Loss


def default_step_size(eps: float, steps: int) -> float:
    """2.5·eps/steps: any point of the ball can be reached from any start, with room to turn (Madry et al. 2018)."""
    return 2.5 * eps / steps


def ball(images: Array, eps: float) -> tuple[Array, Array]:
    """Lowest and highest value of every pixel under ‖x' − x‖∞ ≤ eps and x' in [0, 1]; images (N, C, H, W) in [0, 1]."""
    xp = array_namespace(images)
    return xp.maximum(images - eps, xp.zeros_like(images)), xp.minimum(images + eps, xp.ones_like(images))


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
) -> Array:
    """argmax over the ball of the loss, approximately: x ← project(x + step_size·sign(∇loss)), `steps` times.

    images:  float32 (N, C, H, W) in [0, 1]; labels int64 (N,)
    noise:   (N, C, H, W) in [-1, 1]; the start is then images + eps·noise, clipped to [0, 1]. None: the images
    Returns: adversarial images (N, C, H, W). One step costs one input gradient; nothing is read back to the host.
    """
    xp = array_namespace(images)
    low, high = ball(images, eps)
    adversarial = images if noise is None else xp.minimum(xp.maximum(images + eps * noise, low), high)
    for _ in range(steps):
        step = xp.sign(classifier.logits_and_gradient(adversarial, labels, loss)[1])
        step *= step_size
        step += adversarial
        adversarial = xp.minimum(xp.maximum(step, low), high)
    return adversarial
