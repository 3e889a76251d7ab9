"""What ATMC says of itself after an epoch: density and the movement of the codebooks."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from atmc_tool.budget import Budget
from atmc_tool.checkpoint import load_checkpoint, save_checkpoint
from atmc_tool.config import CompressConfig
from atmc_tool.methods.atmc import Atmc

PRUNING, QUANTIZING = 0.5, 0.9


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(30, 20), nn.ReLU(), nn.Linear(20, 10))


def method(**settings: Any) -> Atmc:
    return Atmc(network(), CompressConfig(codebook_interval=2, **settings), Budget(200))


def step(atmc: Atmc, progress: float, number: int) -> None:
    """One step, with noise for the gradient."""
    atmc.weights(progress)
    torch.manual_seed(number)
    with torch.no_grad():
        for tensor in atmc.parameters():
            tensor.add_(0.01 * torch.randn_like(tensor))
    atmc.after_step(progress, number)


def moved(now: dict[str, Any], before: dict[str, Any]) -> float:
    """The root mean square of the moves over that of the centres, by one list of each."""
    a, b = ([float(c) for centres in state["centres"] for c in centres] for state in (now, before))
    return float(np.sqrt(np.mean((np.array(a) - np.array(b)) ** 2)) / np.sqrt(np.mean(np.array(a) ** 2)))


@pytest.mark.parametrize("settings", [{}, {"factors": "uvc", "bits": 2, "projection": "hard"}])
def test_movement_of_the_codebooks(settings: dict[str, Any]) -> None:
    atmc = method(**settings)
    step(atmc, PRUNING, 1)
    assert "codebook_movement" not in atmc.metrics()
    step(atmc, QUANTIZING, 3)
    assert "codebook_movement" not in atmc.metrics()  # codebooks are made, and have not moved yet
    states = [{"centres": list(atmc.state()["quantizer"]["centres"])}]
    for number in (4, 6, 8):
        step(atmc, QUANTIZING, number)
        states.append({"centres": list(atmc.state()["quantizer"]["centres"])})
    with_codebook = [
        i for i, c in enumerate(states[-1]["centres"]) if c is not None and states[-2]["centres"][i] is not None
    ]
    last, before = ({"centres": [s["centres"][i] for i in with_codebook]} for s in (states[-1], states[-2]))
    assert with_codebook
    found = atmc.metrics()["codebook_movement"]
    assert found == pytest.approx(moved(last, before), rel=1e-12)
    assert found > 0
    step(atmc, QUANTIZING, 9)  # no update, no other movement
    assert atmc.metrics()["codebook_movement"] == found


def test_it_survives_a_checkpoint_bit_for_bit(tmp_path: Path) -> None:
    atmc, resumed = method(), method()
    for number in (1, 2, 4, 5):
        step(atmc, QUANTIZING, number)
    save_checkpoint(tmp_path, 5, {"method": atmc.state()})
    state = load_checkpoint(tmp_path)
    assert state is not None
    resumed.load_state(state["method"])
    assert "codebook_movement" in resumed.metrics()
    assert json.dumps(resumed.metrics()) == json.dumps(atmc.metrics())


def test_without_codebooks_nothing_moves() -> None:
    atmc = method(bits=None)
    for number in (2, 4):
        step(atmc, QUANTIZING, number)
    assert "codebook_movement" not in atmc.metrics()


@pytest.mark.parametrize("factors", ["none", "uvc"])
def test_density_is_the_share_of_the_weights(factors: str) -> None:
    atmc = method(factors=factors, projection="hard")
    step(atmc, QUANTIZING, 1)
    nonzero = sum(int((t != 0).sum()) for t in atmc.state()["factors"])
    assert atmc.metrics()["density"] == nonzero / (30 * 20 + 20 * 10) == 200 / 800
