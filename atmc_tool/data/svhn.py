"""SVHN, cropped digits, as two MATLAB files (Netzer et al. 2011, http://ufldl.stanford.edu/housenumbers)."""

import math
import warnings
from pathlib import Path

import numpy as np

from atmc_tool.data.arrays import checked_images, checked_parts
from atmc_tool.data.data_set import Augmentation, Parts
from atmc_tool.data.download import fetch
from atmc_tool.data.images import MAX_BYTES, Images
from atmc_tool.errors import AtmcError, InputError
from atmc_tool.files import reading

FILES = ("train_32x32.mat", "test_32x32.mat")
MAX_FILE_BYTES = 2**30  # the real ones have 182 and 64 MB
TYPES = ("uint8", "double", "single", "int32", "int64")  # in which labels may be stored


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
    """`X` (32, 32, 3, n) and `y` (n, 1), where 10 stands for the digit 0."""
    from scipy.io import loadmat  # late: other sources don't need it

    try:
        with reading(path, MAX_FILE_BYTES), warnings.catch_warnings():
            warnings.simplefilter("error")
            _check_sizes(str(path))
            arrays = loadmat(str(path), appendmat=False, variable_names=["X", "y"])
            pixels, digits = np.asarray(arrays["X"]), np.asarray(arrays["y"])
            labels = digits.reshape(-1).astype(np.int64)
            whole = bool(np.all(labels == digits.reshape(-1)))
    except AtmcError:
        raise
    except Exception as error:  # SciPy fails in many ways on damaged content
        message = f"{type(error).__name__}: {error}"
        raise InputError(f"{path} is damaged or no MATLAB file of version 5", got=message) from error
    if not whole or labels.min() < 1 or labels.max() > 10:
        raise InputError(
            f"{path}: a label is out of range", expected="1 to 10", got=f"{digits.min()} to {digits.max()}"
        )
    return checked_images(np.ascontiguousarray(pixels.transpose(3, 2, 0, 1)), labels % 10, str(path))


def _check_sizes(where: str) -> None:
    """Compare what the headers of `X` and `y` state with what SVHN has, before either is read."""
    from scipy.io import whosmat

    found = {name: (shape, kind) for name, shape, kind in whosmat(where, appendmat=False)}
    shape, kind = found.get("X", ((), ""))
    if shape[:3] != (32, 32, 3) or len(shape) != 4 or kind != "uint8" or not 0 < math.prod(shape) <= MAX_BYTES:
        expected, got = "X, uint8 (32, 32, 3, n)", f"{kind} {shape}" if kind else "no X"
        raise InputError(f"{where} does not hold SVHN's images", expected=expected, got=got)
    labels, kind = found.get("y", ((), ""))
    if math.prod(labels) != shape[3] or kind not in TYPES:
        expected, got = f"y, ({shape[3]}, 1)", f"{kind} {labels}" if kind else "no y"
        raise InputError(f"{where} does not hold SVHN's labels", expected=expected, got=got)
