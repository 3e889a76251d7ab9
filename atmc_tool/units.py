"""Sizes and durations as users write them."""

import re

from atmc_tool.errors import UsageError


def parse_size(text: str) -> tuple[float, bool]:
    """`"20KB"` → (20000, False), bytes; `"20x"` → (20, True), times smaller than the dense weights.

    KB and MB are powers of 1000, KiB and MiB of 1024; a bare number counts bytes.

    Raises:
        UsageError: neither.
    """
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*(x|b|kb|mb|kib|mib)?\s*", text, re.IGNORECASE)
    if not match or float(match[1]) <= 0:
        raise UsageError("size is not understood", expected="20KB, 1.5MiB or 20x", got=repr(text))
    number, unit = float(match[1]), (match[2] or "b").lower()
    if unit == "x":
        return number, True
    return number * {"b": 1, "kb": 1000, "mb": 1000**2, "kib": 1024, "mib": 1024**2}[unit], False


def parse_duration(text: str) -> float:
    """`"90s"`, `"30m"`, `"1.5h"` → seconds; a bare number counts seconds.

    Raises:
        UsageError: none of these, or not positive.
    """
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([smh]?)\s*", text, re.IGNORECASE)
    if not match or float(match[1]) <= 0:
        raise UsageError("duration is not understood", expected="90s, 30m or 1.5h", got=repr(text))
    return float(match[1]) * {"": 1, "s": 1, "m": 60, "h": 3600}[match[2].lower()]
