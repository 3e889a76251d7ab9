"""Radii and distances as people read them beside the stated eps, whose text may come from anywhere."""

from atmc_tool.errors import UsageError
from atmc_tool.threat_model import parse_eps


def like_stated(eps: float, stated: str) -> str:
    """`eps` written as the stated one is: 0.00784 beside 4/255 is 2/255, beside 0.0157 it is 0.007843."""
    _, _, denominator = stated.partition("/")
    if eps in (0, 1) or _value(stated) is None or not denominator:
        return f"{eps:.4g}"
    return f"{eps * float(denominator):.4g}/{denominator.strip()}"


def times_stated(distance: float, stated: str) -> str | None:
    """`distance` as a multiple of the stated eps; None where that is no number."""
    eps = _value(stated)
    return None if eps is None else f"{distance / eps:.2f} eps"


def _value(stated: str) -> float | None:
    try:
        return parse_eps(stated)
    except UsageError:
        return None
