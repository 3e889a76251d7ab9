"""Accuracy on held-out training images while a training runs."""

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor

from atmc_tool.data import DataSet
from atmc_tool.data.data_set import limited_indices
from atmc_tool.data.loader import device_images, to_floats
from atmc_tool.training_attack import StepAttack, random_starts
from atmc_tool.training_step import Setup, attacked

IMAGES = 500
PGD_10 = StepAttack("pgd", 10)


def held_out(data: DataSet, device: torch.device) -> tuple[Tensor, Tensor]:
    """At most 500 images held out from training, of every class alike: uint8 (n, C, H, W), labels int64 (n,)."""
    images = data.validation  # often in the order of the classes
    return device_images(images.take(limited_indices(images.labels, IMAGES, seed=0)), device)


def validate(
    setup: Setup,
    weights: Mapping[str, Tensor],
    images: Tensor,
    labels: Tensor,
    batch_size: int,
    single_step: StepAttack | None = None,
) -> dict[str, float]:
    """Clean accuracy and, with a threat model, accuracy under PGD-10 and `single_step` of the network with `weights`.

    No gradients, no statistics of batch norm. The attack runs as in training, what it found is judged in float32.

    images: uint8 (n, C, H, W); labels int64 (n,); every rank takes its share of them
    """
    setup.network.eval()
    classifier = setup.classifier(weights, None)
    attacks = {"validation_robust": replace(PGD_10, norm=setup.norm)} if setup.threat_model else {}
    if setup.threat_model and single_step is not None:
        attacks["validation_single_step"] = single_step
    names = ("validation_clean", *attacks)
    correct = torch.zeros(len(names), device=images.device)
    torch.manual_seed(setup.seed)
    for part, answers in zip(torch.split(images, batch_size), torch.split(labels, batch_size), strict=True):
        noise = random_starts(torch.empty(part.shape, device=part.device), setup.norm)
        share = setup.ranks.share(len(part))
        if share.start == share.stop:
            continue
        clean, answers = to_floats(part[share]), answers[share]
        fed = [clean]
        for attack in attacks.values():
            assert setup.threat_model is not None
            eps = setup.threat_model.eps
            fed.append(attacked(setup, weights, clean, answers, noise[share], eps=eps, attack=attack))
        with torch.no_grad():
            correct += torch.stack([(classifier.logits(batch).argmax(1) == answers).sum() for batch in fed])
    setup.ranks.add_up([correct])
    return {name: int(count) / len(labels) for name, count in zip(names, correct.tolist(), strict=True)}
