"""The planned cost against what a training does: images are counted as they go through the network."""

from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from atmc_tool.config import AttackConfig, ScheduleConfig, TrainConfig
from atmc_tool.cost import training_cost
from atmc_tool.data import load_data
from atmc_tool.methods.dense import Dense
from atmc_tool.threat_model import parse_threat_model
from atmc_tool.training import train
from atmc_tool.training_step import Setup

OBJECTIVES = get_args(ScheduleConfig.model_fields["objective"].annotation)


class Counted(nn.Module):
    """A linear classifier that counts the images of which a gradient is taken."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(64, 10)
        self.images = 0

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.linear(images.flatten(1))
        if logits.requires_grad:
            logits.register_hook(self._count)
        return logits

    def _count(self, gradient: Tensor) -> None:
        self.images += len(gradient)


def passes(folder: Path, schedule: TrainConfig, attack: AttackConfig, eps: str | None) -> tuple[int, int]:
    """(images that went forward and backward in a training, as planned); validation is taken off both."""
    data = load_data("digits")
    counted = []
    for steps in (1, 3):  # both with one epoch's end, so that validation drops out
        torch.manual_seed(0)
        network = Counted()
        model = None if eps is None else parse_threat_model(eps)
        setup = Setup(network, (0.0,), (1.0,), torch.device("cpu"), data, model, attack, 0)
        own = schedule.model_copy(update={"max_steps": steps})
        options: dict[str, Any] = {"digest": "", "select": False, "resume": False, "stop": lambda: False}
        train(setup, Dense(network, own), own, folder / str(steps), report=lambda _: None, **options)
        cost = training_cost(own, attack, len(data.train), attacked=eps is not None)
        assert (cost.steps, cost.images) == (steps, len(data.train))
        assert np.isclose(cost.per_image, cost.passes / len(data.train))
        counted.append((network.images, cost.passes))
    return counted[1][0] - counted[0][0], counted[1][1] - counted[0][1]


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("steps", [1, 4])
def test_every_objective(objective: str, steps: int, tmp_path: Path) -> None:
    schedule = TrainConfig.model_validate({"objective": objective, "batch_size": 100})
    counted, planned = passes(tmp_path, schedule, AttackConfig(steps=steps), "0.1")
    assert counted == planned > 0


@pytest.mark.parametrize(("weight", "per_step"), [(0.0, 6), (0.5, 7), (1.0, 1)])
def test_a_muted_term_costs_nothing(weight: float, per_step: int, tmp_path: Path) -> None:
    counted, planned = passes(tmp_path, TrainConfig(clean_weight=weight, batch_size=50), AttackConfig(steps=5), "0.1")
    assert counted == planned == 2 * 50 * per_step


def test_a_warm_up_takes_single_steps(tmp_path: Path) -> None:
    attack = AttackConfig(steps=5, fgsm_warmup=0.5)
    cost = training_cost(TrainConfig(max_steps=3, batch_size=50), attack, 100, attacked=True)
    assert cost.passes == 50 * (3 + 3 + 7)  # at 0, 1/3 and 2/3 of the schedule
    counted, planned = passes(tmp_path, TrainConfig(batch_size=50), attack, "0.1")
    assert counted == planned


def test_natural_training_takes_one_pass(tmp_path: Path) -> None:
    counted, planned = passes(tmp_path, TrainConfig(batch_size=50), AttackConfig(steps=5), None)
    assert counted == planned == 2 * 50


def test_a_batch_is_no_larger_than_the_training_set() -> None:
    cost = training_cost(TrainConfig(max_steps=4, batch_size=1000), AttackConfig(steps=1), 100, attacked=True)
    assert (cost.passes, cost.per_image) == (4 * 100 * 3, 12)
