"""Catastrophic overfitting that really happens, and the way on with PGD.

The network also sees sin(πx/eps), which is the same at both ends of the ball, up to its sign. There a single step of
FGSM-RS ends, so training with it learns to trust the wave; PGD, whose steps are smaller, finds that it moves.
"""

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from atmc_tool.checkpoint import load_checkpoint
from atmc_tool.config import AttackConfig, TrainConfig
from atmc_tool.data import DataSet, load_data
from atmc_tool.errors import InterruptedRunError
from atmc_tool.methods.dense import Dense
from atmc_tool.threat_model import parse_threat_model
from atmc_tool.training import Event, train
from atmc_tool.training_step import Setup

EPS = 0.125
ROBUST = TrainConfig(objective="pgd-at", max_steps=100)
SINGLE_STEP = TrainConfig(objective="fgsm-rs", max_steps=60, lr=0.1, warmup=0.5, checkpoint_steps=3, average=0.5)


class Wavy(nn.Module):
    """Logits of digits from pixels x and sin(πx/eps)."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(128, 64), nn.ReLU(), nn.Linear(64, 10))

    def forward(self, images: Tensor) -> Tensor:
        pixels = images.flatten(1)
        logits: Tensor = self.layers(torch.cat([pixels, torch.sin(math.pi / EPS * pixels)], 1))
        return logits


class Stopped(Exception):
    """Stands for a kill: nothing is saved after it."""


@dataclass(frozen=True)
class Run:
    events: list[Event]
    state: dict[str, Any]
    metrics: list[dict[str, Any]]

    @property
    def warnings(self) -> list[str]:
        return [event.text for event in self.events if event.kind == "warning"]


def run(
    config: TrainConfig,
    data: DataSet,
    folder: Path,
    start: dict[str, Tensor] | None = None,
    *,
    stop_at: int | None = None,
    kill_at_warning: bool = False,
    resume: bool = False,
) -> Run:
    torch.manual_seed(0)
    net = Wavy()
    if start is not None:
        net.load_state_dict(start)
    events: list[Event] = []

    def report(event: Event) -> None:
        events.append(event)
        if kill_at_warning and event.kind == "warning":
            raise Stopped

    threat_model = parse_threat_model(str(EPS))
    setup = Setup(net, (0.0,), (1.0,), torch.device("cpu"), data, threat_model, AttackConfig(steps=5), 3)
    arguments: dict[str, Any] = {"digest": "d", "select": False, "resume": resume, "report": report}
    train(setup, Dense(net, config), config, folder, stop=lambda: events[-1].step == stop_at, **arguments)
    state = load_checkpoint(folder / "checkpoints")
    assert state is not None
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    for line in lines:
        del line["seconds"]
    return Run(events, {**state, "shipped": net.state_dict()}, lines)


@pytest.fixture(scope="module")
def digits() -> DataSet:
    return load_data("digits")


@pytest.fixture(scope="module")
def robust(digits: DataSet, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Tensor]:
    made = run(ROBUST, digits, tmp_path_factory.mktemp("robust"))
    assert made.warnings == []
    shipped: dict[str, Tensor] = made.state["shipped"]
    return shipped


@pytest.fixture(scope="module")
def whole(digits: DataSet, robust: dict[str, Tensor], tmp_path_factory: pytest.TempPathFactory) -> Run:
    return run(SINGLE_STEP, digits, tmp_path_factory.mktemp("whole"), robust)


def test_it_goes_back_and_on_with_pgd(whole: Run) -> None:
    (warning,) = whole.warnings
    assert warning.startswith("catastrophic overfitting: robust accuracy on validation images fell from 0.")
    assert ", accuracy under the single-step attack did not: back to step " in warning
    assert warning.endswith(", from there on with PGD-5")
    at = next(i for i, line in enumerate(whole.metrics) if "warning" in line)
    assert [line["step"] for line in whole.metrics] == [10 * (i + (i < at)) for i in range(7)]
    assert whole.metrics[at] == {**whole.metrics[at], "rollback": 1, "step": whole.metrics[at - 1]["step"]}
    epochs = [line for line in whole.metrics if "warning" not in line]
    assert [("validation_single_step" in line) for line in epochs] == [i < at for i in range(6)]
    assert whole.metrics[-1]["validation_robust"] > 0.5 * max(line["validation_robust"] for line in epochs)
    assert whole.state["guarded"]
    assert epochs[at]["learning_rate"] == pytest.approx(Dense(Wavy(), SINGLE_STEP).learning_rate((10 * at + 9) / 60))


@pytest.mark.parametrize("interruption", [{"stop_at": 8}, {"kill_at_warning": True}, {"stop_at": 58}])
def test_it_resumes_to_the_same_bits(
    interruption: dict[str, Any], whole: Run, digits: DataSet, robust: dict[str, Tensor], tmp_path: Path
) -> None:
    with pytest.raises((InterruptedRunError, Stopped)):
        run(SINGLE_STEP, digits, tmp_path, robust, **interruption)
    resumed = run(SINGLE_STEP, digits, tmp_path, robust, resume=True)
    for name, tensor in whole.state["shipped"].items():
        assert torch.equal(tensor, resumed.state["shipped"][name])
    assert resumed.metrics == whole.metrics


def test_killed_between_the_warning_and_the_new_checkpoint(
    whole: Run, digits: DataSet, robust: dict[str, Tensor], tmp_path: Path
) -> None:
    """What is on disk then: the checkpoint to go back to as it was, none after it, the line of the warning."""
    line = next(line for line in whole.metrics if "warning" in line)
    with pytest.raises(InterruptedRunError):
        run(SINGLE_STEP, digits, tmp_path, robust, stop_at=line["step"])
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write(json.dumps({**line, "seconds": 1.0}) + "\n")
    resumed = run(SINGLE_STEP, digits, tmp_path, robust, resume=True)
    assert torch.equal(whole.state["shipped"]["layers.0.weight"], resumed.state["shipped"]["layers.0.weight"])
    assert resumed.metrics == whole.metrics
