"""WRM, ascent under a penalty in place of a ball (Sinha et al. 2018, arXiv:1710.10571): for comparison only."""

from array_api_compat import array_namespace

from atmc_tool.attacks.classifier import Array, Classifier, Loss

WEIGHT = 1.3  # of the loss: 1/(2γ) for the paper's γ = 0.385, as in ATMC's published experiments


def wrm(
    classifier: Classifier,
    images: Array,
    labels: Array,
    *,
    steps: int,
    weight: float = WEIGHT,
    loss: Loss = "cross_entropy",
) -> Array:
    """argmax of weight·loss(x') − ½‖x' − x‖₂², approximately: ascent with steps of 1/√(t + 1), t = 0, 1, …, in the box.

    images: float32 (N, C, H, W) in [0, 1]; labels int64 (N,)
    Returns: images (N, C, H, W) in [0, 1] at distances that nothing bounds: accuracy under them is to be stated with
    those distances, and not beside that of attacks in a ball. Costs `steps` input gradients.
    """
    xp = array_namespace(images)
    moved = images
    for t in range(steps):
        rise = weight * classifier.logits_and_gradient(moved, labels, loss)[1] - (moved - images)
        moved = xp.clip(moved + rise / (t + 1) ** 0.5, 0, 1)
    return moved
