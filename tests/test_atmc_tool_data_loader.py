"""Batches: every image once, resumable; augmentation against a slow loop over images."""

import numpy as np
import pytest
import torch

from atmc_tool import data
from atmc_tool.data import Augmentation, Images
from atmc_tool.data.loader import augment, batches, device_images, n_batches, to_floats


def numbered(n: int) -> Images:
    """Images that carry their number."""
    return Images(np.broadcast_to(np.arange(n, dtype=np.uint8)[:, None, None, None], (n, 1, 2, 2)), np.arange(n))


def test_device_images_are_the_images() -> None:
    source = data.load_data("digits").test
    images, labels = device_images(source, "cpu")
    assert (images.dtype, labels.dtype) == (torch.uint8, torch.int64)
    assert np.array_equal(images.numpy(), source.images)
    assert np.array_equal(labels.numpy(), source.labels)
    images.zero_()
    assert source.images.any()


def test_floats_on_the_device_equal_the_ones_of_numpy() -> None:
    every = np.arange(256, dtype=np.uint8).reshape(256, 1, 1, 1)
    assert np.array_equal(to_floats(torch.tensor(every)).numpy(), Images(every, np.arange(256)).floats())


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_floats_on_cuda_equal_the_ones_of_numpy() -> None:
    every = np.arange(256, dtype=np.uint8).reshape(256, 1, 1, 1)
    assert np.array_equal(
        to_floats(torch.tensor(every, device="cuda")).cpu().numpy(), Images(every, np.arange(256)).floats()
    )


@pytest.mark.parametrize(("n", "size", "expected"), [(20, 5, [5] * 4), (23, 5, [5] * 4), (3, 5, [3]), (5, 5, [5])])
def test_an_epoch_holds_each_image_once_and_no_partial_batch(n: int, size: int, expected: list[int]) -> None:
    epoch = list(batches(*device_images(numbered(n), "cpu"), size, epoch=0, seed=0))
    assert [len(labels) for _, labels in epoch] == expected
    assert n_batches(n, size) == len(epoch)
    labels = torch.cat([labels for _, labels in epoch]).tolist()
    assert len(set(labels)) == len(labels)
    for images, numbers in epoch:
        assert images.dtype == torch.float32
        assert torch.equal(images, (numbers / 255)[:, None, None, None].expand_as(images))


def test_any_step_can_be_resumed() -> None:
    arguments = (*device_images(numbered(23), "cpu"), 5)
    whole = [labels.tolist() for _, labels in batches(*arguments, epoch=3, seed=1)]
    for start in range(6):
        rest = [labels.tolist() for _, labels in batches(*arguments, epoch=3, seed=1, start_batch=start)]
        assert rest == whole[start:]


def test_epochs_and_seeds_differ_and_repeat() -> None:
    def order(epoch: int, seed: int) -> tuple[int, ...]:
        return tuple(next(batches(*device_images(numbered(40), "cpu"), 40, epoch, seed))[1].tolist())

    assert len({order(epoch, seed) for epoch in range(4) for seed in range(4)}) == 16
    assert order(2, 3) == order(2, 3)


def shifted(image: torch.Tensor, down: int, right: int, flip: bool) -> torch.Tensor:
    """Reference: pixel by pixel."""
    result = torch.zeros_like(image)
    _, height, width = image.shape
    for i in range(height):
        for j in range(width):
            source_i, source_j = i - down, j - right
            if 0 <= source_i < height and 0 <= source_j < width:
                result[:, i, j] = image[:, source_i, width - 1 - source_j if flip else source_j]
    return result


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("shift", [0, 1, 2])
def test_every_augmented_image_is_one_of_the_allowed_and_all_of_these_occur(shift: int, flip: bool) -> None:
    torch.manual_seed(0)
    image = torch.rand(2, 4, 5)
    moves = range(-shift, shift + 1)
    allowed = [shifted(image, a, b, f) for a in moves for b in moves for f in ((False, True) if flip else (False,))]
    n = 60 * len(allowed)
    batch = image.expand(n, -1, -1, -1).contiguous()
    result = augment(batch, Augmentation(shift, flip), torch.Generator().manual_seed(0))
    assert result.shape == batch.shape
    same = torch.stack([(result == candidate).flatten(1).all(1) for candidate in allowed])  # (allowed, n)
    assert (same.sum(0) == 1).all()
    counts = same.sum(1)
    assert (counts - 60).abs().max() < 6 * 60**0.5


def test_augmentation_follows_its_generator_alone() -> None:
    batch = torch.rand(16, 3, 6, 6)
    augmentation = Augmentation(2, True)
    first, second = (augment(batch, augmentation, torch.Generator().manual_seed(5)) for _ in range(2))
    assert torch.equal(first, second)
    generator = torch.Generator().manual_seed(5)
    augment(batch, augmentation, generator)
    assert not torch.equal(augment(batch, augmentation, generator), first)


def test_images_are_augmented_each_in_its_own_way_and_no_input_changes() -> None:
    batch = torch.rand(8, 1, 5, 5)
    before = batch.clone()
    results = [augment(batch, Augmentation(2, False), torch.Generator().manual_seed(seed)) for seed in range(30)]
    assert torch.equal(batch, before)
    for result in results:
        for image, source in zip(result, batch, strict=True):
            candidates = [shifted(source, a, b, False) for a in range(-2, 3) for b in range(-2, 3)]
            assert any(torch.equal(image, candidate) for candidate in candidates)


def test_no_augmentation_is_the_batch_itself() -> None:
    batch = torch.rand(3, 1, 4, 4)
    assert augment(batch, Augmentation(), torch.Generator()) is batch
