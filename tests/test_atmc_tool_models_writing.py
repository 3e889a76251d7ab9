"""Files of ours: what is written comes back, the bytes are always the same, a failure leaves nothing."""

from pathlib import Path

import pytest
import torch
from torch import nn

from atmc_tool.errors import AtmcError, UsageError
from atmc_tool.model_card import ModelCard
from atmc_tool.models.reading import read_model
from atmc_tool.models.writing import write_model

CARD = ModelCard(
    arch="digits-cnn", image_shape=(1, 8, 8), n_classes=10, mean=(0.5,), std=(0.25,), data="digits", eps="8/255", seed=3
)
SUFFIXES = [".pt", ".safetensors"]


def _network() -> nn.Module:
    return nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Flatten(), nn.Linear(72, 10))


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_weights_and_card_come_back(suffix: str, tmp_path: Path) -> None:
    state = _network().state_dict()
    write_model(tmp_path / f"new/model{suffix}", state, CARD)
    file = read_model(tmp_path / f"new/model{suffix}")
    assert file.card == CARD
    assert file.state.keys() == state.keys()
    assert all(torch.equal(file.state[name], state[name]) for name in state)
    assert [path.name for path in (tmp_path / "new").iterdir()] == [f"model{suffix}"]


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_the_same_network_gives_the_same_bytes(suffix: str, tmp_path: Path) -> None:
    first, second, third = (tmp_path / f"{name}{suffix}" for name in ("first", "second", "third"))
    state = _network().state_dict()
    write_model(first, state, CARD)
    write_model(second, state, CARD)
    file = read_model(first)
    assert file.card is not None
    # Other objects of the same values, in the same order: identities of strings and tensors must not matter.
    write_model(third, {name: file.state[name] for name in state}, file.card)
    assert first.read_bytes() == second.read_bytes() == third.read_bytes()


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_views_and_shared_tensors_are_written_whole_and_small(suffix: str, tmp_path: Path) -> None:
    large = torch.rand(1000, 1000)
    state = {
        "corner": large[:2, :2],
        "turned": large[:2, :3].T,
        "same": large[:2, :2],
        "leaf": nn.Parameter(large[:1, :1]),
    }
    path = tmp_path / f"model{suffix}"
    write_model(path, state, CARD)
    assert path.stat().st_size < 10_000
    loaded = read_model(path).state
    assert all(torch.equal(loaded[name], state[name]) for name in state)


def test_torch_alone_reads_ours(tmp_path: Path) -> None:
    network = _network()
    write_model(tmp_path / "model.pt", network.state_dict(keep_vars=True), CARD)
    loaded = torch.load(tmp_path / "model.pt", weights_only=True)
    assert not any(tensor.requires_grad for tensor in loaded["state_dict"].values())
    other = _network()
    other.load_state_dict(loaded["state_dict"])
    assert ModelCard.model_validate_json(loaded["atmc_tool"]) == CARD


@pytest.mark.parametrize("name", ["model.atmc", "model.onnx", "model"])
def test_another_suffix_is_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"expected \.pt or \.safetensors"):
        write_model(tmp_path / name, {"a": torch.ones(1)}, CARD)
    assert not list(tmp_path.iterdir())


def test_a_folder_that_is_a_file_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(AtmcError, match="can't write"):
        write_model(tmp_path / "file/model.pt", {"a": torch.ones(1)}, CARD)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
