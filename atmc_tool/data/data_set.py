"""A data set: training, validation and test images with what is known about them."""

import hashlib
from dataclasses import dataclass, replace

import numpy as np

from atmc_tool.data.images import Images
from atmc_tool.data.order import stratified_order
from atmc_tool.data.streamed import StreamedImages
from atmc_tool.errors import InputError


@dataclass(frozen=True)
class Augmentation:
    """What training may do to an image without changing its class.

    shift: pixels up, down, left or right at most, with zeros moving in
    flip:  left-right mirroring
    """

    shift: int = 0
    flip: bool = False


@dataclass(frozen=True, eq=False)
class DataSet:
    """`test` selects nothing: it measures. `validation` was split off the training images by seed.

    name:   the spec that `load_data` found it by
    digest: SHA-256 over the shapes and values of all arrays as the source gave them, before the validation part
            was split off, so that it names the data whatever the seed; of streamed images over the list of files
    """

    name: str
    train: Images | StreamedImages
    validation: Images | StreamedImages
    test: Images | StreamedImages
    n_classes: int
    class_names: tuple[str, ...]
    augmentation: Augmentation
    digest: str

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(channels, height, width)."""
        return self.train.image_shape


@dataclass(frozen=True, eq=False)
class Parts:
    """What a source gives: training and test images, checked, and no validation part yet."""

    train: Images | StreamedImages
    test: Images | StreamedImages
    class_names: tuple[str, ...]
    augmentation: Augmentation = Augmentation()

    def limited(self, limit: int | None, seed: int) -> "Parts":
        """At most `limit` training and `limit` test images, chosen by `limited_indices`."""
        if limit is None:
            return self
        return replace(
            self,
            train=self.train.take(limited_indices(self.train.labels, limit, seed)),
            test=self.test.take(limited_indices(self.test.labels, limit, TEST_SEED)),
        )


TEST_SEED = 0
"""Which test images a limit keeps doesn't follow the seed of the run: runs are compared on the same images."""


def limited_indices(labels: np.typing.NDArray[np.int64], limit: int | None, seed: int) -> np.typing.NDArray[np.int64]:
    """Ascending indices of the first `limit` images of a class-balanced permutation; all of them where None."""
    return np.sort(stratified_order(labels, seed)[:limit])


def digest_of(*parts: Images | StreamedImages) -> str:
    """SHA-256 over type, shape and values of all arrays; of streamed images over the list of files."""
    digest = hashlib.sha256()
    for part in parts:
        if isinstance(part, StreamedImages):
            digest.update(part.digest())
            continue
        for array in (part.images, part.labels):
            digest.update(f"{array.dtype.str}{array.shape}".encode())
            digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()


def split_validation(name: str, parts: Parts, fraction: float, seed: int) -> DataSet:
    """Split `fraction` of the training images off by `seed`, each class in proportion, both parts in source order.

    Raises:
        InputError: fewer than two training images.
    """
    n = len(parts.train)
    if n < 2:
        raise InputError(
            f"{name} can't be split into training and validation", expected="at least 2 training images", got=n
        )
    n_validation = min(max(round(fraction * n), 1), n - 1)
    order = stratified_order(parts.train.labels, seed)
    return DataSet(
        name=name,
        train=parts.train.take(np.sort(order[n_validation:])),
        validation=parts.train.take(np.sort(order[:n_validation])),
        test=parts.test,
        n_classes=len(parts.class_names),
        class_names=parts.class_names,
        augmentation=parts.augmentation,
        digest=digest_of(parts.train, parts.test),
    )
