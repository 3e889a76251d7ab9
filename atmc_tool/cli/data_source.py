"""Loading the data set that a command works on. Imports no torch."""

from atmc_tool.cli.render import counted
from atmc_tool.config import Config
from atmc_tool.data import DataSet, load_data
from atmc_tool.data.catalogue import NAMES
from atmc_tool.errors import UsageError

DATA_EXPECTED = f"--data {', '.join(NAMES)}, a folder, .zip, .npz, pkg.mod:callable or file.py:callable"


def load_configured(config: Config) -> DataSet:
    """The data set of the configuration, split and limited as it says; shows progress where many files are read.

    Raises:
        UsageError: it names none, or as `load_data`.
        InputError: see `load_data`.
    """
    wanted = config.data
    if wanted.name is None:
        raise UsageError("which data set?", expected=DATA_EXPECTED)
    with counted(f"reading {wanted.name}") as progress:
        return load_data(
            wanted.name,
            data_dir=wanted.dir,
            seed=config.seed,
            validation=wanted.validation,
            limit=wanted.limit,
            image_size=wanted.image_size,
            progress=progress,
        )
