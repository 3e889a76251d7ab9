"""Images that are decoded batch by batch: the same bits as from memory, few at a time, damage named when it is met."""

import threading
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import Cli
from PIL import Image

from atmc_tool import data
from atmc_tool.data import image_folder
from atmc_tool.data.loader import batches, device_images, training_images
from atmc_tool.data.streamed import AHEAD, StreamedImages, decoded
from atmc_tool.errors import InputError, UsageError

SIZE = (8, 8)
CLASSES = ("n01440764", "n01443537", "n02102040")


def write_folder(folder: Path, per_class: int = 14, test: str = "test") -> Path:
    """Noise as PNG, of 8 × 8 pixels."""
    rng = np.random.default_rng(0)
    for part in ("train", test):
        for name in CLASSES:
            (folder / part / name).mkdir(parents=True)
            for i in range(per_class):
                Image.fromarray(rng.integers(0, 256, (*SIZE, 3), np.uint8)).save(folder / part / name / f"{i}.PNG")
    return folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_folder(tmp_path / "set")


@pytest.fixture
def streaming(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every image folder is larger than what is read whole."""
    monkeypatch.setattr(image_folder, "STREAM_ABOVE", 0)


def both(path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[data.DataSet, data.DataSet]:
    """The data set read whole, and streamed."""
    whole = data.load_data(str(path))
    monkeypatch.setattr(image_folder, "STREAM_ABOVE", 0)
    streamed = data.load_data(str(path))
    assert isinstance(streamed.train, StreamedImages)
    return whole, streamed


def test_every_part_has_the_images_that_are_read_whole(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole, streamed = both(folder, monkeypatch)
    assert (streamed.image_shape, streamed.class_names) == (whole.image_shape, whole.class_names)
    assert streamed.augmentation == whole.augmentation
    for part in ("train", "validation", "test"):
        expected, got = getattr(whole, part), getattr(streamed, part)
        assert len(got) == len(expected)
        assert np.array_equal(got.labels, expected.labels)
        assert np.array_equal(got.read().images, expected.images)
    subset = data.test_subset(streamed.test, 7)
    assert np.array_equal(subset.images, data.test_subset(whole.test, 7).images)
    assert np.array_equal(data.test_labels(streamed.test, 7), subset.labels)
    assert torch.equal(device_images(streamed.validation, "cpu")[0], device_images(whole.validation, "cpu")[0])


@pytest.mark.parametrize("size", [5, 16, 100])
def test_batches_are_those_from_memory_from_any_step_on(
    size: int, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    parts = [training_images(each.train, "cpu") for each in both(folder, monkeypatch)]
    for epoch, start in ((0, 0), (3, 0), (3, 1), (3, 2)):
        whole, streamed = (list(batches(*part, size, epoch, seed=1, start_batch=start)) for part in parts)
        assert len(whole) == len(streamed)
        for (x, y), (images, labels) in zip(whole, streamed, strict=True):
            assert torch.equal(x, images)
            assert x.stride() == images.stride()  # sums depend on the layout
            assert torch.equal(y, labels)


@pytest.mark.usefixtures("folder")
def test_training_on_streamed_images_ends_with_the_same_bits(
    tmp_path: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "net.py").write_text(
        "from torch import nn\ndef build():\n    return nn.Sequential(nn.Flatten(), nn.Linear(192, 3))\n"
    )
    short = (
        "--set attack.steps=1 --set evaluation.n=10 --set evaluation.steps=1 --set train.batch_size=16 --max-steps 5"
    )
    states = []
    for name in ("whole.pt", "streamed.pt"):
        done = cli(f"train --data set --arch net.py:build --eps 0.1 {short} -o {name}", tmp_path)
        assert done.code == 0, done.err
        states.append(torch.load(tmp_path / name)["state_dict"])
        monkeypatch.setattr(image_folder, "STREAM_ABOVE", 0)
    assert all(torch.equal(tensor, states[1][name]) for name, tensor in states[0].items())


@pytest.mark.usefixtures("streaming")
def test_only_a_few_batches_are_decoded_ahead_and_no_thread_is_left(folder: Path) -> None:
    read: list[str] = []
    train = data.load_data(str(folder)).train
    assert isinstance(train, StreamedImages)
    tree = train.tree
    counting = replace(tree, read=lambda name: (read.append(name), tree.read(name))[1])
    parts = [np.arange(start, start + 3) for start in range(0, 36, 3)]
    with closing(decoded(replace(train, tree=counting), parts)) as stream:
        for number, part in enumerate(parts[:5], 1):
            assert np.array_equal(next(stream), train.take(part).read().images)
            assert len(read) <= 3 * (number + AHEAD)
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("decode")]
    assert len(read) < 36


@pytest.mark.usefixtures("streaming")
def test_the_digest_names_the_files(folder: Path) -> None:
    digest = data.load_data(str(folder)).digest
    assert data.load_data(str(folder), seed=5).digest == digest
    file = folder / "train" / CLASSES[0] / "3.PNG"
    file.write_bytes(file.read_bytes() + b"\0")
    assert data.load_data(str(folder)).digest != digest


@pytest.mark.usefixtures("streaming")
def test_a_damaged_image_is_named_when_its_batch_comes(folder: Path) -> None:
    (folder / "train" / CLASSES[1] / "4.PNG").write_bytes(b"\0" * 500)
    train = training_images(data.load_data(str(folder), validation=0.05).train, "cpu")
    with pytest.raises(InputError, match=r"train/n01443537/4\.PNG is damaged"):
        list(batches(*train, 4, epoch=0, seed=0))


@pytest.mark.usefixtures("streaming")
def test_an_image_of_another_shape_is_named_with_the_setting_that_helps(folder: Path) -> None:
    Image.new("RGB", (9, 8)).save(folder / "train" / CLASSES[1] / "4.PNG")
    train = data.load_data(str(folder)).train
    with pytest.raises(InputError, match=r"images differ in shape.*data\.image_size"):
        train.read()


def smooth(width: int, height: int) -> np.ndarray:
    """An image of slow waves, (height, width, 3)."""
    y, x = np.mgrid[:height, :width] / max(width, height)
    return np.stack([np.sin(9 * x), np.cos(7 * y), np.sin(5 * (x + y))], 2) * 100 + 128


def test_imagenet_layout_and_sizes(tmp_path: Path) -> None:
    """`val` is what is measured on; photos of any size, gray, CMYK and palette ones among them, as RGB squares."""
    folder = write_folder(tmp_path / "set", per_class=4, test="val")
    for i, (width, height) in enumerate([(50, 37), (37, 50), (300, 41)]):
        image = Image.fromarray(smooth(width, height).astype(np.uint8))
        image.save(folder / "val" / CLASSES[2] / f"ILSVRC2012_val_{i}.JPEG", quality=100, subsampling=0)
    Image.new("L", (20, 30), 77).save(folder / "train" / CLASSES[0] / "gray.JPEG")
    Image.new("CMYK", (20, 30), (0, 255, 255, 0)).save(folder / "train" / CLASSES[0] / "print.JPEG")
    read = data.load_data(str(folder), image_size=16)
    assert read.image_shape == (3, 16, 16)
    assert len(read.test) == 15
    assert read.class_names == CLASSES
    for i, image in enumerate(read.test.images[-3:]):
        width, height = [(50, 37), (37, 50), (300, 41)][i]
        # independently: mean over the pixels' own centres in the square of 7/8 of the shorter side
        side = 7 / 8 * min(width, height)
        edges = [(length - side) / 2 + side * (np.arange(16) + 0.5) / 16 - 0.5 for length in (height, width)]
        rows, columns = (np.rint(edge).astype(int) for edge in edges)
        expected = smooth(width, height)[rows][:, columns].transpose(2, 0, 1)
        assert np.abs(image - expected).mean() < 4
    colours = {tuple(image[:, 0, 0]) for image in np.concatenate([read.train.images, read.validation.images])}
    assert (77, 77, 77) in colours
    assert any(r > 200 and g < 60 and b < 60 for r, g, b in colours)


def test_a_stretched_image_needs_no_more_memory_than_its_own(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "set", per_class=2)
    Image.new("RGB", (60_000, 1), (9, 9, 9)).save(folder / "test" / CLASSES[0] / "long.PNG")
    assert (data.load_data(str(folder), image_size=64).test.images[2] == 9).all()


def test_a_size_for_other_data_is_refused() -> None:
    with pytest.raises(UsageError, match=r"data\.image_size does not fit digits"):
        data.load_data("digits", image_size=16)


@pytest.mark.usefixtures("streaming")
def test_the_first_image_decides_in_a_set_of_any_size(folder: Path) -> None:
    """Nothing but names and the first image is read to open a set."""
    for file in sorted(folder.rglob("*.PNG"))[1:]:
        if file.parent.parent.name == "train" and file.name != "0.PNG":
            file.write_bytes(b"damaged")
    read = data.load_data(str(folder))
    assert len(read.train) + len(read.validation) == 42
