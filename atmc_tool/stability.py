"""Trainings that go wrong: numbers that are no longer finite, and robustness that collapses."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

MAX_ROLLBACKS = 3  # each halves the learning rate
COLLAPSED = 0.5  # share of the best robust accuracy
LEAST_FALL = 0.1  # of robust accuracy: between a few per cent, at the start of a training, all is noise
COLLAPSE_EPOCHS = 2
CLEAN_NOISE = 0.05  # a fall of clean accuracy that counts as none; two standard errors on few hundred images


def all_finite(tensors: Iterable[Tensor]) -> bool:
    """Whether there is neither NaN nor infinity; waits for the device once."""
    return bool(torch.stack([tensor.isfinite().all() for tensor in tensors]).all())


@dataclass
class Collapse:
    """Watches for catastrophic overfitting (Wong et al. 2020, arXiv:2001.03994): PGD accuracy falls to nothing while
    clean accuracy stays, because the training attack no longer finds what PGD finds.

    robust, clean: accuracies of the epoch with the best robust accuracy; epochs: collapsed ones in a row
    """

    robust: float = 0.0
    clean: float = 0.0
    epochs: int = 0

    def observe(self, metrics: Mapping[str, float]) -> str | None:
        """What there is to say after an epoch with these validation accuracies: once for each collapse."""
        if "validation_robust" not in metrics:
            return None
        robust, clean = metrics["validation_robust"], metrics["validation_clean"]
        if robust >= self.robust:
            self.robust, self.clean = robust, clean
        collapsed = (
            robust < min(COLLAPSED * self.robust, self.robust - LEAST_FALL) and clean >= self.clean - CLEAN_NOISE
        )
        self.epochs = self.epochs + 1 if collapsed else 0
        if self.epochs != COLLAPSE_EPOCHS:
            return None
        return (
            f"catastrophic overfitting: robust accuracy on validation images fell from {self.robust:.4g} to "
            f"{robust:.4g}, clean accuracy did not; more steps of the training attack help (--set attack.steps=)"
        )
