"""The Square attack: random search without gradients (Andriushchenko et al. 2020, arXiv:1912.00049)."""

from collections.abc import Sequence

import numpy as np
from array_api_compat import array_namespace, device

from atmc_tool.attacks.classifier import Array, Classifier, correct, margin
from atmc_tool.attacks.norms import ball
from atmc_tool.attacks.square_l2 import l2_start, l2_step
from atmc_tool.attacks.starts import draws
from atmc_tool.threat_model import Norm

# Share of the pixels in a square: halved at these queries of a budget of 10,000, scaled to the given one.
INITIAL_SHARE = {"linf": 0.8, "l2": 0.1}
HALVED_AT = (10, 50, 200, 1000, 2000, 4000, 6000, 8000)


def square_share(query: int, queries: int, norm: Norm = "linf") -> float:
    """Share of the pixels in the square of query number `query` of `queries` (section 4 of the paper)."""
    halvings = sum(query * 10_000 > limit * queries for limit in HALVED_AT)
    return float(INITIAL_SHARE[norm] * 0.5**halvings)


def square(
    classifier: Classifier,
    images: Array,
    labels: Array,
    eps: float,
    *,
    queries: int,
    seed: int = 0,
    indices: Sequence[int] | None = None,
    norm: Norm = "linf",
) -> tuple[Array, Array]:
    """Minimise the margin of the label by random squares of pixels at ±eps (Algorithms 1, 2 and 3 of the paper).

    images:    float32 (N, C, H, W) in [0, 1]; labels int64 (N,)
    queries:   images tried per sample at most, one forward pass each; a sample that is fooled costs no more
    seed, indices: decide stripes, positions and signs; indices number the images in the whole set, None: 0 to N − 1
    Returns:   adversarial images (N, C, H, W) and fooled, bool (N,). Images misclassified at once stay as they are.
    """
    xp = array_namespace(images)
    fooled = ~correct(classifier.logits(images), labels)
    adversarial = xp.asarray(images, copy=True)
    left = xp.nonzero(~fooled)[0]
    numbers = np.arange(images.shape[0]) if indices is None else np.asarray(indices)
    x, y, best = images[left], labels[left], images[left]
    loss = xp.full(tuple(y.shape), -xp.inf, dtype=x.dtype, device=device(x))
    for query in range(queries):
        if left.shape[0] == 0:
            break
        own = numbers[left.tolist()]
        share = square_share(query, queries, norm)
        if norm == "linf":
            tried = _stripes(x, eps, seed, own) if query == 0 else _squares(best, x, eps, share, seed, own, query)
        else:
            tried = l2_start(x, eps, seed, own) if query == 0 else l2_step(best, x, eps, share, seed, own, query)
        logits = classifier.logits(tried)
        tried_loss = margin(logits, y)
        better = tried_loss > loss
        best = xp.where(better[:, None, None, None], tried, best)
        loss = xp.where(better, tried_loss, loss)
        holds = correct(logits, y)
        if not bool(xp.all(holds)):
            adversarial[left[~holds]] = tried[~holds]
            fooled[left[~holds]] = True
            left, x, y, best, loss = (array[holds] for array in (left, x, y, best, loss))
    adversarial[left] = best
    return adversarial, fooled


def _stripes(x: Array, eps: float, seed: int, indices: Sequence[int]) -> Array:
    """Every column of every channel at −eps or +eps."""
    n, channels, _, width = x.shape
    xp = array_namespace(x)
    low, high = ball(x, eps)
    up = draws(seed, indices, 0, channels * width).reshape(n, channels, 1, width) < 0.5
    return xp.where(xp.asarray(up, device=device(x)), high, low)


def _squares(best: Array, x: Array, eps: float, share: float, seed: int, indices: Sequence[int], query: int) -> Array:
    """`best` with one square per sample, each of its channels at −eps or +eps; never `best` itself."""
    xp = array_namespace(best)
    _, channels, height, width = best.shape
    low, high = ball(x, eps)
    side = max(1, min(round((share * height * width) ** 0.5), height, width))
    drawn = draws(seed, indices, query, 2 + channels)
    top = (drawn[:, :1] * (height - side + 1)).astype(np.int64)
    start = (drawn[:, 1:2] * (width - side + 1)).astype(np.int64)
    rows, columns = np.arange(height)[None], np.arange(width)[None]
    in_rows, in_columns = (rows >= top) & (rows < top + side), (columns >= start) & (columns < start + side)
    inside = xp.asarray(in_rows[:, None, :, None] & in_columns[:, None, None, :], device=device(best))
    up = xp.asarray(drawn[:, 2:, None, None] < 0.5, device=device(best))
    same = xp.all(~inside | (xp.where(up, high, low) == best), axis=(1, 2, 3))
    # The published code draws again where a square changes nothing; with one channel the other sign is that draw.
    up = up ^ same[:, None, None, None]
    return xp.where(inside, xp.where(up, high, low), best)
