"""The two norms of threat models: lengths, steepest directions, and the ball within the box [0, 1]."""

from collections.abc import Callable

from array_api_compat import array_namespace

from atmc_tool.attacks.classifier import Array
from atmc_tool.threat_model import Norm

_IMAGE = (1, 2, 3)  # axes


def length(perturbation: Array, norm: Norm) -> Array:
    """‖δ‖ of each of (N, C, H, W): (N,)."""
    xp = array_namespace(perturbation)
    if norm == "linf":
        return xp.max(xp.abs(perturbation), axis=_IMAGE)
    return xp.sqrt(xp.sum(perturbation * perturbation, axis=_IMAGE))


def direction(gradient: Array, norm: Norm) -> Array:
    """The δ of ‖δ‖ ≤ 1 that raises ⟨∇, δ⟩ most, an array of its own: sign ∇, or ∇/‖∇‖₂; 0 where ∇ is."""
    xp = array_namespace(gradient)
    if norm == "linf":
        return xp.sign(gradient)
    # Divided by its largest magnitude first: the squares of a small gradient would vanish.
    largest = xp.max(xp.abs(gradient), axis=_IMAGE, keepdims=True)
    scaled = gradient / xp.where(largest == 0, xp.ones_like(largest), largest)
    size = length(scaled, norm)[:, None, None, None]
    return scaled / xp.where(size == 0, xp.ones_like(size), size)


def ball(images: Array, eps: float) -> tuple[Array, Array]:
    """Lowest and highest value of every pixel under ‖x' − x‖∞ ≤ eps and x' in [0, 1]; images (N, C, H, W) in [0, 1]."""
    xp = array_namespace(images)
    return xp.maximum(images - eps, xp.zeros_like(images)), xp.minimum(images + eps, xp.ones_like(images))


def projection(images: Array, eps: float, norm: Norm) -> Callable[[Array], Array]:
    """A function that brings images x' (N, C, H, W) into the ball around `images` and into the box.

    In l-infinity it gives the nearest point of both. In l2 it shrinks x' − x to length eps, then clips to the box; as x
    lies in the box, clipping makes no pixel's change larger.
    """
    xp = array_namespace(images)
    if norm == "linf":
        low, high = ball(images, eps)
        return lambda moved: xp.minimum(xp.maximum(moved, low), high)

    def onto(moved: Array) -> Array:
        change = moved - images
        size = length(change, norm)[:, None, None, None]
        shrunk = change * xp.where(size > eps, eps / xp.where(size > 0, size, xp.ones_like(size)), xp.ones_like(size))
        return xp.clip(images + shrunk, 0, 1)

    return onto
