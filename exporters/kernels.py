"""The entries of a sparse factor by kernels: which kernels hold any, and where in them. FORMAT.md, section 3.2."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from exporters.odds import Ints
from exporters.rans import Bits

LARGEST = 64
"""Positions of the largest kernel; the columns of a factor with larger ones are taken one by one."""


class Shape(NamedTuple):
    """rows × columns kernels of height × width positions each."""

    rows: int
    columns: int
    height: int
    width: int

    @property
    def area(self) -> int:
        """Positions of a kernel."""
        return self.height * self.width


def kernel_of(weight: Sequence[int], factor: str) -> tuple[int, int]:
    """(height, width) of the kernels in the columns of a `factor` (U, V, C) of a weight of this shape."""
    area = math.prod(weight[2:])
    if len(weight) < 3 or area > LARGEST or (factor == "U" and weight[0] <= math.prod(weight[1:])):
        return 1, 1
    return area // weight[-1], weight[-1]


@dataclass
class Kernels:
    """The kernels that hold an entry, in row-major order.

    at:     int64 (N,), row · columns + column of each
    filled: bool (area, N), whether there is an entry at this position of each
    """

    at: Ints
    filled: Bits

    @classmethod
    def of(cls, positions: Ints, shape: Shape) -> "Kernels":
        """Those of strictly increasing row-major positions; the elements of a kernel lie side by side."""
        kernel, place = np.divmod(positions, shape.area)
        at, which = np.unique(kernel, return_inverse=True)
        filled = np.zeros((shape.area, len(at)), np.bool_)
        filled[place, which] = True
        return cls(at, filled)

    def entries(self) -> tuple[Ints, Ints]:
        """(kernel, position in it) of every entry, in the order of the row-major positions."""
        kernel, place = np.divmod(np.flatnonzero(self.filled.T), len(self.filled))
        return kernel, place
