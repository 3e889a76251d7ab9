"""Accuracy of a torch network on test images: the numbers that files carry and `verify` compares with."""

import time
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from atmc_tool.attacks.worst_case import worst_case
from atmc_tool.class_balance import balanced_accuracy, class_counts, is_unbalanced
from atmc_tool.cli.render import counted
from atmc_tool.config import EvaluationConfig
from atmc_tool.data import DataSet, test_subset
from atmc_tool.distributed import Ranks
from atmc_tool.threat_model import ThreatModel
from atmc_tool.tied import own_state
from atmc_tool.torch_classifier import TorchClassifier
from atmc_tool.training_step import Setup
from evaluators.accuracy import images_digest

TIMED_IMAGES = 32
MARGIN = 1.2  # a shared machine is not always as fast as it was a moment ago
SEED = 0  # of the choice of images and of the attack's starts: the same for every run, so that numbers compare


@torch.no_grad()
def measure(
    network: nn.Module,
    state: Mapping[str, Tensor],
    mean: tuple[float, ...],
    std: tuple[float, ...],
    data: DataSet,
    threat_model: ThreatModel | None,
    evaluation: EvaluationConfig,
    name: str,
    ranks: Ranks,
) -> dict[str, Any]:
    """Clean accuracy and accuracy under PGD, worst of the restarts, of `network` with the tensors of `state`.

    Where the classes of the images are unbalanced, also the means of the classes' accuracies.

    The tensors' device is where it runs. Without a threat model only clean accuracy is measured. Each rank attacks its
    share of the images. Progress is shown under `name`.
    """
    network.eval()
    chosen = test_subset(data.test, evaluation.n, SEED)
    classifier = TorchClassifier(network, state, mean, std)
    device = next(iter(state.values())).device
    n = len(chosen)
    share = ranks.share(n)
    counts = class_counts(chosen.labels)
    found = torch.zeros(2, len(counts), dtype=torch.int64)  # images of each class that are right: clean, attacked
    if share.start < share.stop:
        with counted(f"measuring {name}") as progress:
            result = worst_case(
                classifier,
                torch.from_numpy(chosen.floats()[share]).to(device),
                torch.from_numpy(chosen.labels[share]).to(device),
                threat_model.eps if threat_model else 0.0,
                steps=evaluation.steps,
                restarts=evaluation.restarts if threat_model else 0,
                norm=threat_model.norm if threat_model else "linf",
                seed=SEED,
                first_index=share.start,
                progress=progress,
            )
        for row, right in enumerate((result.correct, result.robust)):
            found[row] += torch.from_numpy(
                np.bincount(chosen.labels[share][right.cpu().numpy()], minlength=len(counts))
            )
    ranks.add_up([found])
    correct, robust = found.numpy()
    unbalanced = is_unbalanced(counts)
    facts: dict[str, Any] = {
        "clean_accuracy": float(correct.sum()) / n,
        **({"balanced_clean_accuracy": balanced_accuracy(correct, counts)} if unbalanced else {}),
        "n": n,
        "split": "test",
        "images_sha256": images_digest(chosen.images, chosen.labels),
    }
    if threat_model is not None:
        facts |= {
            "robust_accuracy": float(robust.sum()) / n,
            **({"balanced_robust_accuracy": balanced_accuracy(robust, counts)} if unbalanced else {}),
            "norm": threat_model.norm,
            "eps": threat_model.text,
            "attack": "pgd",
            "steps": evaluation.steps,
            "restarts": evaluation.restarts,
            "seed": SEED,
        }
    return facts


def predicted_seconds(setup: Setup, evaluation: EvaluationConfig, networks: int, *, attacked: bool) -> float:
    """Seconds that `measure` will take at most for so many networks: from the time of one input gradient.

    attacked: there is a threat model to measure against, also after a natural training
    """
    chosen = test_subset(setup.data.test, min(evaluation.n, TIMED_IMAGES), SEED)
    images = torch.from_numpy(chosen.floats()).to(setup.device)
    labels = torch.from_numpy(chosen.labels).to(setup.device)
    classifier = setup.classifier(own_state(setup.network), None)
    setup.network.eval()
    for _ in range(2):  # the first one prepares
        started = time.monotonic()
        classifier.logits_and_gradient(images, labels, "cross_entropy")[1].cpu()
        seconds = time.monotonic() - started
    attack = evaluation.restarts * (evaluation.steps + 1) if attacked else 0
    n = -(-min(evaluation.n, len(setup.data.test)) // setup.ranks.size)
    return MARGIN * networks * seconds * (attack + 1) * n / len(chosen)
