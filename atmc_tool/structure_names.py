"""The names of structures; what they mean is said in structures.py."""

import re

STRUCTURES = ("irregular", "filter", "column", "channel", "bn-filter")
_N_OF_M = re.compile(r"([1-9]\d?):([1-9]\d?)")


def parse_n_of_m(structure: str) -> tuple[int, int] | None:
    """(N, M) of a structure such as `2:4`, 1 ≤ N < M < 100; None for every other structure."""
    match = _N_OF_M.fullmatch(structure)
    if match is None:
        return None
    n, m = int(match[1]), int(match[2])
    return (n, m) if n < m else None
