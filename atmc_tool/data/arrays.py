"""Arrays from outside become checked Images: type, range, layout, counts, classes."""

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from atmc_tool.data.data_set import Parts
from atmc_tool.data.images import Images
from atmc_tool.errors import InputError

KEYS = ("x_train", "y_train", "x_test", "y_test")
CHANNELS = (1, 2, 3, 4)


def parts_from_arrays(arrays: Mapping[str, object], where: str) -> Parts:
    """`x_train, y_train, x_test, y_test` → Parts; the classes are 0 … max of `y_train`.

    x: integers 0 … 255 of shape (n, H, W), (n, H, W, C) or (n, C, H, W), C in 1 … 4; y: integers (n,) or (n, 1).

    Raises:
        InputError: an array is missing, or one of the checks of `checked_images` and `checked_parts` fails.
    """
    missing = [key for key in KEYS if arrays.get(key) is None]
    if missing:
        what = f"{where} has no labels" if all(key.startswith("y") for key in missing) else f"{where} is incomplete"
        raise InputError(what, expected=f"arrays {', '.join(KEYS)}", got=f"no {', '.join(missing)}")
    train, test = (
        checked_images(arrays[f"x_{part}"], arrays[f"y_{part}"], f"{where} ({part})") for part in ("train", "test")
    )
    n_classes = int(train.labels.max()) + 1
    present = np.unique(train.labels)
    if len(present) < n_classes:
        absent = int(np.flatnonzero(np.diff(present, prepend=-1) > 1)[0])
        raise InputError(
            f"{where}: labels are out of range",
            expected="0 to classes − 1, each in y_train",
            got=f"labels up to {n_classes - 1} and none equal to {present[absent - 1] + 1 if absent else 0}",
            hint="count classes from 0",
        )
    return checked_parts(Parts(train, test, tuple(map(str, range(n_classes)))), where)


def checked_parts(parts: Parts, where: str) -> Parts:
    """`parts`, where training and test images fit each other and the classes.

    Raises:
        InputError: images of different shapes, a label that is not one of the classes, or fewer than two classes.
    """
    n_classes = len(parts.class_names)
    if n_classes < 2:
        raise InputError(f"{where} has too few classes", expected="at least 2", got=n_classes)
    shape, test_shape = parts.train.image_shape, parts.test.image_shape
    if shape != test_shape:
        raise InputError(
            f"{where}: training and test images differ in shape", expected=f"{shape} (C, H, W)", got=test_shape
        )
    for part, images in (("train", parts.train), ("test", parts.test)):
        outside = images.labels[(images.labels < 0) | (images.labels >= n_classes)]
        if len(outside):
            raise InputError(
                f"{where} ({part}): a label is out of range", expected=f"0 to {n_classes - 1}", got=int(outside[0])
            )
    return parts


def checked_images(images: object, labels: object, where: str) -> Images:
    """Images (n, C, H, W) and labels (n,) from any array-like.

    Raises:
        InputError: not integers 0 … 255, NaN, differing or ambiguous shapes, no images, labels that are missing, no
            integers, negative or not as many as images.
    """
    pixels = _channels_first(_checked_pixels(_as_array(images, where, "images"), where), where)
    numbers = _as_array(labels, where, "labels")
    if numbers.ndim == 2 and numbers.shape[1] == 1:
        numbers = numbers[:, 0]
    if numbers.ndim != 1 or numbers.dtype.kind not in "iu":
        hint = "class numbers, not one-hot rows" if numbers.ndim == 2 else ""
        got = f"{numbers.dtype} {numbers.shape}"
        raise InputError(f"{where}: labels are not integers", expected="integers (n,)", got=got, hint=hint)
    if len(numbers) != len(pixels):
        raise InputError(
            f"{where}: images and labels differ in number", expected=f"{len(pixels)} labels", got=len(numbers)
        )
    if len(pixels) == 0:
        raise InputError(f"{where} is empty", expected="at least 1 image", got=0)
    lowest, highest = int(numbers.min()), int(numbers.max())
    if lowest < 0 or highest >= 2**31:
        raise InputError(
            f"{where}: a label is out of range", expected="0 to classes − 1", got=lowest if lowest < 0 else highest
        )
    return Images(np.ascontiguousarray(pixels), numbers.astype(np.int64))


def _as_array(values: object, where: str, what: str) -> NDArray[np.generic]:
    if values is None:
        raise InputError(f"{where} has no {what}", expected="an array")
    try:
        array: NDArray[np.generic] = np.asarray(values)
    except Exception as error:  # any object may come from the user's code, with any way to fail
        raise InputError(
            f"{where}: {what} can't be read as one array", got=f"{type(error).__name__}: {error}"
        ) from error
    if array.dtype == np.object_:
        raise InputError(f"{where}: {what} can't be read as one array", expected="one shape", got="differing shapes")
    return array


def _checked_pixels(array: NDArray[np.generic], where: str) -> NDArray[np.uint8]:
    """`array` as uint8, where nothing is lost by it."""
    expected = "uint8 0 to 255"
    if array.dtype.kind == "f" and np.isnan(array).any():
        raise InputError(f"{where}: images hold NaN", expected=expected)
    if array.dtype.kind not in "iu":
        raise InputError(
            f"{where}: images are not integers", expected=expected, got=array.dtype, hint="convert with round(255 * x)"
        )
    if array.size and (int(array.min()) < 0 or int(array.max()) > 255):
        raise InputError(
            f"{where}: images are out of range", expected=expected, got=f"{int(array.min())} to {int(array.max())}"
        )
    return array.astype(np.uint8, copy=False)


def _channels_first(array: NDArray[np.uint8], where: str) -> NDArray[np.uint8]:
    """(n, H, W), (n, H, W, C) or (n, C, H, W) → (n, C, H, W)."""
    expected = "(n, H, W), (n, H, W, C) or (n, C, H, W) with C from 1 to 4"
    if array.ndim == 3:
        array = array[:, None]
    elif array.ndim == 4:
        first, last = array.shape[1] in CHANNELS, array.shape[3] in CHANNELS
        if first == last:
            what = f"{where}: the axis of the channels is {'ambiguous' if first else 'missing'}"
            raise InputError(what, expected=expected, got=array.shape)
        array = array if first else array.transpose(0, 3, 1, 2)
    else:
        raise InputError(f"{where}: images have the wrong number of axes", expected=expected, got=array.shape)
    if len(array) and 0 in array.shape:
        raise InputError(f"{where}: images have no pixels", expected=expected, got=array.shape)
    return array
