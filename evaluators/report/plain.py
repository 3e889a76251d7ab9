"""JSON values of unknown origin: what of them can be shown, and as what.

What should be a number, an object or a list and is none of these counts as missing.
"""

from collections.abc import Mapping
from math import isfinite
from typing import Any

LARGEST = 1e30  # a number beyond is damage and not shown


def number(value: Any) -> float | None:
    """`value` where it is a finite number of a sane size."""
    if isinstance(value, bool) or not isinstance(value, int | float) or abs(value) > LARGEST or not isfinite(value):
        return None
    return float(value)


def share(value: Any) -> float | None:
    """`value` where it is a number in [0, 1]."""
    found = number(value)
    return found if found is not None and 0 <= found <= 1 else None


def mapping(value: Any) -> Mapping[str, Any]:
    """`value` where it is an object, else an empty one."""
    return value if isinstance(value, Mapping) else {}


def objects(value: Any) -> list[Mapping[str, Any]]:
    """The objects of a list, else none."""
    return [entry for entry in value if isinstance(entry, Mapping)] if isinstance(value, list | tuple) else []


def shown(value: Any) -> str:
    """A number as people read it; – where it is none."""
    found = number(value)
    if found is None:
        return "–"
    return f"{found:,.0f}" if found == int(found) and abs(found) < 1e15 else f"{found:.4g}"


def percent(value: float) -> str:
    """0.8417 → 84.2 %, with a space that no line breaks at."""
    return f"{100 * value:.1f}\N{NO-BREAK SPACE}%"
