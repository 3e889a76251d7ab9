"""What attacks raise: losses of logits z (N, classes), each of which grows as the attack succeeds."""

from array_api_compat import array_namespace, device

from atmc_tool.attacks.classifier import Array, Loss, margin

ALMOST_ZERO = 1e-12  # keeps DLR's denominator positive where all logits are equal


def loss_values(logits: Array, labels: Array, loss: Loss, targets: Array | None = None) -> Array:
    """The loss of each sample, (N,); labels y and targets t int64 (N,); z_(1) ≥ z_(2) ≥ … are the sorted logits.

    loss           | away from y                                  | towards t
    ---------------|----------------------------------------------|----------------------------------------------
    cross_entropy  | log Σ exp z − z_y                            | z_t − log Σ exp z
    margin         | max over j ≠ y of z_j − z_y                  | z_t − z_y
    dlr            | (max over j ≠ y of z_j − z_y)/(z_(1) − z_(3)) | (z_t − z_y)/(z_(1) − ½(z_(3) + z_(4)))

    DLR does not change when logits are scaled or shifted. It needs three classes, towards t four; with fewer it is the
    margin. Source: Croce & Hein 2020 (arXiv:2003.01690), equations 6 and 7.
    """
    xp = array_namespace(logits)
    if loss == "cross_entropy":
        top = xp.max(logits, axis=1)
        log_sum = top + xp.log(xp.sum(xp.exp(logits - top[:, None]), axis=1))
        return log_sum - of_class(logits, labels) if targets is None else of_class(logits, targets) - log_sum
    value = margin(logits, labels) if targets is None else of_class(logits, targets) - of_class(logits, labels)
    if loss == "dlr" and logits.shape[1] >= dlr_classes(targets is not None):
        ordered = xp.sort(logits, axis=1, descending=True)
        low = ordered[:, 2] if targets is None else (ordered[:, 2] + ordered[:, 3]) / 2
        value = value / (ordered[:, 0] - low + ALMOST_ZERO)
    return value


def dlr_classes(targeted: bool) -> int:
    """How many classes DLR needs."""
    return 4 if targeted else 3


def of_class(logits: Array, classes: Array) -> Array:
    """The logit of each sample's class: z[i, classes[i]], (N,)."""
    xp = array_namespace(logits)
    own = classes[:, None] == xp.arange(logits.shape[1], device=device(logits))
    return xp.sum(xp.where(own, logits, 0.0), axis=1)
