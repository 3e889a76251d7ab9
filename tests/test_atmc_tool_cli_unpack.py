"""`atmc-tool unpack`: what it writes is the network, as torch and `compress` read it."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from compressed_networks import CARD, digits_network
from conftest import Cli
from safetensors.torch import load_file

from atmc_tool.models import ARCHITECTURES
from atmc_tool.models.reading import read_model
from exporters.atmc_file import encode_model


@pytest.fixture
def run(tmp_path: Path) -> Path:
    (tmp_path / "atmc-run").mkdir()
    (tmp_path / "atmc-run" / "model.atmc").write_bytes(encode_model(digits_network()))
    return tmp_path


@pytest.mark.parametrize("name", ["model.safetensors", "model.pt"])
def test_the_weights_go_into_the_network(name: str, run: Path, cli: Cli) -> None:
    done = cli(f"unpack atmc-run/model.atmc -o {name} --json", run)
    assert (done.code, done.err) == (0, "")
    written = (run / name).read_bytes()
    assert json.loads(done.out)["files"][0]["bytes"] == len(written)
    state = load_file(run / name) if name.endswith("safetensors") else torch.load(run / name)["state_dict"]
    network = ARCHITECTURES["digits-cnn"].build()
    network.load_state_dict(state)
    for key, array in digits_network().state().items():
        np.testing.assert_array_equal(network.state_dict()[key].numpy(), array)
    assert read_model(run / name).card == CARD
    assert "exists. Hint: --overwrite replaces it" in cli(f"unpack -o {name}", run).error
    assert cli(f"unpack -o {name} --overwrite", run).code == 0
    assert (run / name).read_bytes() == written


def test_by_default_it_lies_beside_the_file(run: Path, cli: Cli) -> None:
    assert cli("unpack", run).code == 0
    assert (run / "atmc-run" / "model.safetensors").is_file()


def test_what_can_not_be(run: Path, cli: Cli) -> None:
    failed = cli("unpack -o model.onnx", run)
    assert failed.code == 2
    assert "expected .safetensors or .pt, got .onnx" in failed.error
    failed = cli("unpack nothing.atmc", run)
    assert failed.code == 4
    assert "nothing.atmc is not there" in failed.error
