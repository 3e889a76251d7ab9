"""Fast adaptive boundary attack: the smallest perturbation, by linear steps to the decision boundary (FAB-T).

Source: Croce & Hein 2020, "Minimally distorted adversarial examples with a fast adaptive boundary attack"
(arXiv:1907.02044), algorithm 1 with one target class, as AutoAttack uses it.
"""

from array_api_compat import array_namespace, device

from atmc_tool.attacks.classifier import Array, Classifier, correct
from atmc_tool.attacks.losses import loss_values
from atmc_tool.attacks.norms import length
from atmc_tool.threat_model import Norm

MOST_BIAS = 0.1  # α_max: weight of the original image
OVERSHOOT = 1.05  # η
BACK = 0.9  # β: from a point that fools, so far towards the original image is gone back
NEWTON_STEPS = 30
LEAST = 1e-8  # length that is not divided by


def fab(
    classifier: Classifier,
    images: Array,
    labels: Array,
    eps: float,
    *,
    steps: int,
    targets: Array,
    norm: Norm = "linf",
) -> Array:
    """Images of class `targets` or any other wrong one, as near to the originals as `steps` steps bring them.

    images:  float32 (N, C, H, W) in [0, 1], classified correctly; labels and targets int64 (N,), different
    eps:     a sample is done when a point as near as that fools; 0: the nearest point of all steps is wanted
    Returns: (N, C, H, W): the nearest image that fools; the original one where none was found, or, with an eps above 0,
        none within eps. A step costs one input gradient and one forward pass more.
    """
    xp = array_namespace(images)
    found = xp.asarray(images, copy=True)
    rows = xp.arange(labels.shape[0], device=device(labels))
    at, nearest = images, xp.full(labels.shape, xp.inf, dtype=images.dtype, device=device(images))
    for _ in range(steps):
        if rows.shape[0] == 0:
            break
        x, y, t = images[rows], labels[rows], targets[rows]
        logits, gradient = classifier.logits_and_gradient(at, y, "margin", t)
        rise = -loss_values(logits, y, "margin", t)  # that takes z_t to z_y
        here = to_plane(at, gradient, rise, norm)
        inner = xp.sum(gradient * (at - x), axis=(1, 2, 3))
        there = to_plane(x, gradient, rise + inner, norm)
        near, far = (xp.clip(length(step, norm), LEAST, None) for step in (here, there))
        bias = xp.clip(near / (near + far), None, MOST_BIAS)[:, None, None, None]
        moved = xp.clip((1 - bias) * (at + OVERSHOOT * here) + bias * (x + OVERSHOOT * there), 0, 1)
        fools = ~correct(classifier.logits(moved), y)
        distance = length(moved - x, norm)
        nearer = fools & (distance < nearest[rows])
        found[rows[nearer]] = moved[nearer]
        nearest[rows[nearer]] = distance[nearer]
        at = xp.where(fools[:, None, None, None], x + BACK * (moved - x), moved)
        unfinished = nearest[rows] > eps
        rows, at = rows[unfinished], at[unfinished]
    if eps == 0:
        return found
    return xp.where((nearest <= eps)[:, None, None, None], found, images)


def to_plane(points: Array, normal: Array, rise: Array, norm: Norm) -> Array:
    """The smallest δ in the norm with ⟨w, δ⟩ = c and x + δ in [0, 1]; where there is none, that of the nearest ⟨w, δ⟩.

    points: x in [0, 1], normal: w, both (N, C, H, W); rise: c (N,)

    With c > 0 it is δ(s) = clip(s·v, −x, 1 − x), v = sign w in l-infinity and w in l2, for the s where
    φ(s) = ⟨w, δ(s)⟩ is c: φ is concave, increasing, linear between the s where a pixel meets the box. Newton's method
    from s = 0 finds it from below, exactly once all such s below it are passed.
    """
    xp = array_namespace(points)
    w = normal * xp.sign(rise)[:, None, None, None]
    largest = xp.max(xp.abs(w), axis=(1, 2, 3), keepdims=True)
    w = w / xp.where(largest == 0, xp.ones_like(largest), largest)
    goal = xp.abs(rise) / xp.where(largest == 0, xp.ones_like(largest), largest)[:, 0, 0, 0]
    v = xp.sign(w) if norm == "linf" else w
    room = xp.where(v > 0, 1 - points, points)  # in the direction of v
    gain, speed = xp.abs(w), xp.abs(v)
    s = xp.zeros_like(goal)
    for _ in range(NEWTON_STEPS):
        reached = s[:, None, None, None] * speed
        free = reached < room
        slope = xp.sum(xp.where(free, gain * speed, 0.0), axis=(1, 2, 3))
        missing = goal - xp.sum(gain * xp.minimum(reached, room), axis=(1, 2, 3))
        further = (missing > 1e-6 * goal) & (slope > 0)
        if not bool(xp.any(further)):
            break
        s = xp.where(further, s + missing / xp.where(slope > 0, slope, xp.ones_like(slope)), s)
    return xp.sign(v) * xp.minimum(s[:, None, None, None] * speed, room)
