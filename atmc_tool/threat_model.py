"""The threat model: which perturbations an adversary may add to an image."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

from atmc_tool.errors import UsageError

Norm = Literal["linf", "l2"]
LARGEST: Mapping[Norm, float] = MappingProxyType({"linf": 1.0, "l2": 100.0})  # eps


@dataclass(frozen=True)
class ThreatModel:
    """All x' with ‖x' − x‖ ≤ eps and x' in [0, 1]; images are float32 in [0, 1], the norm is l-infinity or l2.

    `text` is eps as its author wrote it (`8/255`); reports show it beside the number.
    """

    eps: float
    text: str
    norm: Norm = "linf"

    def __str__(self) -> str:
        return f"{self.norm}, eps {self.text}"


def parse_threat_model(text: str, norm: Norm = "linf") -> ThreatModel:
    """`"0.1"` or `"8/255"` → ThreatModel.

    Raises:
        UsageError: not a number or a fraction of two numbers, or not in (0, 1]; in l2 not in (0, 100].
    """
    eps, largest = parse_eps(text), LARGEST[norm]
    if eps > largest:
        hint = (
            f"images are in [0, 1]; write {text.strip()}/255 for {text.strip()} grey levels" if norm == "linf" else ""
        )
        expected = f"a number in (0, {largest:g}] such as {'0.1 or 8/255' if norm == 'linf' else '0.5'}"
        raise UsageError(f"eps is out of range in {norm}", expected=expected, got=text.strip(), hint=hint)
    return ThreatModel(eps, text.strip(), norm)


def parse_eps(text: str) -> float:
    """`"0.1"` or `"8/255"` → a number above 0.

    Raises:
        UsageError: not a number or a fraction of two numbers, or not above 0.
    """
    expected = "a number above 0 such as 0.1 or 8/255"
    number = r"\s*[+-]?(?:\d+(?:\.\d*)?|\.\d+)(?:[eE][+-]?\d+)?\s*"
    if not re.fullmatch(f"{number}(?:/{number})?", text):
        raise UsageError("eps is not a number", expected=expected, got=repr(text))
    numerator, _, denominator = text.partition("/")
    if denominator and float(denominator) == 0:
        raise UsageError("eps divides by zero", expected=expected, got=repr(text))
    eps = float(numerator) / float(denominator or 1)
    if not 0 < eps < float("inf"):
        raise UsageError("eps is out of range", expected=expected, got=text.strip())
    return eps
