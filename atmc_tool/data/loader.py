"""Batches and augmentation on the device, where the whole data set lives as uint8 if it is not streamed."""

from collections.abc import Generator
from contextlib import closing

import torch
from torch import Tensor

from atmc_tool.data.data_set import Augmentation
from atmc_tool.data.images import Images
from atmc_tool.data.order import permutation
from atmc_tool.data.streamed import StreamedImages, decoded


def device_images(images: Images | StreamedImages, device: torch.device | str) -> tuple[Tensor, Tensor]:
    """(images uint8 (n, C, H, W), labels int64 (n,)) on `device`; streamed images are all read for it."""
    images = images.read()
    return torch.tensor(images.images, device=device), torch.tensor(images.labels, device=device)


def training_images(
    images: Images | StreamedImages, device: torch.device | str
) -> tuple[Tensor | StreamedImages, Tensor]:
    """As `device_images`, for `batches`; streamed images stay where they are."""
    if isinstance(images, StreamedImages):
        return images, torch.tensor(images.labels, device=device)
    return device_images(images, device)


def n_batches(n: int, batch_size: int) -> int:
    """Batches of an epoch over n images: whole ones only, unless there are too few images for one."""
    return max(n // batch_size, 1)


def batches(
    images: Tensor | StreamedImages, labels: Tensor, batch_size: int, epoch: int, seed: int, start_batch: int = 0
) -> Generator[tuple[Tensor, Tensor], None, None]:
    """The batches (float32 (N, C, H, W) in [0, 1], int64 (N,)) of an epoch, from number `start_batch` on.

    images, labels: as `training_images` gives them; streamed images are decoded ahead, to the same bits. The order is a
    function of (seed, epoch) alone and the same on every device, so that a run resumes at any step. The last, partial
    batch is dropped unless it is the only one.
    """
    order = permutation(len(labels), seed, epoch)
    numbers = range(start_batch, n_batches(len(labels), batch_size))
    if isinstance(images, StreamedImages):
        parts = [order[number * batch_size : (number + 1) * batch_size] for number in numbers]
        with closing(decoded(images, parts)) as arrays:
            for part, array in zip(parts, arrays, strict=True):
                chosen = torch.from_numpy(part).to(labels.device)
                yield to_floats(torch.from_numpy(array).to(labels.device)), labels[chosen]
        return
    shuffled = torch.from_numpy(order).to(labels.device)
    for number in numbers:
        chosen = shuffled[number * batch_size : (number + 1) * batch_size]
        yield to_floats(images[chosen]), labels[chosen]


def to_floats(images: Tensor) -> Tensor:
    """uint8 0 … 255 → float32 in [0, 1], equal to `Images.floats` to the bit on every device."""
    # Divided by a tensor: by a Python number, CUDA multiplies with the rounded reciprocal.
    return images.to(torch.float32) / torch.full((), 255.0, device=images.device)


def augment(batch: Tensor, augmentation: Augmentation, generator: torch.Generator) -> Tensor:
    """`batch` (N, C, H, W), each image shifted with zeros moving in and mirrored at random.

    Random numbers come from `generator`, on its device: with one on the CPU they are the same for every device.
    """
    shift, n = augmentation.shift, len(batch)
    if not shift and not augmentation.flip:
        return batch
    _, channels, height, width = batch.shape

    def draw(bound: int) -> Tensor:
        numbers = torch.randint(bound, (n, 1), generator=generator, device=generator.device)
        return numbers.to(batch.device)

    rows = torch.arange(height, device=batch.device).expand(n, height)
    columns = torch.arange(width, device=batch.device).expand(n, width)
    if augmentation.flip:
        columns = torch.where(draw(2) == 1, width - 1 - columns, columns)
    if shift:
        rows, columns = rows + draw(2 * shift + 1), columns + draw(2 * shift + 1)
    padded = torch.nn.functional.pad(batch, (shift,) * 4)
    pixels = (rows[:, :, None] * (width + 2 * shift) + columns[:, None, :]).reshape(n, 1, height * width)
    return padded.flatten(2).gather(2, pixels.expand(-1, channels, -1)).reshape(batch.shape)
