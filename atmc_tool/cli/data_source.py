"""Which data set a command works on, and loading it. Imports no torch."""

from atmc_tool.cli.render import counted
from atmc_tool.config import Config
from atmc_tool.data import DataSet, load_data
from atmc_tool.errors import InputError, UsageError
from atmc_tool.plugins import is_callable_spec

DATA_EXPECTED = "--data digits, mnist, fashion-mnist, a folder, .zip, .npz, pkg.mod:callable or file.py:callable"


def load_named(config: Config, spec: str) -> DataSet:
    """The data set `spec`, split and limited as the configuration says; shows progress where many files are read.

    Raises:
        UsageError, InputError: see `load_data`.
    """
    wanted = config.data
    with counted(f"reading {spec}") as progress:
        return load_data(
            spec,
            data_dir=wanted.dir,
            seed=config.seed,
            validation=wanted.validation,
            limit=wanted.limit,
            progress=progress,
        )


def trusted_data(stated: str | None, recorded: str | None) -> str:
    """The data set to load: what the user states, else what a file records, unless that is code to run.

    Raises:
        UsageError: neither names one.
        InputError: the file names the user's code, which is not run on the word of a file.
    """
    if stated is not None:
        return stated
    if recorded is None:
        raise UsageError("which data set?", expected=DATA_EXPECTED)
    if is_callable_spec(recorded):
        raise InputError(
            f"the file's data set is {recorded!r}, code that is not run on the word of a file",
            hint=f"--data {recorded}",
        )
    return recorded
