"""One step of adversarial training: the attack, the loss, and its gradient with respect to the weights."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from atmc_tool.compute import Compute
from atmc_tool.config import AttackConfig, ObjectiveName
from atmc_tool.data import DataSet
from atmc_tool.distributed import Ranks
from atmc_tool.objectives import OBJECTIVES, attack_targets
from atmc_tool.threat_model import Norm, ThreatModel
from atmc_tool.torch_classifier import TorchClassifier
from atmc_tool.training_attack import StepAttack, random_starts


@dataclass(frozen=True)
class Setup:
    """What is trained on what, against whom, and how. `threat_model` None: natural training."""

    network: nn.Module
    mean: tuple[float, ...]
    std: tuple[float, ...]
    device: torch.device
    data: DataSet
    threat_model: ThreatModel | None
    attack: AttackConfig
    seed: int
    compute: Compute = field(default_factory=Compute)
    ranks: Ranks = field(default_factory=Ranks)

    @property
    def norm(self) -> Norm:
        """Of the threat model."""
        return self.threat_model.norm if self.threat_model else "linf"

    def classifier(self, weights: Mapping[str, Tensor], dtype: torch.dtype | None) -> TorchClassifier:
        """The network with `weights`, its convolutions and products in `dtype`."""
        return TorchClassifier(self.network, weights, self.mean, self.std, dtype)


def attacked(
    setup: Setup,
    weights: Mapping[str, Tensor],
    images: Tensor,
    labels: Tensor,
    noise: Tensor,
    *,
    eps: float,
    attack: StepAttack,
    objective: ObjectiveName = "mixed",
) -> Tensor:
    """The images under `attack` on frozen weights; batch norm and dropout in evaluation mode, unless it says otherwise.

    images, noise: (N, C, H, W), noise for the random start as `random_starts` gives it; labels (N,)
    objective: of the training, which decides what is attacked: see `attack_targets`
    """
    setup.network.train(attack.train_mode)
    frozen = {name: weight.detach() for name, weight in weights.items()}
    classifier = setup.classifier(frozen, setup.compute.dtype)
    return attack.adversarial(classifier, images, attack_targets(objective, classifier, images, labels), eps, noise)


def loss_and_gradients(
    setup: Setup,
    weights: Mapping[str, Tensor],
    images: Tensor,
    labels: Tensor,
    *,
    eps: float,
    weight: float,
    attack: StepAttack,
    objective: ObjectiveName = "mixed",
    smoothing: float = 0.0,
    perturbation: Tensor | None = None,
) -> tuple[Tensor, dict[str, Tensor]]:
    """The batch's loss and its gradient with respect to each of `weights` that takes part in it.

    The loss is that of `objective` with `weight` and with x' from `attack` within `eps` (0: no attack). Its mean runs
    over the ranks' shares and within a share over micro-batches, so that the result does not depend on them, but for
    rounding, for dropout and, with micro-batches, for the statistics of batch norm.

    With a `perturbation` δ there is no attack: x' = clip(x + δ) to [0, 1]. The backward pass that gives the weights'
    gradients gives ∇L at x' too, by which δ ← clip(δ + eps·sign ∇L) to [-eps, eps], in place (Shafahi et al. 2019,
    arXiv:1904.12843, algorithm 1).

    weights: name → tensor; detached here, so one backward pass through what made them serves all micro-batches
    images:  float32 (N, C, H, W), the whole batch on every rank, like the perturbation; labels int64 (N,)
    Returns: L and the gradients, the same bits on every rank
    """
    total = len(images)
    # random numbers for the whole batch on every rank: the same ones whatever the number of ranks
    noise = random_starts(images, attack.norm) if eps and perturbation is None else None
    ascent = None if perturbation is None else torch.zeros_like(perturbation)
    leaves = {name: weight.detach().requires_grad_() for name, weight in weights.items()}
    named: dict[str, Tensor] = {}
    loss_sum = torch.zeros((), device=images.device)
    for part in setup.ranks.parts(total, setup.compute.micro_batch):
        x, y, adversarial = images[part], labels[part], None
        inputs = list(leaves.values())
        if perturbation is not None:
            adversarial = (x + perturbation[part]).clamp(0, 1).requires_grad_()
            inputs.append(adversarial)
        elif noise is not None:
            adversarial = attacked(setup, leaves, x, y, noise[part], eps=eps, attack=attack, objective=objective)
        setup.network.train()
        classifier = setup.classifier(leaves, setup.compute.dtype)
        own: dict[str, Tensor] = {}  # a part's terms first: so parts add up as ranks do, to the same bits
        for term in OBJECTIVES[objective](classifier, x, adversarial, y, weight, smoothing):
            loss = term * (len(y) / total)
            gradients = torch.autograd.grad(loss, inputs, allow_unused=True)
            if ascent is not None:
                ascent[part] = gradients[-1].sign()
            _add(own, {name: g for name, g in zip(leaves, gradients[: len(leaves)], strict=True) if g is not None})
            loss_sum += loss.detach()
        _add(named, own)
    setup.ranks.add_up([loss_sum, *named.values(), *([] if ascent is None else [ascent])])
    if perturbation is not None and ascent is not None:
        perturbation.add_(ascent, alpha=eps).clamp_(-eps, eps)
    return loss_sum, named


def _add(sums: dict[str, Tensor], more: Mapping[str, Tensor]) -> None:
    """Add `more` to `sums`, in place, by name."""
    for name, tensor in more.items():
        sums[name] = sums[name].add_(tensor) if name in sums else tensor
