"""Work that the tests of trials give to processes, where they find it by its module's name."""

import os
import signal
import time
from pathlib import Path

from atmc_tool.errors import InputError


def square(number: int) -> tuple[int, int]:
    """The square, and who computed it."""
    time.sleep(0.05)
    return number * number, os.getpid()


def scaled(factor: int, number: int) -> int:
    """What `functools.partial` binds a factor to; 3 is an error of the user, 4 is one of ours."""
    if number == 3:
        raise InputError("three is damaged")
    if number == 4:
        raise ZeroDivisionError("four")
    return factor * number


def threads(_: int) -> str | None:
    """What torch would compute with."""
    return os.environ.get("OMP_NUM_THREADS")


def fatal(folder: str, number: int) -> int:
    """Kills its own process: for number 1 the first time, for number 2 always. Says in `folder` that it began."""
    begun = len(list(Path(folder).glob(f"{number}-*")))
    (Path(folder) / f"{number}-{begun}").write_text(str(os.getpid()))
    if number == 2 or (number == 1 and begun == 0):
        os.kill(os.getpid(), signal.SIGKILL)
    return number


def patient(folder: str, number: int) -> int:
    """Waits for long, number 0 not at all, and says in `folder` when it begins and when it is interrupted."""
    (Path(folder) / f"{number}-begun").write_text(str(os.getpid()))
    try:
        time.sleep(60 if number else 0)
    except KeyboardInterrupt:
        (Path(folder) / f"{number}-saved").write_text("")
        raise
    return number


def unsendable(_: int) -> object:
    """What no other process can be given."""
    return lambda: None
