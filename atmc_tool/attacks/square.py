"""The Square attack: random search without gradients (Andriushchenko et al. 2020, arXiv:1912.00049)."""

import numpy as np
from array_api_compat import array_namespace, device

from atmc_tool.attacks.classifier import Array, Classifier, correct, margin
from atmc_tool.attacks.pgd import ball

# Share of the pixels in a square: halved at these queries of a budget of 10,000, scaled to the given one.
INITIAL_SHARE = 0.8
HALVED_AT = (10, 50, 200, 1000, 2000, 4000, 6000, 8000)


def square_share(query: int, queries: int) -> float:
    """Share of the pixels in the square of query number `query` of `queries` (section 4 of the paper)."""
    halvings = sum(query * 10_000 > limit * queries for limit in HALVED_AT)
    return float(INITIAL_SHARE * 0.5**halvings)


def square(
    classifier: Classifier,
    images: Array,
    labels: Array,
    eps: float,
    *,
    queries: int,
    generator: np.random.Generator,
) -> tuple[Array, Array]:
    """Minimise the margin of the label by random squares of pixels at ±eps (Algorithms 1 and 2 of the paper).

    images:    float32 (N, C, H, W) in [0, 1]; labels int64 (N,)
    queries:   images tried per sample at most; a sample that is fooled costs no more
    generator: decides stripes, positions and signs
    Returns:   adversarial images (N, C, H, W) and fooled, bool (N,). Images misclassified at once stay as they are.
    """
    xp = array_namespace(images)
    fooled = ~correct(classifier.logits(images), labels)
    adversarial = xp.asarray(images, copy=True)
    left = xp.nonzero(~fooled)[0]
    x, y = images[left], labels[left]
    low, high = ball(x, eps)
    best = x
    loss = xp.full(tuple(y.shape), -xp.inf, dtype=x.dtype, device=device(x))
    for query in range(queries):
        if left.shape[0] == 0:
            break
        tried = _stripes(low, high, generator) if query == 0 else _squares(best, low, high, query, queries, generator)
        logits = classifier.logits(tried)
        tried_loss = margin(logits, y)
        better = tried_loss > loss
        best = xp.where(better[:, None, None, None], tried, best)
        loss = xp.where(better, tried_loss, loss)
        holds = correct(logits, y)
        if not bool(xp.all(holds)):
            adversarial[left[~holds]] = tried[~holds]
            fooled[left[~holds]] = True
            left, y, best, loss, low, high = (array[holds] for array in (left, y, best, loss, low, high))
    adversarial[left] = best
    return adversarial, fooled


def _stripes(low: Array, high: Array, generator: np.random.Generator) -> Array:
    """Every column of every channel at −eps or +eps."""
    n, channels, _, width = low.shape
    xp = array_namespace(low)
    up = xp.asarray(generator.random((n, channels, 1, width)) < 0.5, device=device(low))
    return xp.where(up, high, low)


def _squares(best: Array, low: Array, high: Array, query: int, queries: int, generator: np.random.Generator) -> Array:
    """`best` with one square per sample, each of its channels at −eps or +eps; never `best` itself."""
    xp = array_namespace(best)
    n, channels, height, width = best.shape
    side = max(1, min(round((square_share(query, queries) * height * width) ** 0.5), height, width))
    top = generator.integers(0, height - side + 1, (n, 1))
    start = generator.integers(0, width - side + 1, (n, 1))
    rows, columns = np.arange(height)[None], np.arange(width)[None]
    in_rows, in_columns = (rows >= top) & (rows < top + side), (columns >= start) & (columns < start + side)
    inside = xp.asarray(in_rows[:, None, :, None] & in_columns[:, None, None, :], device=device(best))
    up = xp.asarray(generator.random((n, channels, 1, 1)) < 0.5, device=device(best))
    same = xp.all(~inside | (xp.where(up, high, low) == best), axis=(1, 2, 3))
    # The published code draws again where a square changes nothing; with one channel the other sign is that draw.
    up = up ^ same[:, None, None, None]
    return xp.where(inside, xp.where(up, high, low), best)
