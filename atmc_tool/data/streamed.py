"""Labelled images that stay in their files and are decoded, by threads, when they are needed."""

import hashlib
import io
import os
import warnings
from collections import deque
from collections.abc import Callable, Generator, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from atmc_tool.data.file_tree import FileTree
from atmc_tool.data.images import Images
from atmc_tool.data.order import Indices
from atmc_tool.errors import AtmcError, InputError

if TYPE_CHECKING:
    from PIL.Image import Image as PilImage

Progress = Callable[[int, int], None]
"""progress(done, total), in images."""

FORMATS = ("PNG", "JPEG", "BMP", "GIF", "WEBP", "TIFF", "PPM")
THREADS = min(16, os.cpu_count() or 1)
PIECE = 16  # images that a thread decodes at once
AHEAD = 2  # batches that are decoded, or about to be, while one is in use
READ_AT_ONCE = 256
CENTRE = 224 / 256


@dataclass(frozen=True, eq=False)
class StreamedImages:
    """Images as files of a tree, with the interface of `Images`; only what `read` or `decoded` gives is in memory.

    names:       object (n,), paths inside the tree
    labels:      int64 (n,)
    image_shape: (C, H, W) of every image
    size:        where given, the square in the middle of each image, 7/8 of its shorter side wide, is made RGB and
                 size × size, as ImageNet is usually evaluated (256 and 224); else each must have `image_shape` as it is
    """

    tree: FileTree
    names: NDArray[np.object_]
    labels: NDArray[np.int64]
    image_shape: tuple[int, int, int]
    size: int | None

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, indices: Indices) -> "StreamedImages":
        """The images at `indices`, in that order."""
        return replace(self, names=self.names[indices], labels=self.labels[indices])

    def read(self, progress: Progress | None = None) -> Images:
        """All of them in memory.

        Raises:
            InputError: an image is damaged, or of another shape.
        """
        n = len(self)
        images = np.empty((n, *self.image_shape), np.uint8)
        parts = [np.arange(start, min(start + READ_AT_ONCE, n)) for start in range(0, n, READ_AT_ONCE)]
        with closing(decoded(self, parts)) as batches:
            for part, batch in zip(parts, batches, strict=True):
                images[part] = batch
                if progress is not None:
                    progress(int(part[-1]) + 1, n)
        return Images(images, self.labels)

    def digest(self) -> bytes:
        """SHA-256 over names, sizes in bytes and labels of the files, not over what is in them, and the shape."""
        digest = hashlib.sha256(f"{len(self)} {self.image_shape} {self.size}\n".encode())
        for name, label in zip(self.names, self.labels.tolist(), strict=True):
            digest.update(f"{label} {self.tree.sizes[name]} {name}\n".encode())
        return digest.digest()


def decoded(images: StreamedImages, batches: Iterable[Indices]) -> Generator[NDArray[np.uint8], None, None]:
    """The images at the indices of each batch, uint8 (len, C, H, W), in order; the next ones are decoded meanwhile.

    Raises:
        InputError: an image is damaged, or of another shape.
    """
    waiting: deque[list[Future[NDArray[np.uint8]]]] = deque()
    pool = ThreadPoolExecutor(THREADS, "decode")  # PIL releases the GIL
    try:
        for batch in batches:
            pieces = (batch[start : start + PIECE] for start in range(0, len(batch), PIECE))
            waiting.append([pool.submit(_decode_piece, images, piece) for piece in pieces])
            if len(waiting) > AHEAD:
                yield np.concatenate([piece.result() for piece in waiting.popleft()])
        while waiting:
            yield np.concatenate([piece.result() for piece in waiting.popleft()])
    finally:
        pool.shutdown(cancel_futures=True)


def _decode_piece(images: StreamedImages, piece: Indices) -> NDArray[np.uint8]:
    names = images.names[piece]
    return np.stack([decode(images.tree, name, images.image_shape, images.size) for name in names])


def stream(tree: FileTree, names: Sequence[str], labels: NDArray[np.int64], size: int | None = None) -> StreamedImages:
    """The files `names` of a tree as images, all in the shape of the first one, or as `size` says.

    Raises:
        InputError: the first one is damaged.
    """
    from PIL import Image

    # For good, because it holds in all threads: a header may not claim more pixels than any photo has.
    warnings.simplefilter("error", Image.DecompressionBombWarning)
    shape = decode(tree, names[0], None, size).shape
    return StreamedImages(tree, np.array(names, np.object_), labels, (shape[0], shape[1], shape[2]), size)


def decode(tree: FileTree, name: str, shape: tuple[int, ...] | None, size: int | None) -> NDArray[np.uint8]:
    """One image (C, H, W); its kind and size are checked before its pixels are decoded.

    Raises:
        InputError: damaged, or not of `shape` where that is given and `size` is not.
    """
    from PIL import Image, UnidentifiedImageError

    kinds = ("1", "L", "P", "RGB", *(("CMYK",) if size else ()))
    try:
        with Image.open(io.BytesIO(tree.read(name)), formats=FORMATS) as image:
            if image.mode not in kinds:
                raise InputError(
                    f"{tree.where}: {name} has an unknown kind of pixels", expected="8-bit gray or RGB", got=image.mode
                )
            mode = "L" if image.mode in ("1", "L") and not size else "RGB"
            found = (len(mode), image.height, image.width)
            if shape not in (None, found) and not size:
                raise InputError(
                    f"{tree.where}: images differ in shape",
                    expected=f"{shape} (C, H, W)",
                    got=f"{found} in {name}",
                    hint="make them all of one size: --set data.image_size=224",
                )
            pixels = np.asarray(_fitted(image.convert(mode), size) if size else image.convert(mode))
    except AtmcError:
        raise
    except UnidentifiedImageError as error:
        raise InputError(f"{tree.where}: {name} is damaged or no image", expected=", ".join(FORMATS)) from error
    except Exception as error:  # zip and image decoders fail in many ways on damaged content
        raise InputError(f"{tree.where}: {name} is damaged", got=f"{type(error).__name__}: {error}") from error
    return np.ascontiguousarray(pixels[None] if mode == "L" else pixels.transpose(2, 0, 1))


def _fitted(image: "PilImage", size: int) -> "PilImage":
    """The square in the middle, CENTRE of the shorter side wide, scaled to size × size by antialiased bilinear."""
    from PIL import Image

    width, height = image.size
    side = CENTRE * min(width, height)
    left, top = (width - side) / 2, (height - side) / 2
    box = (left, top, left + side, top + side)
    return image.resize((size, size), Image.Resampling.BILINEAR, box)
