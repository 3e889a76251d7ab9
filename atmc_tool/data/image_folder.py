"""Image files in `train|test/<class>/`, in a folder or in a zip archive of one."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from atmc_tool.data.data_set import TEST_SEED, Augmentation, Parts, limited_indices
from atmc_tool.data.file_tree import FileTree, open_tree
from atmc_tool.data.streamed import Progress, stream
from atmc_tool.errors import InputError

SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm"})
MAX_FILE_BYTES = 2**28
STREAM_ABOVE = 2**30
"""Where the images would take more bytes than this when decoded, they are decoded batch by batch, each time anew."""

Listing = list[tuple[str, int]]  # (name, label), by name


def read_image_folder(
    path: Path, *, limit: int | None, seed: int, size: int | None, progress: Progress | None
) -> Parts:
    """Parts of a folder or zip; the classes are the folders of `train`, sorted; gray or RGB as the files are.

    Where there is no `test`, `val` is the test part: ImageNet's layout. Only the images that a `limit` keeps are read.

    size: where given, every image is made size × size and RGB: see `StreamedImages`

    Raises:
        InputError: no such layout, a damaged or too large image, images of different shapes or modes. Of streamed
            images only the first one is looked at here.
    """
    tree = open_tree(path)
    tops = {name.partition("/")[0] for name in tree.sizes}
    test_part = "val" if "val" in tops and "test" not in tops else "test"
    by_class = {part: _by_class(tree, part) for part in ("train", test_part)}
    class_names = tuple(sorted(by_class["train"]))
    unknown = sorted(set(by_class[test_part]) - set(class_names))
    if unknown or len(class_names) < 2:
        raise InputError(
            f"{path}: the classes don't fit",
            expected=f"2 or more in train, and no others in {test_part}",
            got=f"{len(class_names)} in train" + (f", and {test_part}/{unknown[0]}" if unknown else ""),
        )
    train = _limited(_listing(by_class["train"], class_names), limit, seed)
    test = _limited(_listing(by_class[test_part], class_names), limit, TEST_SEED)
    labels = np.array([label for _, label in train + test], np.int64)
    images = stream(tree, [name for name, _ in train + test], labels, size)
    first, rest = np.arange(len(train)), np.arange(len(train), len(labels))
    augmentation = Augmentation(shift=4, flip=True) if images.image_shape == (3, 32, 32) else Augmentation()
    if len(images) * int(np.prod(images.image_shape)) > STREAM_ABOVE:
        return Parts(images.take(first), images.take(rest), class_names, augmentation)
    whole = images.read(progress)
    return Parts(whole.take(first), whole.take(rest), class_names, augmentation)


def _by_class(tree: FileTree, part: str) -> dict[str, list[str]]:
    """The image files of `part` by their class folder."""
    classes: dict[str, list[str]] = {}
    for name, size in tree.sizes.items():
        parts = name.split("/")
        stem, dot, suffix = parts[-1].rpartition(".")
        if parts[0] != part or not stem or stem.startswith(".") or f"{dot}{suffix.lower()}" not in SUFFIXES:
            continue
        if len(parts) != 3:
            what = "an image without a label" if len(parts) < 3 else "an image too deep"
            raise InputError(f"{tree.where}: {what}", expected=f"{part}/<class>/<image>", got=name)
        if size > MAX_FILE_BYTES:
            raise InputError(
                f"{tree.where}: {name} is too large", expected=f"at most {MAX_FILE_BYTES} bytes", got=f"{size} bytes"
            )
        classes.setdefault(parts[1], []).append(name)
    if not classes:
        raise InputError(f"{tree.where} holds no images for {part}", expected=f"{part}/<class>/<image>")
    return classes


def _listing(by_class: dict[str, list[str]], class_names: Sequence[str]) -> Listing:
    numbers = {label: number for number, label in enumerate(class_names)}
    return sorted((name, numbers[label]) for label, names in by_class.items() for name in names)


def _limited(listing: Listing, limit: int | None, seed: int) -> Listing:
    labels = np.array([label for _, label in listing], np.int64)
    return [listing[index] for index in limited_indices(labels, limit, seed)]
