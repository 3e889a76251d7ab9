"""The one protocol that attacks see."""

from typing import Any, Literal, Protocol

Loss = Literal["cross_entropy", "margin"]
Array = Any  # a NumPy array or a torch tensor; attacks use the array API only


class Classifier(Protocol):
    """A network that takes images in [0, 1], float32 (N, C, H, W), and gives logits, float32 (N, classes)."""

    def logits(self, images: Array) -> Array:
        """Logits (N, classes)."""
        ...

    def loss_gradient(self, images: Array, labels: Array, loss: Loss) -> Array:
        """Gradient with respect to the images, (N, C, H, W), of the loss summed over the batch.

        `labels` are int64 (N,). The losses grow as the attack succeeds: cross-entropy, and
        margin = max over j ≠ y of z_j − z_y.
        """
        ...
