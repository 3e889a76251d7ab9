"""A codebook as bit fields: its numbers as ordered integers, and the differences of neighbours. FORMAT.md, section 3.1."""

import numpy as np
from numpy.typing import NDArray

from atmc_tool.errors import InputError
from exporters.bit_fields import FieldReader, FieldWriter
from exporters.strict_json import brief


def fits_half(values: NDArray[np.float32]) -> bool:
    """Whether every value is one of float16, bit by bit."""
    with np.errstate(over="ignore"):
        halves = values.astype(np.float16)
    return halves.astype(np.float32).tobytes() == values.tobytes()


def put_codebook(fields: FieldWriter, codebook: NDArray[np.float32]) -> None:
    """Write a codebook (K,): finite, strictly increasing, without zero."""
    half = fits_half(codebook)
    width = 15 if half else 31
    magnitudes = np.abs(codebook).astype(np.float16 if half else np.float32).view(np.uint16 if half else np.uint32)
    negative = int(np.count_nonzero(codebook < 0))
    fields.put(not half, 1)
    fields.put(negative, len(codebook).bit_length())
    for side in (magnitudes[:negative][::-1], magnitudes[negative:]):
        if len(side):
            fields.put(int(side[0]), width)
            _put_steps(fields, np.diff(side.astype(np.int64)) - 1)


def _put_steps(fields: FieldWriter, steps: NDArray[np.int64]) -> None:
    """Steps (n,) as Rice codes: ⌊step / 2^r⌋ of each in unary, then the low r bits of each; r is the best."""
    if len(steps):
        low = min(range(32), key=lambda r: int((steps >> r).sum()) + r * len(steps))
        fields.put(low, 5)
        fields.put_unary(steps >> low)
        fields.put_all(steps & (1 << low) - 1, low)


def get_codebook(fields: FieldReader, size: int, name: str) -> NDArray[np.float32]:
    """The codebook (size,) that `put_codebook` was given; `name` is the factor's.

    Raises:
        InputError: it is cut off, or a value is not a positive or negative finite number.
    """
    half = not fields.get(1)
    negative = fields.get(size.bit_length())
    if negative > size:
        raise InputError(
            f"factor {brief(name)}: too many negative values in its codebook", expected=f"at most {size}", got=negative
        )
    least, most = (_get_magnitudes(fields, count, 15 if half else 31) for count in (negative, size - negative))
    ordered = np.concatenate([-least[::-1], most])
    infinity = 0x7C00 if half else 0x7F800000
    if len(ordered) and (np.abs(ordered).max() >= infinity or np.abs(ordered).min() < 1):
        raise InputError(f"factor {brief(name)}: a value of its codebook is zero or not finite")
    bits = np.abs(ordered).astype(np.uint16 if half else np.uint32)
    values = bits.view(np.float16 if half else np.float32).astype(np.float32)
    values[:negative] *= -1
    if not half and fits_half(values):
        raise InputError(f"factor {brief(name)}: its codebook is stored in 32 bits where 16 are enough")
    return values


def _get_magnitudes(fields: FieldReader, count: int, width: int) -> NDArray[np.int64]:
    """`count` magnitudes, strictly increasing."""
    if not count:
        return np.zeros(0, np.int64)
    first = fields.get_all(1, width)
    if count == 1:
        return first
    low = fields.get(5)
    steps = fields.get_unary(count - 1)
    if steps.max() >> width - min(low, width):
        return np.full(count, 1 << width)  # beyond every number
    steps = (steps << low) + fields.get_all(count - 1, low)
    return np.concatenate([first, first + np.cumsum(steps + 1)])
