"""JSON from a file that may be damaged or hostile, and such a file's words in a message."""

import json
import math
from collections import Counter
from typing import Any, NoReturn

from atmc_tool.errors import InputError


def brief(value: object) -> str:
    """`repr(value)`, at most 100 characters of it: a file's own words may be long or hold control characters."""
    text = repr(value)
    return text if len(text) <= 100 else text[:99] + "…"


def parse_json(content: bytes, what: str) -> Any:
    """The value that `content` holds; `what` names it in errors.

    Raises:
        InputError: not UTF-8, not JSON, a key twice in one object (parsers differ in which one wins), or a number
            that is not finite.
    """

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        fields = dict(pairs)
        if len(fields) < len(pairs):
            twice = Counter(key for key, _ in pairs).most_common(1)[0][0]
            raise InputError(f"{what} holds the key {brief(twice)} twice", expected="every key once")
        return fields

    def refuse(number: str) -> NoReturn:
        raise InputError(f"{what} holds a number that is not finite", got=brief(number))

    def finite(number: str) -> float:
        value = float(number)
        return value if math.isfinite(value) else refuse(number)

    try:
        return json.loads(content.decode("utf-8"), object_pairs_hook=unique, parse_constant=refuse, parse_float=finite)
    except UnicodeDecodeError as error:
        raise InputError(f"{what} is not UTF-8", got=f"byte {content[error.start]:#04x} at {error.start}") from error
    except RecursionError as error:
        raise InputError(f"{what} is nested too deeply") from error
    except ValueError as error:
        raise InputError(f"{what} is not JSON", got=str(error)) from error
