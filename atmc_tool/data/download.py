"""The one place that uses the network: public data sets, checked against known SHA-256 sums."""

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from contextvars import ContextVar
from pathlib import Path

from atmc_tool.errors import InputError

URLS = {
    "mnist": "https://storage.googleapis.com/cvdf-datasets/mnist/",
    "fashion-mnist": "https://raw.githubusercontent.com/zalandoresearch/fashion-mnist/master/data/fashion/",
    "cifar10": "https://www.cs.toronto.edu/~kriz/",
    "cifar100": "https://www.cs.toronto.edu/~kriz/",
    "svhn": "http://ufldl.stanford.edu/housenumbers/",
}
SHA256 = {
    "mnist": {
        "train-images-idx3-ubyte.gz": "440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609",
        "train-labels-idx1-ubyte.gz": "3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c",
        "t10k-images-idx3-ubyte.gz": "8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6",
        "t10k-labels-idx1-ubyte.gz": "f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6",
    },
    "fashion-mnist": {
        "train-images-idx3-ubyte.gz": "3aede38d61863908ad78613f6a32ed271626dd12800ba2636569512369268a84",
        "train-labels-idx1-ubyte.gz": "a04f17134ac03560a47e3764e11b92fc97de4d1bfaf8ba1a3aa29af54cc90845",
        "t10k-images-idx3-ubyte.gz": "346e55b948d973a97e58d2351dde16a484bd415d4595297633bb08f03db6a073",
        "t10k-labels-idx1-ubyte.gz": "67da17c76eaffca5446c3361aaab5c3cd6d1c2608764d35dfb1850b086bf8dd5",
    },
    "cifar10": {
        "cifar-10-python.tar.gz": "6d958be074577803d12ecdefd02955f39262c83c16fe9348329d7fe0b5c001ce",
    },
    "cifar100": {
        "cifar-100-python.tar.gz": "85cd44d02ba6437773c5bbd22e183051d648de2e7d6b014e1ef29b855ba677a7",
    },
    "svhn": {
        "train_32x32.mat": "435e94d69a87fde4fd4d7f3dd208dfc32cb6ae8af2240d066de1df7508d083b8",
        "test_32x32.mat": "cdce80dfb2a2c4c6160906d0bd7c68ec5a99d7ca4831afa54f09182025b6a75b",
    },
}
TIMEOUT = (4, 20)
"""Seconds to connect, and between two pieces of an answer: a machine without a network says so soon."""
_forbidden: ContextVar[bool] = ContextVar("forbidden", default=False)


@contextmanager
def no_downloads() -> Iterator[None]:
    """Within it `fetch` finds what is on this machine and uses no network."""
    token = _forbidden.set(True)
    try:
        yield
    finally:
        _forbidden.reset(token)


class ForbiddenError(OSError):
    """A download was needed within `no_downloads`."""


def fetch(name: str, files: Sequence[str], *, wanted: Path | None, url: str | None = None) -> Path:
    """The user's cache folder that holds `files` of data set `name`, downloaded where they were not there yet.

    wanted: the folder the user named, for the message; url: another mirror than the official one

    Raises:
        InputError: not to be had, or not the expected content (which is then not kept).
    """
    import pooch  # late: only where a download is needed

    pooch.get_logger().setLevel("ERROR")
    folder = Path(pooch.os_cache("atmc-tool")) / name
    downloader = pooch.HTTPDownloader(timeout=TIMEOUT, chunk_size=2**16)
    try:
        with nullcontext() if all((folder / file).is_file() for file in files) else _alone(folder):
            for file in files:
                pooch.retrieve(
                    (url or URLS[name]) + file,
                    known_hash=f"sha256:{SHA256[name][file]}",
                    fname=file,
                    path=folder,
                    downloader=_refuse if _forbidden.get() else downloader,
                )
    except (OSError, ValueError) as error:  # requests' errors are OSErrors; ValueError: another checksum
        unzipped = " (.gz or not)" if files[0].endswith("-ubyte.gz") else ""
        place = f"{wanted}/{name}" if wanted else f"DIR/{name} and name DIR by --data-dir or ATMC_DATA_DIR"
        raise InputError(
            f"{name} is not on this machine and can't be downloaded ({_reason(error)})",
            hint=f"put {', '.join(files)}{unzipped} into {place}",
        ) from error
    return folder


def _refuse(*_: object) -> None:
    raise ForbiddenError


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """One process at a time, so that those of a machine download once; the lock goes with its process.

    Without such locks (Windows) each downloads for itself, which does no harm: files appear whole.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if sys.platform == "win32":
        yield
    else:
        import fcntl

        with (folder / ".lock").open("w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield


def _reason(error: Exception) -> str:
    if isinstance(error, ForbiddenError):
        return "downloads are forbidden"
    if isinstance(error, ValueError) and "hash" in str(error):
        return "what came has another checksum"
    return type(error).__name__
