"""A user's network takes the small state dict, and computes with it what the exported file computes."""

from pathlib import Path

import numpy as np
import pytest
import torch
from channel_networks import NETWORKS
from conftest import Cli
from onnx_networks import run
from safetensors.torch import load_file
from test_exporters_channel_removal import DIGEST, images, structured
from torch import nn

from atmc_tool.errors import InputError
from atmc_tool.shrink import shrink
from exporters.atmc_file import encode_model
from exporters.onnx_file import build_onnx

pytestmark = pytest.mark.xdist_group("channels")


@pytest.mark.parametrize(
    "name", ["inverted", *(pytest.param(name, marks=pytest.mark.slow) for name in ("grouped", "dense", "plain"))]
)
def test_torch_computes_the_same_at_the_small_size(name: str, cli: Cli, tmp_path: Path) -> None:
    model = structured(name, "both")
    (tmp_path / "model.atmc").write_bytes(encode_model(model))
    assert cli("unpack model.atmc --shrink", tmp_path).code == 0
    network = NETWORKS[name]().eval()
    whole = sum(parameter.numel() for parameter in network.parameters())
    shrink(network, load_file(tmp_path / "model.safetensors"))
    x = images(model)
    expected = run(build_onnx(model, DIGEST), {"input": x}, ["logits"])[0]
    with torch.no_grad():
        got = network((torch.from_numpy(x) - 0.4) / 0.25).numpy()
    np.testing.assert_allclose(got, expected, atol=1e-5 * max(1, np.abs(expected).max()))
    assert sum(parameter.numel() for parameter in network.parameters()) < whole
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            assert module.weight.shape[:2] == (module.out_channels, module.in_channels // module.groups)
        elif isinstance(module, nn.Linear):
            assert module.weight.shape == (module.out_features, module.in_features)
        elif isinstance(module, nn.BatchNorm2d):
            assert module.running_mean is not None
            assert module.num_features == len(module.running_mean)


class Tied(nn.Module):
    """Two layers of one weight."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(4, 4), nn.Linear(4, 4)
        self.two.weight = self.one.weight


def test_a_tied_weight_stays_tied_and_frozen_ones_stay_frozen() -> None:
    network = Tied()
    network.one.bias.requires_grad_(False)
    small = torch.ones(2, 3)
    shrink(
        network,
        {"one.weight": small, "one.bias": torch.zeros(2), "two.weight": small, "two.bias": torch.zeros(2)},
    )
    assert network.one.weight is network.two.weight
    assert (network.two.in_features, network.two.out_features) == (3, 2)
    assert not network.one.bias.requires_grad
    assert network.one.weight.requires_grad


@pytest.mark.parametrize(
    ("state", "told"),
    [
        ({"weight": torch.zeros(2, 3)}, "'bias' in one of them only"),
        ({"weight": torch.zeros(2, 9), "bias": torch.zeros(2)}, "'weight' does not fit the network"),
        ({"weight": torch.zeros(2), "bias": torch.zeros(2)}, "'weight' does not fit the network"),
    ],
)
def test_another_networks_state_is_refused(state: dict[str, torch.Tensor], told: str) -> None:
    network = nn.Linear(4, 4)
    with pytest.raises(InputError, match=told):
        shrink(network, state)
    assert network.weight.shape == (4, 4)
