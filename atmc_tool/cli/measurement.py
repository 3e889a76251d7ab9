"""Accuracy of a torch network on test images: the numbers that files carry and `verify` compares with."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from atmc_tool.attacks.worst_case import worst_case
from atmc_tool.cli.render import counted
from atmc_tool.config import EvaluationConfig
from atmc_tool.data import DataSet, test_subset
from atmc_tool.threat_model import ThreatModel
from atmc_tool.torch_classifier import TorchClassifier
from evaluators.accuracy import images_digest

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
) -> dict[str, Any]:
    """Clean accuracy and accuracy under PGD, worst of the restarts, of `network` with the tensors of `state`.

    The tensors' device is where it runs. Without a threat model only clean accuracy is measured. Progress is shown
    under `name`.
    """
    network.eval()
    chosen = test_subset(data.test, evaluation.n, SEED)
    classifier = TorchClassifier(network, state, mean, std)
    device = next(iter(state.values())).device
    with counted(f"measuring {name}") as progress:
        result = worst_case(
            classifier,
            torch.from_numpy(chosen.floats()).to(device),
            torch.from_numpy(chosen.labels).to(device),
            threat_model.eps if threat_model else 0.0,
            steps=evaluation.steps,
            restarts=evaluation.restarts if threat_model else 0,
            seed=SEED,
            progress=progress,
        )
    n = len(chosen)
    facts: dict[str, Any] = {
        "clean_accuracy": int(result.correct.sum()) / n,
        "n": n,
        "split": "test",
        "images_sha256": images_digest(chosen.images, chosen.labels),
    }
    if threat_model is not None:
        facts |= {
            "robust_accuracy": int(result.robust.sum()) / n,
            "norm": threat_model.norm,
            "eps": threat_model.text,
            "attack": "pgd",
            "steps": evaluation.steps,
            "restarts": evaluation.restarts,
            "seed": SEED,
        }
    return facts
