"""`atmc_tool.load`: the torch network that it gives computes what the exported file computes."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from compressed_networks import CARD, compressed_network, digits_network, random_images
from conftest import ROOT
from torch import nn
from user_networks import Tied, ViT

import atmc_tool
from atmc_tool.compressed import CompressedModel
from atmc_tool.errors import InputError, UsageError
from atmc_tool.models import ARCHITECTURES
from exporters.atmc_file import encode_model
from exporters.onnx_file import build_onnx

HEAVY = ("torch", "numpy", "exporters", "pydantic")


@pytest.fixture(scope="module")
def digits() -> CompressedModel:
    return digits_network()


def write(model: CompressedModel, folder: Path) -> Path:
    path = folder / "model.atmc"
    path.write_bytes(encode_model(model))
    return path


def logits_of_the_file(model: CompressedModel, images: np.ndarray) -> np.ndarray:
    session = onnxruntime.InferenceSession(build_onnx(model, "0" * 64), providers=["CPUExecutionProvider"])
    return session.run(["logits"], {"input": images})[0]


def test_a_run_folder_stands_for_its_file(digits: CompressedModel, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no model\.atmc in the folder .*: expected a run folder or an \.atmc file"):
        atmc_tool.load(tmp_path)
    path = write(digits, tmp_path)
    images = torch.from_numpy(random_images((1, 8, 8)))
    assert torch.equal(atmc_tool.load(tmp_path)(images), atmc_tool.load(path)(images))


def test_images_of_integers_are_refused(digits: CompressedModel, tmp_path: Path) -> None:
    """They were taken for images from 0 to 255 in [0, 1], without a word."""
    network = atmc_tool.load(write(digits, tmp_path))
    with pytest.raises(UsageError, match=r"expected floating point in \[0, 1\]: images\.float\(\) / 255, got uint8"):
        network(torch.zeros(2, 1, 8, 8, dtype=torch.uint8))
    assert network(torch.zeros(2, 1, 8, 8, dtype=torch.float64).float()).shape == (2, 10)


def test_it_computes_what_the_exported_file_computes(digits: CompressedModel, tmp_path: Path) -> None:
    """Images in [0, 1] for both: the normalisation is inside."""
    network = atmc_tool.load(str(write(digits, tmp_path)))
    images = random_images((1, 8, 8))
    expected = logits_of_the_file(digits, images)
    with torch.no_grad():
        np.testing.assert_allclose(network(torch.from_numpy(images)).numpy(), expected, atol=1e-5)
        bare = network.network((torch.from_numpy(images) - 0.3) / 0.4)
        np.testing.assert_allclose(bare.numpy(), expected, atol=1e-5)
    assert not any(module.training for module in network.modules())


@pytest.mark.parametrize("network", [ViT, Tied])
def test_it_fills_a_network_of_the_user(network: type[nn.Module], tmp_path: Path) -> None:
    """Its names are those of the state dict, the second name of a tied weight too."""
    torch.manual_seed(0)
    original = network()
    card = CARD.model_copy(update={"arch": f"nets.py:{network.__name__}"})
    model = compressed_network(original, card)
    tied = {"twin.weight": "hidden.weight"} if network is Tied else {}
    rest = {name: array for name, array in model.rest.items() if name not in tied}
    model = CompressedModel(model.weights, rest, model.skeleton, {**model.manifest, "tied": tied})
    path = write(model, tmp_path)
    mine = network()
    loaded = atmc_tool.load(path, model=mine)
    assert loaded.network is mine
    for name, array in model.state().items():
        np.testing.assert_array_equal(mine.state_dict()[name].numpy(), array)
    images = random_images((1, 8, 8))
    with torch.no_grad():
        got = loaded(torch.from_numpy(images)).numpy()
    np.testing.assert_allclose(got, logits_of_the_file(model, images), atol=1e-4)
    with pytest.raises(InputError, match=r"not run on the word of a file. Hint: atmc_tool.load\(path, model="):
        atmc_tool.load(path)


def test_a_network_that_does_not_fit_stays_as_it_was(digits: CompressedModel, tmp_path: Path) -> None:
    path = write(digits, tmp_path)
    other = ARCHITECTURES["digits-cnn"].build(7)
    before = {name: tensor.clone() for name, tensor in other.state_dict().items()}
    with pytest.raises(InputError, match="2 wrongly shaped") as refused:
        atmc_tool.load(path, model=other)
    assert f"Hint: give the network that {path} was made of, digits-cnn" in str(refused.value)
    assert all(torch.equal(tensor, before[name]) for name, tensor in other.state_dict().items())
    with pytest.raises(UsageError, match=r"expected a torch.nn.Module, built, got type"):
        atmc_tool.load(path, model=Tied)  # type: ignore[arg-type]


def test_files_that_can_not_be_loaded(digits: CompressedModel, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="can't read"):
        atmc_tool.load(tmp_path / "nothing.atmc")
    (tmp_path / "damaged.atmc").write_bytes(encode_model(digits)[:-3])
    with pytest.raises(InputError, match="cut off"):
        atmc_tool.load(tmp_path / "damaged.atmc")
    without = CompressedModel(digits.weights, digits.rest, digits.skeleton, {})
    with pytest.raises(InputError, match="the model card in"):
        atmc_tool.load(write(without, tmp_path))


def test_importing_the_package_is_cheap() -> None:
    script = f"import sys, atmc_tool; print([name for name in {HEAVY} if name in sys.modules])"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, env=environment)
    assert done.stdout == "[]\n"
    with pytest.raises(AttributeError, match="no attribute 'lode'"):
        atmc_tool.lode  # noqa: B018
