"""Trainings that go wrong: numbers that are no longer finite, and robustness that collapses."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

MAX_ROLLBACKS = 3  # each halves the learning rate
COLLAPSED = 0.5  # share of the best robust accuracy
LEAST_FALL = 0.12  # of robust accuracy: the accuracy of chance among ten classes, with its noise, is less
COLLAPSE_EPOCHS = 2
NOISE = 0.05  # a fall of another accuracy that counts as none; two standard errors on few hundred images


def all_finite(tensors: Iterable[Tensor]) -> bool:
    """Whether there is neither NaN nor infinity; waits for the device once."""
    return bool(torch.stack([tensor.isfinite().all() for tensor in tensors]).all())


@dataclass
class Collapse:
    """Watches for catastrophic overfitting (Wong et al. 2020, arXiv:2001.03994): PGD accuracy falls to nothing while
    clean accuracy, or that under the training's own single-step attack, stays, because this attack no longer finds what
    PGD finds.

    robust, clean, single_step: accuracies of the epoch with the best robust accuracy; epochs: collapsed ones in a row
    """

    robust: float = 0.0
    clean: float = 0.0
    single_step: float = 0.0
    epochs: int = 0

    def observe(self, metrics: Mapping[str, float]) -> str | None:
        """What there is to say after an epoch with these validation accuracies: once for each collapse.

        At its second epoch; at its first where the training's attack is of a single step (`validation_single_step`).
        """
        if "validation_robust" not in metrics:
            return None
        robust, clean = metrics["validation_robust"], metrics["validation_clean"]
        single_step = metrics.get("validation_single_step")
        if robust >= self.robust:
            self.robust, self.clean, self.single_step = robust, clean, single_step or 0.0
        held = "clean accuracy" if clean >= self.clean - NOISE else None
        if single_step is not None and single_step >= self.single_step - NOISE:
            held = "accuracy under the single-step attack"
        collapsed = robust < min(COLLAPSED * self.robust, self.robust - LEAST_FALL) and held is not None
        self.epochs = self.epochs + 1 if collapsed else 0
        if self.epochs != (COLLAPSE_EPOCHS if single_step is None else 1):
            return None
        return (
            f"catastrophic overfitting: robust accuracy on validation images fell from {self.robust:.4g} to "
            f"{robust:.4g}, {held} did not"
        )
