"""The one protocol that attacks see, and what it means that a classifier is right."""

from typing import Any, Literal, Protocol

from array_api_compat import array_namespace, device

Loss = Literal["cross_entropy", "margin", "dlr"]
Array = Any  # a NumPy array or a torch tensor; attacks use the array API only


class Classifier(Protocol):
    """A network that takes images in [0, 1], float32 (N, C, H, W), and gives logits, float32 (N, classes)."""

    def logits(self, images: Array) -> Array:
        """Logits (N, classes)."""
        ...

    def logits_and_gradient(
        self, images: Array, labels: Array, loss: Loss, targets: Array | None = None
    ) -> tuple[Array, Array]:
        """Logits (N, classes), and the gradient with respect to the images, (N, C, H, W), of the loss summed over the
        batch, by one forward and one backward pass.

        `labels` and `targets` are int64 (N,). The losses, which grow as the attack succeeds, are those of
        `losses.loss_values`; with `targets` towards the class targets[i], which is not labels[i].
        """
        ...


def correct(logits: Array, labels: Array) -> Array:
    """bool (N,): the largest logit, the first of equals, is the label's; never where a logit is not finite."""
    xp = array_namespace(logits)
    return (xp.argmax(logits, axis=1) == labels) & xp.all(xp.isfinite(logits), axis=1)


def margin(logits: Array, labels: Array) -> Array:
    """max over j ≠ y of z_j − z_y, (N,): positive where the sample is misclassified."""
    xp = array_namespace(logits)
    own = labels[:, None] == xp.arange(logits.shape[1], device=device(logits))
    others = xp.max(xp.where(own, -xp.inf, logits), axis=1)
    return others - xp.sum(xp.where(own, logits, 0.0), axis=1)
