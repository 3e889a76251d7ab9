"""Loading the data set that a command works on. Imports no torch."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from atmc_tool.cli.render import counted
from atmc_tool.cli.run_folder import RunFolder
from atmc_tool.config import Config
from atmc_tool.data import DataSet, load_data
from atmc_tool.data.catalogue import NAMES
from atmc_tool.errors import UsageError
from atmc_tool.settings import read_yaml

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


def data_folder(path: Path) -> Mapping[str, Any]:
    """Where the run that the file `path` lies in found its data; artefacts don't say, for they travel."""
    config = RunFolder(path.parent).config
    data = read_yaml(config).get("data") if config.is_file() else None
    return {"data": {"dir": data["dir"]}} if isinstance(data, dict) and isinstance(data.get("dir"), str) else {}
