"""Resident memory of this process, for the benchmarks. Imports nothing, so that a small process stays small."""

import ctypes
from collections.abc import Callable
from pathlib import Path


def status(field: str) -> int:
    """Bytes of `VmRSS`, now, or of `VmHWM`, its highest value."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(field))


def above(work: Callable[[], object]) -> int:
    """Peak of resident memory while `work` runs, above that before."""
    ctypes.CDLL(None).malloc_trim(0)  # what malloc keeps of freed memory would hide what is needed
    Path("/proc/self/clear_refs").write_text("5")  # the highest value starts anew
    before = status("VmRSS")
    work()
    return status("VmHWM") - before
