"""Which attack a training step takes, and its adversarial images."""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from atmc_tool.attacks.classifier import Classifier, Loss
from atmc_tool.attacks.fgsm import fgsm_rs, n_fgsm
from atmc_tool.attacks.norms import length
from atmc_tool.attacks.pgd import default_step_size, pgd
from atmc_tool.config import AttackConfig, ObjectiveName
from atmc_tool.threat_model import Norm

LEAST_GUARDED_STEPS = 2  # of PGD where it replaces an attack of a single step


@dataclass(frozen=True)
class StepAttack:
    """The attack of one training step.

    kind:  `free`: images + a perturbation that lives on between steps (Shafahi et al. 2019, arXiv:1904.12843)
    steps, step_size: of PGD; step size None: 2.5·eps/steps
    train_mode: its passes run in training mode
    """

    kind: Literal["pgd", "fgsm-rs", "n-fgsm", "free"] = "pgd"
    steps: int = 1
    step_size: float | None = None
    loss: Loss = "cross_entropy"
    train_mode: bool = False
    norm: Norm = "linf"

    def of_validation(self) -> "StepAttack | None":
        """What stands for this attack on validation images: one of a single step, or None for PGD."""
        if self.kind == "pgd":
            return None
        return StepAttack("n-fgsm" if self.kind == "n-fgsm" else "fgsm-rs", loss=self.loss)

    def adversarial(self, classifier: Classifier, images: Tensor, targets: Tensor, eps: float, noise: Tensor) -> Tensor:
        """Adversarial images (N, C, H, W) of any kind but `free`; `steps` input gradients, one for a single step.

        images (N, C, H, W) in [0, 1]; targets as `attack_targets` gives them; noise as `random_starts` gives it
        """
        found: Tensor
        if self.kind == "pgd":
            size = default_step_size(eps, self.steps) if self.step_size is None else self.step_size
            found = pgd(
                classifier,
                images,
                targets,
                eps,
                steps=self.steps,
                step_size=size,
                noise=noise,
                loss=self.loss,
                norm=self.norm,
            )
        else:
            single_step = n_fgsm if self.kind == "n-fgsm" else fgsm_rs
            found = single_step(classifier, images, targets, eps, noise=noise, loss=self.loss)
        return found


def random_starts(images: Tensor, norm: Norm) -> Tensor:
    """Points uniform in the unit ball of the norm, one for each of images (N, C, H, W), from torch's generator."""
    noise = torch.empty_like(images)
    if norm == "linf":
        return noise.uniform_(-1, 1)
    noise.normal_()
    radius: Tensor = torch.rand(len(images), 1, 1, 1, device=images.device) ** (1 / images[0].numel())
    noise *= radius / length(noise, norm)[:, None, None, None]
    return noise


def step_attack(
    objective: ObjectiveName, config: AttackConfig, progress: float, *, guarded: bool, norm: Norm = "linf"
) -> StepAttack:
    """The attack at `progress` of the schedule.

    guarded: a single-step attack has failed (see stability.py), so it is PGD, of at least two steps
    """
    steps = max(config.steps, LEAST_GUARDED_STEPS) if guarded else config.steps
    kind: Literal["pgd", "fgsm-rs", "n-fgsm", "free"] = "pgd"
    if not guarded:
        if objective == "free" or objective == "fgsm-rs" or objective == "n-fgsm":
            kind = objective
        elif progress < config.fgsm_warmup:
            kind = "fgsm-rs"
    return StepAttack(kind, steps, config.step_size, config.loss, config.train_mode, norm)
