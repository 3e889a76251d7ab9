"""`load_data`: names, paths, splits, limits; that the real data are read as they are."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from atmc_tool import data
from atmc_tool.errors import InputError, UsageError

REAL = os.environ.get("ATMC_DATA_DIR")
needs_real = pytest.mark.skipif(not REAL, reason="ATMC_DATA_DIR is not set")


def write_npz(path: Path, n: int = 40, seed: int = 0) -> Path:
    random = np.random.default_rng(seed)
    np.savez(
        path,
        x_train=random.integers(0, 256, (n, 5, 6), dtype=np.uint8),
        y_train=np.arange(n) % 4,
        x_test=random.integers(0, 256, (12, 5, 6), dtype=np.uint8),
        y_test=np.arange(12) % 4,
    )
    return path


def test_digits_are_the_ones_of_scikit_learn_in_a_fixed_split() -> None:
    from sklearn.datasets import load_digits

    first, second = data.load_data("digits", seed=0), data.load_data("digits", seed=1)
    assert (len(first.train) + len(first.validation), len(first.test)) == (1437, 360)
    assert first.image_shape == (1, 8, 8)
    assert first.augmentation == data.Augmentation()
    assert first.class_names == tuple("0123456789")
    assert np.array_equal(first.test.images, second.test.images)
    assert first.digest == second.digest
    assert not np.array_equal(first.validation.images, second.validation.images)
    assert np.abs(np.bincount(first.test.labels) - 36).max() <= 2

    values, labels = load_digits(return_X_y=True)
    expected = {
        (tuple(int(v * 255 / 16 + 0.5) for v in row), int(label)) for row, label in zip(values, labels, strict=True)
    }
    parts = (first.train, first.validation, first.test)
    images, classes = (np.concatenate([getattr(part, name) for part in parts]) for name in ("images", "labels"))
    got = [(tuple(image.ravel().tolist()), int(label)) for image, label in zip(images, classes, strict=True)]
    assert len(got) == 1797
    assert set(got) == expected


def test_the_split_of_digits_never_changes() -> None:
    from atmc_tool.data.data_set import digest_of

    assert digest_of(data.load_data("digits").test)[:16] == "a859e39d06826b6a"


def test_validation_is_a_stratified_part_of_training(tmp_path: Path) -> None:
    path = str(write_npz(tmp_path / "a.npz"))
    with np.load(path) as arrays:
        everything = arrays["x_train"]
    split = data.load_data(path, validation=0.3, seed=5)
    assert (len(split.train), len(split.validation)) == (28, 12)
    assert np.bincount(split.validation.labels).tolist() == [3, 3, 3, 3]
    joined = np.concatenate([split.train.images, split.validation.images])[:, 0]
    assert sorted(image.tobytes() for image in joined) == sorted(image.tobytes() for image in everything)
    again = data.load_data(path, validation=0.3, seed=5)
    assert np.array_equal(split.train.images, again.train.images)
    other = data.load_data(path, validation=0.3, seed=6)
    assert not np.array_equal(split.validation.images, other.validation.images)
    assert split.digest == other.digest


def test_the_digest_sees_every_pixel_and_label(tmp_path: Path) -> None:
    path = write_npz(tmp_path / "a.npz")
    digests = {data.load_data(str(path)).digest}
    for key in ("x_train", "y_train", "x_test", "y_test"):
        with np.load(path) as archive:
            arrays = dict(archive)
        arrays[key] = arrays[key].copy()
        arrays[key].flat[-1] = (int(arrays[key].flat[-1]) + 1) % 4
        np.savez(tmp_path / f"{key}.npz", **arrays)
        digests.add(data.load_data(str(tmp_path / f"{key}.npz")).digest)
    assert len(digests) == 5


def test_a_limit_keeps_classes_in_balance_and_test_images_apart_from_the_seed(tmp_path: Path) -> None:
    path = str(write_npz(tmp_path / "a.npz"))
    first, second = (data.load_data(path, limit=8, seed=seed) for seed in (0, 1))
    assert len(first.train) + len(first.validation) == 8
    labels = np.concatenate([first.train.labels, first.validation.labels])
    assert np.bincount(labels).tolist() == [2, 2, 2, 2]
    assert len(first.test) == 8
    assert np.array_equal(first.test.images, second.test.images)
    assert not np.array_equal(np.sort(first.train.images.ravel()), np.sort(second.train.images.ravel()))


def test_relative_paths_are_tried_as_given_then_below_the_data_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here, there = tmp_path / "here", tmp_path / "there"
    here.mkdir()
    there.mkdir()
    write_npz(there / "mine.npz", seed=1)
    monkeypatch.chdir(here)
    below = data.load_data("mine.npz", data_dir=there)
    assert below.digest == data.load_data("mine", data_dir=there).digest
    assert below.name == "mine.npz"
    monkeypatch.setenv("ATMC_DATA_DIR", str(there))
    assert data.load_data("mine").digest == below.digest
    write_npz(here / "mine.npz", seed=2)
    assert data.load_data("mine.npz", data_dir=there).digest != below.digest


def test_an_unknown_name_lists_what_is_known_and_the_nearest(tmp_path: Path) -> None:
    write_npz(tmp_path / "letters.npz")
    known = r"digits, mnist, fashion-mnist, cifar10, cifar100, svhn, letters\.npz"
    with pytest.raises(UsageError, match=rf"{known}.*did you mean mnist\?"):
        data.load_data("minst", data_dir=tmp_path)


@pytest.mark.parametrize("spec", ["no/such/folder", "missing.zip", "missing.npz"])
def test_a_missing_file_is_named(spec: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=f"no such file or folder: {spec}"):
        data.load_data(spec, data_dir=tmp_path)


def test_a_missing_data_folder_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ATMC_DATA_DIR", str(tmp_path / "gone"))
    assert data.load_data("digits").n_classes == 10
    with pytest.raises(InputError, match="no such data folder"):
        data.load_data("mnist")


def test_a_file_of_no_known_kind_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("hello")
    with pytest.raises(InputError, match=r"expected a folder, a \.zip, an \.npz or a \.tar\.gz of CIFAR"):
        data.load_data(str(tmp_path / "a.txt"))


@pytest.mark.parametrize(
    "arguments", [{"seed": -1}, {"validation": 0.0}, {"validation": 1.0}, {"validation": float("nan")}, {"limit": 1}]
)
def test_values_out_of_range_are_refused(arguments: dict[str, float]) -> None:
    with pytest.raises(UsageError, match="out of range"):
        data.load_data("digits", **arguments)  # type: ignore[arg-type]


def test_floats_are_pixels_over_255() -> None:
    images = data.load_data("digits").test
    floats = images.floats()
    assert floats.dtype == np.float32
    assert floats.shape == images.images.shape
    assert np.array_equal(floats, (images.images.astype(np.float32) / np.float32(255)))
    assert (floats.min(), floats.max()) == (0, 1)


def test_a_test_subset_is_a_prefix_of_one_permutation() -> None:
    images = data.load_data("digits").test
    small, large = data.test_subset(images, 20), data.test_subset(images, 100)
    assert np.array_equal(small.images, large.images[:20])
    assert np.array_equal(small.labels, large.labels[:20])
    assert len(np.unique(small.labels)) > 5  # not the first images of a sorted source
    assert sorted(data.test_subset(images, 10_000).labels) == sorted(images.labels)
    assert not np.array_equal(data.test_subset(images, 20, seed=1).images, small.images)
    with pytest.raises(UsageError, match="at least 1, got 0"):
        data.test_subset(images, 0)


def test_data_are_read_without_torch() -> None:
    code = (
        "import sys\n"
        "class NoTorch:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name.partition('.')[0] == 'torch': raise ModuleNotFoundError(name=name)\n"
        "sys.meta_path.insert(0, NoTorch())\n"
        "from atmc_tool import data\n"
        "assert not {'sklearn', 'PIL', 'pooch'} & set(sys.modules), 'slow imports'\n"
        "print(len(data.load_data('digits').test))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.stdout, done.returncode) == ("360\n", 0), done.stderr


@needs_real
@pytest.mark.parametrize(
    ("name", "mean", "augmentation"),
    # the published means of the training images
    [("mnist", 0.1307, data.Augmentation()), ("fashion-mnist", 0.2860, data.Augmentation(2, True))],
)
def test_real_idx_data(name: str, mean: float, augmentation: data.Augmentation) -> None:
    real = data.load_data(name)
    assert (len(real.train), len(real.validation), len(real.test)) == (54_000, 6_000, 10_000)
    assert real.image_shape == (1, 28, 28)
    assert real.augmentation == augmentation
    total = real.train.images.sum(dtype=np.int64) + real.validation.images.sum(dtype=np.int64)
    assert total / (60_000 * 784 * 255) == pytest.approx(mean, abs=5e-5)
    assert np.abs(np.bincount(real.validation.labels) - np.bincount(real.train.labels) / 9).max() <= 1


@needs_real
def test_real_images_in_a_zip() -> None:
    seen: list[tuple[int, int]] = []
    real = data.load_data("cifar10-jpeg", limit=300, progress=lambda done, total: seen.append((done, total)))
    assert (len(real.train), len(real.validation), len(real.test)) == (270, 30, 300)
    assert real.image_shape == (3, 32, 32)
    assert real.class_names[0] == "airplane"
    assert real.class_names[9] == "truck"
    assert real.augmentation == data.Augmentation(4, True)
    assert np.bincount(real.test.labels).tolist() == [30] * 10
    assert seen[-1] == (600, 600)
    assert real.train.images.mean(axis=(0, 2, 3)) / 255 == pytest.approx([0.4914, 0.4822, 0.4465], abs=0.03)
