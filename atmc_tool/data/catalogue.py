"""From the name a user gives to a data set."""

import difflib
import os
from dataclasses import replace
from pathlib import Path

from atmc_tool.data.cifar import CLASS_NAMES, find_layout, read_cifar, read_cifar_set
from atmc_tool.data.custom import read_custom
from atmc_tool.data.data_set import TEST_SEED, DataSet, Parts, digest_of, limited_indices, split_validation
from atmc_tool.data.digits import read_digits
from atmc_tool.data.file_tree import flat_tree
from atmc_tool.data.idx import KINDS, has_idx, read_idx_folder, read_idx_set
from atmc_tool.data.image_folder import read_image_folder
from atmc_tool.data.npz import read_npz
from atmc_tool.data.streamed import Progress
from atmc_tool.data.svhn import has_svhn, read_svhn, read_svhn_set
from atmc_tool.errors import InputError, UsageError
from atmc_tool.plugins import is_callable_spec

NAMES = ("digits", *KINDS, *CLASS_NAMES, "svhn")
SUFFIXES = (".zip", ".npz")
TARS = (".tar", ".tgz", ".gz")


def load_data(
    spec: str,
    *,
    data_dir: Path | None = None,
    seed: int = 0,
    validation: float = 0.1,
    limit: int | None = None,
    image_size: int | None = None,
    progress: Progress | None = None,
) -> DataSet:
    """The data set `spec` names.

    spec:       one of NAMES; a folder or .zip of `train|test/<class>/<image>`, an .npz, a folder of IDX files, a folder
                or .tar.gz of CIFAR, a folder of SVHN; `pkg.mod:callable` or `file.py:callable`. A relative path is
                tried as given and then below `data_dir`, there also without its suffix (.zip, .npz).
    data_dir:   where data lies; else the environment's ATMC_DATA_DIR
    seed:       chooses the validation images and what `limit` keeps of the training images
    validation: fraction of the training images that is split off for validation, in (0, 1)
    limit:      keep at most so many images for training and validation together, and at most so many for testing,
                each class in proportion; the test images don't depend on `seed`
    image_size: makes the images of a folder or zip of images square and of one size; see `StreamedImages`
    progress:   called with (done, total) while many files are decoded

    Raises:
        UsageError: an unknown name, or seed, validation or limit out of range, or an image_size for other data.
        InputError: the data are missing, damaged, unlabelled or inconsistent.
    """
    if seed < 0:
        raise UsageError("the seed is out of range", expected="0 or more", got=seed)
    if not 0 < validation < 1:
        raise UsageError("the validation part is out of range", expected="a fraction in (0, 1)", got=validation)
    if limit is not None and limit < 2:
        raise UsageError("the limit of images is out of range", expected="at least 2", got=limit)
    if data_dir is None and os.environ.get("ATMC_DATA_DIR"):
        data_dir = Path(os.environ["ATMC_DATA_DIR"])
    parts: Parts | DataSet
    if spec == "digits":
        parts = read_digits()
    elif spec in KINDS:
        parts = read_idx_set(spec, _existing(data_dir))
    elif spec in CLASS_NAMES:
        parts = read_cifar_set(spec, _existing(data_dir))
    elif spec == "svhn":
        parts = read_svhn_set(_existing(data_dir))
    elif is_callable_spec(spec):
        parts = read_custom(spec)
    else:
        path = _find(spec, _existing(data_dir))
        if _is_image_folder(path):
            parts = read_image_folder(path, limit=limit, seed=seed, size=image_size, progress=progress)
            image_size = None  # done
        else:
            parts = _read_path(path)
    if image_size is not None:
        raise UsageError(f"data.image_size does not fit {spec}", expected="a folder or zip of images")
    if isinstance(parts, DataSet):
        return _named(parts, spec, limit, seed)
    return split_validation(spec, parts.limited(limit, seed), validation, seed)


def _existing(data_dir: Path | None) -> Path | None:
    if data_dir is not None and not data_dir.is_dir():
        raise InputError(f"no such data folder: {data_dir}", hint="set --data-dir or ATMC_DATA_DIR")
    return data_dir


def _find(spec: str, data_dir: Path | None) -> Path:
    """The file or folder that `spec` names."""
    places = [Path(spec).expanduser()]
    if data_dir is not None:
        places += [data_dir / f"{spec}{suffix}" for suffix in ("", *SUFFIXES)]
    found = next((place for place in places if spec and place.exists()), None)
    if found is not None:
        return found
    if Path(spec).suffix in SUFFIXES + TARS or "/" in spec or os.sep in spec:
        below = f", nor below {data_dir}" if data_dir else ""
        raise InputError(f"no such file or folder: {spec}{below}", hint="give --data-dir or a path that is there")
    names = [*NAMES, *_names_below(data_dir)]
    near = difflib.get_close_matches(spec, names, n=1)
    raise UsageError(
        f"unknown data set {spec!r}",
        expected=f"one of {', '.join(names)}, a path, or module:callable",
        hint=f"did you mean {near[0]}?" if near else "",
    )


def _names_below(data_dir: Path | None) -> list[str]:
    entries = sorted(data_dir.iterdir()) if data_dir else []
    return [entry.name for entry in entries if entry.suffix in SUFFIXES or (entry.is_dir() and entry.name not in NAMES)]


def _is_image_folder(path: Path) -> bool:
    if path.is_dir():
        return not (has_idx(path) or has_svhn(path) or find_layout(flat_tree(path)))
    return path.suffix == ".zip"


def _read_path(path: Path) -> Parts:
    if path.is_dir() and has_idx(path):
        return read_idx_folder(path, KINDS.get(path.name))
    if path.is_dir() and has_svhn(path):
        return read_svhn(path)
    if path.is_dir() or path.suffix in TARS:
        tree = flat_tree(path)
        if layout := find_layout(tree):
            return read_cifar(tree, layout)
    if path.suffix == ".npz":
        return read_npz(path)
    raise InputError(f"{path} is no data set", expected="a folder, a .zip, an .npz or a .tar.gz of CIFAR")


def _named(data: DataSet, spec: str, limit: int | None, seed: int) -> DataSet:
    """A data set from the user's code: its validation part stands; name and digest are ours."""
    train = data.train.take(limited_indices(data.train.labels, limit, seed))
    test = data.test.take(limited_indices(data.test.labels, limit, TEST_SEED))
    digest = digest_of(train, data.validation, test)
    return replace(data, name=spec, train=train, test=test, digest=digest)
