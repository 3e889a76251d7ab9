"""A NumPy archive with `x_train, y_train, x_test, y_test`."""

import math
import zipfile
import zlib
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from atmc_tool.data.arrays import KEYS, parts_from_arrays
from atmc_tool.data.data_set import Parts
from atmc_tool.data.images import MAX_BYTES
from atmc_tool.errors import InputError


def read_npz(path: Path) -> Parts:
    """The four arrays of `path`; pickled objects are refused.

    Raises:
        InputError: no such archive, damaged, an array that claims more than is there, or a check of `arrays` fails.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            entries = {entry.filename.removesuffix(".npy"): entry for entry in archive.infolist()}
            arrays = {key: _read_array(archive, entries[key], str(path)) for key in KEYS if key in entries}
    except (OSError, EOFError, ValueError, RuntimeError, zipfile.BadZipFile, zlib.error) as error:
        raise InputError(f"{path} is damaged or no .npz", got=f"{type(error).__name__}: {error}") from error
    return parts_from_arrays(arrays, str(path))


def _read_array(archive: zipfile.ZipFile, entry: zipfile.ZipInfo, where: str) -> NDArray[Any]:
    with archive.open(entry) as stream:
        shape, dtype = _read_header(stream)
        claimed, there = math.prod(shape) * dtype.itemsize, entry.file_size - stream.tell()
    if dtype.hasobject:
        raise InputError(f"{where}: {entry.filename} holds pickled objects", expected="numbers of one shape")
    if claimed != there or claimed > MAX_BYTES:
        raise InputError(
            f"{where}: {entry.filename} is truncated or too large",
            expected=f"{claimed} bytes, at most {MAX_BYTES}",
            got=there,
        )
    with archive.open(entry) as stream:
        array: NDArray[Any] = npy.read_array(stream, allow_pickle=False)
    return array


def _read_header(stream: IO[bytes]) -> tuple[tuple[int, ...], np.dtype[Any]]:
    read = npy.read_array_header_1_0 if npy.read_magic(stream) == (1, 0) else npy.read_array_header_2_0
    shape, _, dtype = read(stream)
    return shape, dtype
