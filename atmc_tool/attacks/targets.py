"""Which classes targeted attacks aim at."""

from array_api_compat import array_namespace, device

from atmc_tool.attacks.classifier import Array

MOST_TARGETS = 9  # of AutoAttack (Croce & Hein 2020, arXiv:2003.01690)


def n_targets(classes: int) -> int:
    """min(9, classes − 1)."""
    return min(MOST_TARGETS, classes - 1)


def likely_target(logits: Array, labels: Array, rank: int) -> Array:
    """int64 (N,): the class of the largest logit but the label's; of `rank` 1 the next one, and so on."""
    xp = array_namespace(logits)
    own = labels[:, None] == xp.arange(logits.shape[1], device=device(logits))
    others = xp.where(own, -xp.inf, logits)
    return xp.argsort(others, axis=1, descending=True, stable=True)[:, rank]
