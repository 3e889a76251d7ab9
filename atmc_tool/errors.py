"""Errors a user can cause: one clear line each, and the exit code of the command as an attribute of the class."""

from typing import ClassVar


class AtmcError(Exception):
    """An error with a message for the user: what was wrong, what was expected, what was got, what to do.

    `str(error)` is always a single line. Exit code 1: a failure that is none of the subclasses.
    """

    exit_code: ClassVar[int] = 1

    def __init__(self, what: str, *, expected: object = None, got: object = None, hint: str = "") -> None:
        parts = [
            *([f"expected {expected}"] if expected is not None else []),
            *([f"got {got}"] if got is not None else []),
        ]
        line = what + (": " + ", ".join(parts) if parts else "") + (f". Hint: {hint}" if hint else "")
        # names from hostile files must not reach the terminal as control characters
        super().__init__("".join(c if c.isprintable() else "?" for c in " ".join(line.split())))


class UsageError(AtmcError):
    """A value or combination of options that can't be: exit code 2."""

    exit_code = 2


class MissingEnvironmentError(AtmcError):
    """A device, execution provider or package that was asked for and is not there: exit code 3."""

    exit_code = 3


class InputError(AtmcError):
    """A file or data set that is missing, damaged, unsafe or not of the expected form: exit code 4."""

    exit_code = 4


class GateFailedError(AtmcError):
    """The artefact was measured, reports are written, and a condition does not hold: exit code 5."""

    exit_code = 5


class InfeasibleBudgetError(AtmcError):
    """The budget can't be met by any network of this shape: exit code 6."""

    exit_code = 6


class InterruptedRunError(AtmcError):
    """Interrupted by the user, state saved: exit code 130."""

    exit_code = 130
