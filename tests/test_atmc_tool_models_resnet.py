"""ResNet-20: shortcuts, export, and a public checkpoint of it on real images."""

import io
import os
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from atmc_tool.models import ARCHITECTURES
from atmc_tool.models.reading import fit_state, infer_architecture, read_model
from atmc_tool.models.resnet import BasicBlock, resnet20


@pytest.mark.parametrize(("channels", "stride"), [(16, 1), (32, 2)])
@torch.no_grad()
def test_a_block_without_weights_is_its_shortcut(channels: int, stride: int) -> None:
    block = BasicBlock(16, channels, stride)
    nn.init.zeros_(block.conv2.weight)
    images = torch.rand(2, 16, 8, 8)
    expected = torch.zeros(2, channels, 8 // stride, 8 // stride)
    before = (channels - 16) // 2
    for row in range(8 // stride):
        for column in range(8 // stride):
            expected[:, before : before + 16, row, column] = images[:, :, row * stride, column * stride]
    assert torch.equal(block.eval()(images), expected)


@pytest.mark.filterwarnings("ignore:.isinstance.treespec, LeafSpec:FutureWarning")
def test_exports_as_slice_and_pad() -> None:
    batch = torch.export.Dim("batch")
    images = (torch.rand(2, 3, 32, 32),)
    program = torch.onnx.export(
        resnet20().eval(), images, dynamo=True, opset_version=21, dynamic_shapes=({0: batch},), verbose=False
    )
    assert program is not None
    operators = [node.op_type for node in program.model_proto.graph.node]
    assert operators.count("Pad") == 2
    assert operators.count("Slice") in (2, 4)  # one for both axes, or one for each
    assert set(operators) <= {"Conv", "Relu", "Add", "Slice", "Pad", "ReduceMean", "Gemm"}


def _folder(variable: str, otherwise: str) -> Path:
    data = os.environ.get("ATMC_DATA_DIR")
    folder = os.environ.get(variable) or (data and f"{data}/{otherwise}")
    if not folder:
        pytest.skip(f"{variable} is not set")
    return Path(folder)


@pytest.fixture(scope="module")
def checkpoint() -> Path:
    path = _folder("ATMC_MODELS_DIR", "../models") / "resnet20-cifar10.th"
    if not path.is_file():
        pytest.skip(f"no {path}")
    return path


def test_a_public_checkpoint_is_recognised(checkpoint: Path) -> None:
    file = read_model(checkpoint)
    assert file.card is None
    assert file.module is None
    assert not any(name.startswith("module.") for name in file.state)
    assert infer_architecture(file.state) is ARCHITECTURES["resnet20"]


def _images(path: Path, per_class: int) -> tuple[Tensor, Tensor]:
    """The first test images of each class, float32 (N, 3, 32, 32) in [0, 1], and labels (N,)."""
    with zipfile.ZipFile(path) as archive:
        names = sorted(name for name in archive.namelist() if name.startswith("test/") and name.endswith(".jpg"))
        classes = sorted({name.split("/")[1] for name in names})
        chosen = [name for c in classes for name in [n for n in names if n.split("/")[1] == c][:per_class]]
        pixels = np.stack([np.asarray(Image.open(io.BytesIO(archive.read(name))).convert("RGB")) for name in chosen])
    labels = torch.tensor([classes.index(name.split("/")[1]) for name in chosen])
    return torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 255, labels


@torch.no_grad()
def test_a_public_checkpoint_scores_as_stated(checkpoint: Path) -> None:
    data = _folder("ATMC_DATA_DIR", ".") / "cifar10-jpeg.zip"
    if not data.is_file():
        pytest.skip(f"no {data}")
    architecture = ARCHITECTURES["resnet20"]
    network = architecture.build().eval()
    fit_state(network, read_model(checkpoint).state)
    images, labels = _images(data, per_class=50)
    mean, std = (torch.tensor(v).reshape(1, 3, 1, 1) for v in (architecture.mean, architecture.std))
    accuracy = float((network((images - mean) / std).argmax(1) == labels).float().mean())
    # 81.03 % on all 10,000; three standard errors of 500 images are 5.3 points. Without normalisation: 28 %.
    assert 0.757 < accuracy < 0.863
