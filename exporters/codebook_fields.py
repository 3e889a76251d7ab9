"""A codebook as bit fields: numbers as ordered integers, and differences of neighbours. FORMAT.md, section 3.2."""

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


def narrowed(values: NDArray[np.float32]) -> NDArray[np.float16] | NDArray[np.float32]:
    """The same values, as float16 where that is exact."""
    return values.astype(np.float16) if fits_half(values) else values


def put_codebook(fields: FieldWriter, codebook: NDArray[np.float32]) -> None:
    """Write a codebook (K,): finite, strictly increasing, without zero."""
    half = fits_half(codebook)
    magnitudes = np.abs(codebook).astype(np.float16 if half else np.float32).view(np.uint16 if half else np.uint32)
    negative = int(np.count_nonzero(codebook < 0))
    sides = [magnitudes[:negative][::-1].astype(np.int64), magnitudes[negative:].astype(np.int64)]
    firsts = [int(side[0]) for side in sides if len(side)]
    steps = np.concatenate([_zigzag(np.diff(firsts)), *(side[1:] - side[:-1] - 1 for side in sides)])
    fields.put(not half, 1)
    fields.put(negative, len(codebook).bit_length())
    fields.put(firsts[0], 15 if half else 31)
    if len(steps):  # as Rice codes, with the best parameter
        low = min(range(32), key=lambda r: int((steps >> r).sum()) + r * len(steps))
        fields.put(low, 5)
        fields.put_unary(steps >> low)
        fields.put_all(steps & (1 << low) - 1, low)


def _zigzag(numbers: NDArray[np.int64]) -> NDArray[np.int64]:
    """0, -1, 1, -2, … → 0, 1, 2, 3, …"""
    turned: NDArray[np.int64] = np.where(numbers < 0, -2 * numbers - 1, 2 * numbers)
    return turned


def get_codebook(fields: FieldReader, size: int, name: str) -> NDArray[np.float32]:
    """The codebook (size,) that `put_codebook` was given; `name` is the factor's.

    Raises:
        InputError: it is cut off, or a value is zero or not finite.
    """
    half = not fields.get(1)
    negative = fields.get(size.bit_length())
    if negative > size:
        what = f"factor {brief(name)}: too many negative values in its codebook"
        raise InputError(what, expected=f"at most {size}", got=negative)
    first = fields.get(15 if half else 31)
    low = fields.get(5) if size > 1 else 0
    high = fields.get_unary(size - 1)
    infinity = 0x7C00 if half else 0x7F800000
    if high.max(initial=0) > 2 * infinity >> low:
        raise InputError(f"factor {brief(name)}: a value of its codebook is not finite")
    steps = (high << low) + fields.get_all(size - 1, low)
    if 0 < negative < size:
        turn, steps = int(steps[0]), steps[1:]
        other = first + (-(turn + 1) // 2 if turn % 2 else turn // 2)
        sides = [(first, steps[: negative - 1]), (other, steps[negative - 1 :])]
    else:
        sides = [(first, steps)]
    magnitudes = [start + np.concatenate([[0], np.cumsum(side + 1)]) for start, side in sides]
    if min(int(side[0]) for side in magnitudes) < 1 or max(int(side[-1]) for side in magnitudes) >= infinity:
        raise InputError(f"factor {brief(name)}: a value of its codebook is zero or not finite")
    if negative:
        magnitudes[0] = magnitudes[0][::-1]
    bits = np.concatenate(magnitudes).astype(np.uint16 if half else np.uint32)
    values: NDArray[np.float32] = bits.view(np.float16 if half else np.float32).astype(np.float32)
    values[:negative] *= -1
    if not half and fits_half(values):
        raise InputError(f"factor {brief(name)}: its codebook is stored in 32 bits where 16 are enough")
    return values
