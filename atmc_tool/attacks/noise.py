"""Random noise, the weakest attack: a network that errs under it is not robust to anything."""

from array_api_compat import array_namespace

from atmc_tool.attacks.classifier import Array
from atmc_tool.attacks.norms import length, projection
from atmc_tool.threat_model import Norm


def noisy(images: Array, eps: float, *, noise: Array, norm: Norm = "linf") -> Array:
    """x + eps·noise in the box; in l2 x + eps·noise/‖noise‖₂, on the ball's surface but for the box.

    images: float32 (N, C, H, W) in [0, 1]; noise (N, C, H, W) of `start_noise`: uniform in the unit ball of the norm
    Returns: images (N, C, H, W), for no pass through the classifier.
    """
    if norm == "l2":
        size = length(noise, norm)[:, None, None, None]
        noise = noise / array_namespace(noise).clip(size, 1e-12, None)
    return projection(images, eps, norm)(images + eps * noise)
