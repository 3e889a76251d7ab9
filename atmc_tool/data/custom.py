"""A data set made by the user's code."""

from collections.abc import Mapping

import numpy as np

from atmc_tool.data.arrays import KEYS, checked_parts, parts_from_arrays
from atmc_tool.data.data_set import DataSet, Parts
from atmc_tool.data.images import Images
from atmc_tool.errors import AtmcError, InputError
from atmc_tool.plugins import load_callable


def read_custom(spec: str) -> Parts | DataSet:
    """What `spec` (`pkg.mod:callable` or `file.py:callable`), called without arguments, returns, checked.

    It returns a DataSet, whose validation part then stands, or a mapping with x_train, y_train, x_test and y_test.

    Raises:
        UsageError, InputError: as `load_callable`.
        InputError: the callable raised, or what it returned is neither or fails a check.
    """
    function = load_callable(spec)
    try:
        result = function()
        arrays = dict(result) if isinstance(result, Mapping) else None
    except AtmcError:
        raise
    except Exception as error:  # user's code, any error
        raise InputError(f"{spec} gave no data set", got=f"{type(error).__name__}: {error}") from error
    if isinstance(result, DataSet):
        return _checked(result, spec)
    if arrays is None:
        expected = f"a DataSet or a mapping with {', '.join(KEYS)}"
        raise InputError(f"{spec} gave no data set", expected=expected, got=type(result).__name__)
    return parts_from_arrays(arrays, spec)


def _checked(data: DataSet, spec: str) -> DataSet:
    if len(data.class_names) != data.n_classes:
        raise InputError(f"{spec}: class_names don't fit n_classes", expected=data.n_classes, got=len(data.class_names))
    for name, part in (("train", data.train), ("validation", data.validation), ("test", data.test)):
        if not isinstance(part, Images) or not all(isinstance(a, np.ndarray) for a in (part.images, part.labels)):
            raise InputError(
                f"{spec} ({name}) holds no arrays", expected="Images of NumPy arrays", got=type(part).__name__
            )
        if part.images.ndim != 4 or part.images.size == 0 or part.images.dtype != np.uint8:
            got = f"{part.images.dtype} {part.images.shape}"
            raise InputError(f"{spec} ({name}) holds no images", expected="uint8 (n, C, H, W), n ≥ 1", got=got)
        if part.labels.dtype != np.int64 or part.labels.shape != part.images.shape[:1]:
            got = f"{part.labels.dtype} {part.labels.shape}"
            raise InputError(f"{spec} ({name}): labels don't fit", expected=f"int64 ({len(part.images)},)", got=got)
        checked_parts(Parts(data.train, part, data.class_names), spec)
    return data
