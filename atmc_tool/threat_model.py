"""The threat model: which perturbations an adversary may add to an image."""

import re
from dataclasses import dataclass
from typing import Literal

from atmc_tool.errors import UsageError

Norm = Literal["linf"]


@dataclass(frozen=True)
class ThreatModel:
    """All x' with ‖x' − x‖∞ ≤ eps and x' in [0, 1]; images are float32 in [0, 1].

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
        UsageError: not a number or a fraction of two numbers, or not in (0, 1].
    """
    expected = "a number in (0, 1] such as 0.1 or 8/255"
    number = r"\s*[+-]?(?:\d+(?:\.\d*)?|\.\d+)(?:[eE][+-]?\d+)?\s*"
    if not re.fullmatch(f"{number}(?:/{number})?", text):
        raise UsageError("eps is not a number", expected=expected, got=repr(text))
    numerator, _, denominator = text.partition("/")
    if denominator and float(denominator) == 0:
        raise UsageError("eps divides by zero", expected=expected, got=repr(text))
    eps = float(numerator) / float(denominator or 1)
    if not 0 < eps <= 1:
        hint = f"images are in [0, 1]; write {text.strip()}/255 for {text.strip()} grey levels" if eps > 1 else ""
        raise UsageError("eps is out of range", expected=expected, got=text.strip(), hint=hint)
    return ThreatModel(eps, text.strip(), norm)
