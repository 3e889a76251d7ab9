"""CIFAR-10 and CIFAR-100 as their makers publish them, as pickles or binary (https://www.cs.toronto.edu/~kriz/cifar.html)."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from atmc_tool.data.arrays import checked_images, checked_parts
from atmc_tool.data.cifar_pickle import read_batch
from atmc_tool.data.data_set import Augmentation, Parts
from atmc_tool.data.download import fetch
from atmc_tool.data.file_tree import FileTree, flat_tree
from atmc_tool.data.images import Images
from atmc_tool.errors import InputError

SHAPE = (3, 32, 32)
PIXELS = 3 * 32 * 32
MAX_FILE_BYTES = 2**28  # the largest real one has 155 MB

_CIFAR100 = """
apple aquarium_fish baby bear beaver bed bee beetle bicycle bottle bowl boy bridge bus butterfly camel can castle
caterpillar cattle chair chimpanzee clock cloud cockroach couch crab crocodile cup dinosaur dolphin elephant flatfish
forest fox girl hamster house kangaroo keyboard lamp lawn_mower leopard lion lizard lobster man maple_tree motorcycle
mountain mouse mushroom oak_tree orange orchid otter palm_tree pear pickup_truck pine_tree plain plate poppy porcupine
possum rabbit raccoon ray road rocket rose sea seal shark shrew skunk skyscraper snail snake spider squirrel streetcar
sunflower sweet_pepper table tank telephone television tiger tractor train trout tulip turtle wardrobe whale
willow_tree wolf woman worm
"""
CLASS_NAMES = {
    "cifar10": ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"),
    "cifar100": tuple(_CIFAR100.split()),
}


@dataclass(frozen=True)
class Layout:
    """A form in which a set is published.

    name:            `cifar10` or `cifar100`
    folder, archive: what it is called there
    train, test:     its files
    labels:          bytes before the pixels of an image, the last of which is the label; 0: the files are pickles
    """

    name: str
    folder: str
    archive: str
    train: tuple[str, ...]
    test: str
    labels: int


_BATCHES = tuple(f"data_batch_{number}" for number in range(1, 6))
_BINARY_BATCHES = tuple(f"{name}.bin" for name in _BATCHES)
LAYOUTS = (
    Layout("cifar10", "cifar-10-batches-py", "cifar-10-python.tar.gz", _BATCHES, "test_batch", 0),
    Layout("cifar10", "cifar-10-batches-bin", "cifar-10-binary.tar.gz", _BINARY_BATCHES, "test_batch.bin", 1),
    Layout("cifar100", "cifar-100-python", "cifar-100-python.tar.gz", ("train",), "test", 0),
    Layout("cifar100", "cifar-100-binary", "cifar-100-binary.tar.gz", ("train.bin",), "test.bin", 2),
)


def read_cifar_set(name: str, data_dir: Path | None) -> Parts:
    """`cifar10` or `cifar100` as folder or archive in `data_dir`/name or in `data_dir` itself, else downloaded.

    Raises:
        InputError: a file is missing or damaged, or nothing is there and the network isn't either.
    """
    layouts = [layout for layout in LAYOUTS if layout.name == name]
    folders = [] if data_dir is None else [data_dir / name, data_dir]
    places = [
        place
        for folder in folders
        for layout in layouts
        for place in (folder, folder / layout.folder, folder / layout.archive)
    ]
    for place in filter(Path.exists, places):
        tree = flat_tree(place)
        layout = find_layout(tree)
        if layout is not None and layout.name == name:
            return read_cifar(tree, layout)
        if not place.is_dir():
            raise InputError(f"{place} holds no {name}", expected=", ".join((*layouts[0].train, layouts[0].test)))
    archive = layouts[0].archive
    return read_cifar(flat_tree(fetch(name, [archive], wanted=data_dir) / archive), layouts[0])


def find_layout(tree: FileTree) -> Layout | None:
    """The layout whose first training file or test file is there; of CIFAR-100, whose names say little, both."""
    for layout in LAYOUTS:
        found = [name in tree.sizes for name in (layout.train[0], layout.test)]
        if all(found) if layout.name == "cifar100" else any(found):
            return layout
    return None


def read_cifar(tree: FileTree, layout: Layout) -> Parts:
    """Parts of the files of a layout, in their order, uint8 (n, 3, 32, 32).

    Raises:
        InputError: a file is missing, damaged or too large, or a label is none of the classes.
    """
    names = (*layout.train, layout.test)
    if missing := [name for name in names if name not in tree.sizes]:
        raise InputError(f"{tree.where} is incomplete", expected=", ".join(missing), got="no such file")
    for name in names:
        if tree.sizes[name] > MAX_FILE_BYTES:
            got = f"{tree.sizes[name]} bytes"
            raise InputError(f"{tree.where}: {name} is too large", expected=f"at most {MAX_FILE_BYTES} bytes", got=got)
    batches = list(_read_all(tree, layout, layout.train))
    train = Images(*(np.concatenate(arrays) for arrays in zip(*((b.images, b.labels) for b in batches), strict=True)))
    (test,) = _read_all(tree, layout, (layout.test,))
    augmentation = Augmentation(shift=4, flip=True)
    return checked_parts(Parts(train, test, CLASS_NAMES[layout.name], augmentation), str(tree.where))


def _read_all(tree: FileTree, layout: Layout, names: tuple[str, ...]) -> Iterator[Images]:
    for name in names:
        where = f"{tree.where}: {name}"
        try:
            content = tree.read(name)
        except OSError as error:
            raise InputError(f"{where} is not readable", got=f"{type(error).__name__}: {error}") from error
        if layout.labels:
            yield _read_records(content, layout.labels, where)
        else:
            key = "labels" if layout.name == "cifar10" else "fine_labels"
            pixels, labels = read_batch(content, key, PIXELS, where)
            yield checked_images(pixels.reshape(-1, *SHAPE), labels, where)


def _read_records(content: bytes, n_labels: int, where: str) -> Images:
    """Records of `n_labels` bytes of labels and those of the pixels."""
    size = n_labels + PIXELS
    if len(content) % size or not content:
        expected = f"a multiple of {size} bytes"
        raise InputError(f"{where} is truncated or no CIFAR file", expected=expected, got=len(content))
    records = np.frombuffer(content, np.uint8).reshape(-1, size)
    return checked_images(records[:, n_labels:].reshape(-1, *SHAPE), records[:, n_labels - 1], where)
