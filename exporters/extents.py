"""How many rows, columns and kernels of a factor are looked at, and that as bit fields. FORMAT.md, section 3.2."""

import math
from typing import NamedTuple

import numpy as np

from atmc_tool.errors import InputError
from exporters.bit_fields import FieldReader, FieldWriter
from exporters.kernels import Kernels, Shape

SPARSEST = 1024
"""A factor may have so many rows, columns and kernels for each entry: else a small file could ask for any work."""


class Extent(NamedTuple):
    """How many rows and columns of a factor its kernels are looked for in, and how many kernels hold an entry."""

    rows: int
    columns: int
    kernels: int

    def work(self, shape: Shape) -> int:
        """About how many bits code a factor with it, beside those of its entries."""
        return shape.rows + shape.columns + self.rows * self.columns


def extent(truth: Kernels, shape: Shape, kept: int) -> Extent:
    """The cheapest for the kernels `truth`: rows and columns without entries are left out first where that pays."""
    rows, columns = (len(np.unique(line)) for line in np.divmod(truth.at, shape.columns))
    least = Extent(rows, columns, len(truth.at))
    choices = [
        least._replace(rows=r, columns=c) for r in sorted({rows, shape.rows}) for c in sorted({columns, shape.columns})
    ]
    allowed = [choice for choice in choices if choice.work(shape) <= SPARSEST * kept]
    return min(allowed or [least], key=lambda choice: _cost(choice, shape))


def _cost(held: Extent, shape: Shape) -> float:
    """About how many bits say which rows, columns and kernels hold an entry."""
    lines = [(length, chosen) for length, chosen in ((shape.rows, held.rows), (shape.columns, held.columns))]
    fields = sum(chosen.bit_length() for length, chosen in lines if chosen < length)
    return fields + sum(_entropy(*line) for line in [*lines, (held.rows * held.columns, held.kernels)])


def _entropy(n: int, k: int) -> float:
    """Bits that say which k of n."""
    return 0 if k in (0, n) else -k * math.log2(k / n) - (n - k) * math.log2(1 - k / n)


def is_extent(held: Extent, truth: Kernels, shape: Shape) -> bool:
    """Whether the kernels `truth` have it: an entry in every row and column, but where all of them are looked at."""
    lines = zip((shape.rows, shape.columns), held, np.divmod(truth.at, shape.columns), strict=False)
    whole = all(chosen == length or len(np.unique(line)) == chosen for length, chosen, line in lines)
    return whole and len(truth.at) == held.kernels


def put_extent(fields: FieldWriter, held: Extent, shape: Shape, kept: int) -> None:
    """Each number less the least that it can be, in as many bits as the largest that it can be needs."""
    for length, chosen in ((shape.rows, held.rows), (shape.columns, held.columns)):
        if length > 1:
            fields.put(chosen < length, 1)
        if chosen < length:
            fields.put(chosen - 1, (min(length - 1, kept) - 1).bit_length())
    least, most = _kernel_range(shape, kept, held.rows, held.columns)
    fields.put(held.kernels - least, (most - least).bit_length())


def get_extent(fields: FieldReader, shape: Shape, kept: int, name: str) -> Extent:
    """The extent of a factor: one that its entries can have.

    Raises:
        InputError: they can't, or it would cost too much work.
    """
    lines = []
    for length in (shape.rows, shape.columns):
        fewer = length > 1 and fields.get(1)
        lines.append(1 + fields.get((min(length - 1, kept) - 1).bit_length()) if fewer else length)
        if fewer and lines[-1] >= length:
            raise InputError(f"factor {name} can't have entries in {lines[-1]} and in fewer than {length} lines")
    rows, columns = lines
    least, most = _kernel_range(shape, kept, rows, columns)
    held = Extent(rows, columns, least + fields.get(max(0, most - least).bit_length()))
    if held.kernels > most:
        what = f"factor {name} can't have {kept} entries in {held.kernels} kernels"
        raise InputError(f"{what} of {rows} rows and {columns} columns")
    if (work := held.work(shape)) > SPARSEST * kept:
        what = f"factor {name} has too few entries to be coded by kernels"
        raise InputError(what, expected=f"at most {SPARSEST * kept} rows, columns and kernels", got=work)
    return held


def _kernel_range(shape: Shape, kept: int, rows: int, columns: int) -> tuple[int, int]:
    """The least and the most kernels that `kept` entries can lie in; there is one in each row that is chosen."""
    chosen = [line for line, length in ((rows, shape.rows), (columns, shape.columns)) if line < length]
    return max(*chosen, 1, -(-kept // shape.area)), min(rows * columns, kept)
