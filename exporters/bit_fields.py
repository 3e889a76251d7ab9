"""Unsigned integers of given widths, one after the other, the first in the lowest bits. FORMAT.md, section 3.2."""

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from atmc_tool.errors import AtmcError, InputError


@dataclass
class FieldWriter:
    """Fields written so far, as bits."""

    parts: list[NDArray[np.uint8]] = field(default_factory=list)

    def put(self, value: int, width: int) -> None:
        """`value` below 2^width."""
        self.put_all(np.array([value]), width)

    def put_all(self, values: NDArray[np.int64], width: int) -> None:
        """Values (n,), each below 2^width.

        Raises:
            AtmcError: one is not, which would be read as another.
        """
        if len(values) and (values.min() < 0 or int(values.max()) >> width):
            got = f"{values.min()} to {values.max()}"
            raise AtmcError("a field of the coded stream is too small", expected=f"0 to {(1 << width) - 1}", got=got)
        self.parts.append((values[:, None] >> np.arange(width) & 1).astype(np.uint8).reshape(-1))

    def put_unary(self, values: NDArray[np.int64]) -> None:
        """Values (n,), each as so many zeros and a one."""
        ends = np.cumsum(values + 1)
        bits = np.zeros(ends[-1] if len(ends) else 0, np.uint8)
        bits[ends - 1] = 1
        self.parts.append(bits)

    def to_bytes(self) -> bytes:
        """All bits; those after the last one are zero."""
        return np.packbits(np.concatenate([np.zeros(0, np.uint8), *self.parts]), bitorder="little").tobytes()


class FieldReader:
    """Fields of `content`, in the order in which they were written."""

    def __init__(self, content: bytes) -> None:
        self._content = content
        self.at = 0  # bits read so far

    def get(self, width: int) -> int:
        """The next field of `width` bits.

        Raises:
            InputError: the content ends before it.
        """
        end = self.at + width
        self._check(end)
        first = self.at >> 3
        number = int.from_bytes(self._content[first : (end + 7) >> 3], "little") >> (self.at & 7)
        self.at = end
        return number & (1 << width) - 1

    def get_all(self, count: int, width: int) -> NDArray[np.int64]:
        """The next `count` fields of `width` bits each.

        Raises:
            InputError: the content ends before the last one.
        """
        bits = self._bits(self.at, self.at + count * width)
        self.at += count * width
        return bits.reshape(count, width) @ (1 << np.arange(width))

    def get_unary(self, count: int) -> NDArray[np.int64]:
        """The next `count` unary fields.

        Raises:
            InputError: the content ends before the last one.
        """
        if not count:
            return np.zeros(0, np.int64)
        span = 8 * count
        while True:  # twice as far until there are enough ones
            ones = np.flatnonzero(self._bits(self.at, min(self.at + span, 8 * len(self._content))))
            if len(ones) >= count:
                break
            self._check(self.at + span)
            span *= 2
        self.at += int(ones[count - 1]) + 1
        return np.diff(ones[:count], prepend=-1) - 1

    def end(self) -> int:
        """The first byte after the last field.

        Raises:
            InputError: a bit between them is not zero.
        """
        if self.get(-self.at % 8):
            raise InputError("unused bits of the coded stream are not zero")
        return self.at >> 3

    def _bits(self, begin: int, end: int) -> NDArray[np.int64]:
        self._check(end)
        content = np.frombuffer(self._content, np.uint8)[begin >> 3 : (end + 7) >> 3]
        return np.unpackbits(content, bitorder="little")[begin & 7 :][: end - begin].astype(np.int64)

    def _check(self, end: int) -> None:
        if end > 8 * len(self._content):
            raise InputError(
                "the coded stream ends inside its fields", expected=f"{end} bits", got=8 * len(self._content)
            )
