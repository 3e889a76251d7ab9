"""The two norms of threat models: lengths, steepest directions, and the ball within the box [0, 1]."""

from collections.abc import Callable

from array_api_compat import array_namespace

from atmc_tool.attacks.classifier import Array
from atmc_tool.threat_model import Norm

_IMAGE = (1, 2, 3)  # axes
_ROUNDS = 5  # of the projection in l2; from changes up to 2 eps the rest is then below 1e-3 of eps


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
    """A function that gives the points of ball and box nearest to x' (N, C, H, W), in the Euclidean distance.

    In l-infinity each pixel is clipped. In l2 the nearest point is clip(x + s (x' − x)) with the largest s ≤ 1 that
    keeps its distance from x at eps: what the box takes off the change of some pixels goes to the others, so that an
    attack on images with many black or white pixels uses the whole ball. s is found by Newton's rounds of
    Σ over pixels at the box r² + s² Σ over the others (x' − x)² = eps², r being what the box leaves them; from below,
    so that every round gives a point of the ball.
    """
    xp = array_namespace(images)
    if norm == "linf":
        low, high = ball(images, eps)
        return lambda moved: xp.minimum(xp.maximum(moved, low), high)

    def onto(moved: Array) -> Array:
        change = moved - images
        reach, room = xp.abs(change), xp.where(change > 0, 1 - images, images)
        none = xp.zeros_like(images)
        share = none[:, :1, :1, :1]
        one = xp.ones_like(share)
        for _ in range(_ROUNDS):
            at_box = share * reach >= room
            used, free = (
                xp.sum(part * part, axis=_IMAGE, keepdims=True)
                for part in (xp.where(at_box, room, none), xp.where(at_box, none, reach))
            )
            ratio = xp.maximum(eps * eps - used, 0 * one) / xp.where(free > 0, free, one)
            share = xp.where(free > 0, xp.minimum(xp.sqrt(ratio), one), one)
        return xp.clip(images + share * change, 0, 1)

    return onto
