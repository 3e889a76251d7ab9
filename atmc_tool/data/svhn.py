"""SVHN, cropped digits, as two MATLAB files (Netzer et al. 2011, http://ufldl.stanford.edu/housenumbers)."""

import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from atmc_tool.data.arrays import checked_images, checked_parts
from atmc_tool.data.data_set import Augmentation, Parts
from atmc_tool.data.download import fetch
from atmc_tool.data.images import Images
from atmc_tool.data.mat import read_variables
from atmc_tool.errors import InputError
from atmc_tool.files import read_bytes

FILES = ("train_32x32.mat", "test_32x32.mat")
MAX_FILE_BYTES = 2**29  # the real ones have 182 and 64 MB


def read_svhn_set(data_dir: Path | None) -> Parts:
    """`svhn` from `data_dir`/svhn, from `data_dir` itself, or downloaded into the user's cache.

    Raises:
        InputError: a file is missing or damaged, or nothing is there and the network isn't either.
    """
    folders = [] if data_dir is None else [data_dir / "svhn", data_dir]
    found = next((folder for folder in folders if has_svhn(folder)), None)
    return read_svhn(found or fetch("svhn", FILES, wanted=data_dir))


def has_svhn(folder: Path) -> bool:
    """Whether one of the two files is there."""
    return any((folder / file).is_file() for file in FILES)


def read_svhn(folder: Path) -> Parts:
    """The two files of `folder`: images uint8 (n, 3, 32, 32), the label of a digit is the digit.

    Raises:
        InputError: a file is missing, damaged, too large, or of another form.
    """
    if missing := [file for file in FILES if not (folder / file).is_file()]:
        raise InputError(f"{folder} is incomplete", expected=", ".join(missing), got="no such file")
    train, test = (_read(folder / file) for file in FILES)
    # no mirroring: a mirrored digit is none
    return checked_parts(Parts(train, test, tuple(map(str, range(10))), Augmentation(shift=4)), str(folder))


def _read(path: Path) -> Images:
    """`X`, uint8 (32, 32, 3, n), and `y`, (n, 1), where 10 stands for the digit 0."""
    try:
        arrays = read_variables(read_bytes(path, MAX_FILE_BYTES), ("X", "y"))
    except (ValueError, struct.error, zlib.error) as error:
        message = f"{type(error).__name__}: {error}"
        raise InputError(f"{path} is damaged or no MATLAB file of version 5", got=message) from error
    pixels, digits = arrays.get("X"), arrays.get("y")
    if pixels is None or pixels.shape[:3] != (32, 32, 3) or pixels.ndim != 4 or pixels.dtype != np.uint8:
        expected = "X, uint8 (32, 32, 3, n)"
        raise InputError(f"{path} does not hold SVHN's images", expected=expected, got=_form(pixels))
    if digits is None or digits.size != pixels.shape[3]:
        expected = f"y, ({pixels.shape[3]}, 1)"
        raise InputError(f"{path} does not hold SVHN's labels", expected=expected, got=_form(digits))
    wrong = digits[~np.isin(digits, range(1, 11))]
    if wrong.size:
        raise InputError(f"{path}: a label is out of range", expected="1 to 10", got=wrong.flat[0])
    labels = digits.reshape(-1).astype(np.int64) % 10
    return checked_images(np.ascontiguousarray(pixels.transpose(3, 2, 0, 1)), labels, str(path))


def _form(array: NDArray[Any] | None) -> str:
    return "none" if array is None else f"{array.dtype} {array.shape}"
