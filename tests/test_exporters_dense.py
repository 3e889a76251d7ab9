"""The dense network: as safetensors and `read_model` read it, and its sizes by their stated rules."""

import gzip
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy
import safetensors.torch
import torch
from golden.golden_models import golden_model
from numpy.typing import NDArray

from atmc_tool.compressed import CompressedModel, CompressedWeight, sparsify
from atmc_tool.model_card import ModelCard
from atmc_tool.models.reading import read_model
from exporters.dense import dense_bytes, dense_safetensors, gzip_dense_bytes

GOLDEN = golden_model(1)
CARD = ModelCard(arch="digits-cnn", image_shape=(1, 8, 8), n_classes=10, class_names=("zéro", "un"), eps="8/255")


def network(facts: dict[str, object]) -> CompressedModel:
    rng = np.random.default_rng(0)
    dense = np.where(rng.random((30, 40)) < 0.1, rng.integers(1, 5, (30, 40)), 0).astype(np.float32)
    weights = {"fc.weight": CompressedWeight((30, 40), {"V": sparsify(dense, quantized=True)})}
    rest: dict[str, NDArray[Any]] = {
        "fc.bias": rng.normal(size=30).astype(np.float32),
        "bn.num_batches_tracked": np.array(7, np.int64),
        "mask": np.array([True, False]),
    }
    return CompressedModel(weights, rest, b"", facts)


def test_torch_loads_the_state_dict(tmp_path: Path) -> None:
    path = tmp_path / "dense.safetensors"
    path.write_bytes(dense_safetensors(GOLDEN))
    loaded = safetensors.torch.load_file(path)
    state = GOLDEN.state()
    assert loaded.keys() == state.keys()
    for name, array in state.items():
        assert loaded[name].shape == array.shape
        assert torch.equal(loaded[name], torch.from_numpy(array))


def test_read_model_takes_the_card_and_the_digest(tmp_path: Path) -> None:
    """The digest is computed here without torch, there with it; `read_model` refuses another one."""
    path = tmp_path / "dense.safetensors"
    model = network({"card": CARD.model_dump(mode="json")})
    path.write_bytes(dense_safetensors(model))
    file = read_model(path)
    assert file.card == CARD
    assert {name: tensor.numpy().tobytes() for name, tensor in file.state.items()} == {
        name: array.tobytes() for name, array in model.state().items()
    }


def test_a_network_without_a_card_is_a_plain_file(tmp_path: Path) -> None:
    path = tmp_path / "dense.safetensors"
    path.write_bytes(dense_safetensors(network({})))
    assert read_model(path).card is None


def test_the_same_network_gives_the_same_bytes() -> None:
    model = network({"card": CARD.model_dump(mode="json")})
    assert dense_safetensors(model) == dense_safetensors(network(dict(model.manifest)))


def test_dense_bytes_counts_four_for_every_element() -> None:
    assert dense_bytes(network({})) == 4 * (30 * 40 + 30 + 1 + 2)


def test_gzip_bytes_are_those_of_the_arrays() -> None:
    model = network({})
    content = b"".join(array.tobytes() for array in model.state().values())
    assert len(content) == 4 * (30 * 40 + 30) + 8 + 2
    assert gzip_dense_bytes(model) == len(gzip.compress(content, 9, mtime=0))
    assert gzip_dense_bytes(model) < len(content) / 4


def test_none_of_it_needs_torch() -> None:
    code = "import sys; sys.modules['torch'] = None; import exporters.dense, exporters.atmc_file"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[1])
