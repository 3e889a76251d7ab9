"""Image files in `train|test/<class>/`, in a folder or in a zip archive of one."""

import io
import os
import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePosixPath

import numpy as np
from numpy.typing import NDArray

from atmc_tool.data.data_set import TEST_SEED, Augmentation, Parts, limited_indices
from atmc_tool.data.file_tree import PARTS, FileTree, open_tree
from atmc_tool.data.images import MAX_BYTES, Images
from atmc_tool.errors import AtmcError, InputError

Progress = Callable[[int, int], None]
"""progress(done, total), in images."""

FORMATS = ("PNG", "JPEG", "BMP", "GIF", "WEBP", "TIFF", "PPM")
SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm"})
MAX_FILE_BYTES = 2**28
CHUNK = 256

Listing = list[tuple[str, int]]  # (name, label), by name


def read_image_folder(path: Path, *, limit: int | None, seed: int, progress: Progress | None) -> Parts:
    """Parts of a folder or zip; the classes are the folders of `train`, sorted; gray or RGB as the files are.

    Only the images that a `limit` keeps are read.

    Raises:
        InputError: no such layout, a damaged or too large image, images of different shapes or modes.
    """
    with open_tree(path) as tree:
        by_part = {part: _by_class(tree, part) for part in PARTS}
        class_names = tuple(sorted(by_part["train"]))
        unknown = sorted(set(by_part["test"]) - set(class_names))
        if unknown or len(class_names) < 2:
            raise InputError(
                f"{path}: the classes don't fit",
                expected="2 or more in train, and no others in test",
                got=f"{len(class_names)} in train" + (f", and test/{unknown[0]}" if unknown else ""),
            )
        train = _limited(_listing(by_part["train"], class_names), limit, seed)
        test = _limited(_listing(by_part["test"], class_names), limit, TEST_SEED)
        images = _decode_all(tree, [name for name, _ in train + test], progress)
    labels = np.array([label for _, label in train + test], np.int64)
    n = len(train)
    augmentation = Augmentation(shift=4, flip=True) if images.shape[1:] == (3, 32, 32) else Augmentation()
    return Parts(Images(images[:n], labels[:n]), Images(images[n:], labels[n:]), class_names, augmentation)


def _by_class(tree: FileTree, part: str) -> dict[str, list[str]]:
    """The image files of `part` by their class folder."""
    classes: dict[str, list[str]] = {}
    for name, size in tree.sizes.items():
        path = PurePosixPath(name)
        if path.parts[0] != part or path.suffix.lower() not in SUFFIXES or path.name.startswith("."):
            continue
        if len(path.parts) != 3:
            what = "an image without a label" if len(path.parts) < 3 else "an image too deep"
            raise InputError(f"{tree.where}: {what}", expected=f"{part}/<class>/<image>", got=name)
        if size > MAX_FILE_BYTES:
            raise InputError(
                f"{tree.where}: {name} is too large", expected=f"at most {MAX_FILE_BYTES} bytes", got=f"{size} bytes"
            )
        classes.setdefault(path.parts[1], []).append(name)
    if not classes:
        raise InputError(f"{tree.where} holds no images for {part}", expected=f"{part}/<class>/<image>")
    return classes


def _listing(by_class: dict[str, list[str]], class_names: Sequence[str]) -> Listing:
    return sorted((name, class_names.index(label)) for label, names in by_class.items() for name in names)


def _limited(listing: Listing, limit: int | None, seed: int) -> Listing:
    labels = np.array([label for _, label in listing], np.int64)
    return [listing[index] for index in limited_indices(labels, limit, seed)]


def _decode_all(tree: FileTree, names: Sequence[str], progress: Progress | None) -> NDArray[np.uint8]:
    """The images (n, C, H, W) of `names`, all in the shape of the first; in threads, for PIL releases the GIL."""
    from PIL import Image

    with warnings.catch_warnings():
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        shape = _decode(tree, names[0], None).shape
        if len(names) * int(np.prod(shape)) > MAX_BYTES:
            got = f"{len(names)} images of {shape}"
            raise InputError(f"{tree.where} is too large", expected=f"at most {MAX_BYTES} bytes decoded", got=got)
        images = np.empty((len(names), *shape), np.uint8)

        def decode_chunk(start: int) -> int:
            chunk = names[start : start + CHUNK]
            for index, name in enumerate(chunk, start):
                images[index] = _decode(tree, name, shape)
            return len(chunk)

        done = 0
        with ThreadPoolExecutor(max_workers=min(8, os.cpu_count() or 1)) as pool:
            for n in pool.map(decode_chunk, range(0, len(names), CHUNK)):
                done += n
                if progress is not None:
                    progress(done, len(names))
    return images


def _decode(tree: FileTree, name: str, shape: tuple[int, ...] | None) -> NDArray[np.uint8]:
    """One image (C, H, W); its size is compared with `shape` before its pixels are decoded."""
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(io.BytesIO(tree.read(name)), formats=FORMATS) as image:
            if image.mode not in ("1", "L", "P", "RGB"):
                raise InputError(
                    f"{tree.where}: {name} has an unknown kind of pixels", expected="8-bit gray or RGB", got=image.mode
                )
            mode = "L" if image.mode in ("1", "L") else "RGB"
            found = (len(mode), image.height, image.width)
            if shape not in (None, found):
                raise InputError(
                    f"{tree.where}: images differ in shape", expected=f"{shape} (C, H, W)", got=f"{found} in {name}"
                )
            pixels = np.asarray(image.convert(mode))
    except AtmcError:
        raise
    except UnidentifiedImageError as error:
        raise InputError(f"{tree.where}: {name} is damaged or no image", expected=", ".join(FORMATS)) from error
    except Exception as error:  # zip and image decoders fail in many ways on damaged content
        raise InputError(f"{tree.where}: {name} is damaged", got=f"{type(error).__name__}: {error}") from error
    return pixels[None] if mode == "L" else pixels.transpose(2, 0, 1)
