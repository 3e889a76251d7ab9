"""Downloads: checked by sum, cached, and one clear line where there is no network. Served by a server of our own."""

import functools
import hashlib
import http.server
import logging
import socket
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from atmc_tool import data
from atmc_tool.data import download
from atmc_tool.data.download import fetch
from atmc_tool.errors import InputError


class QuietHandler(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *arguments: object) -> None:
        """Say nothing on stderr."""

    def do_GET(self) -> None:
        time.sleep(0.1)  # so that another one who asks does so meanwhile
        with Path(self.directory, "asked").open("a") as file:
            file.write(f"{self.path}\n")
        super().do_GET()


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache folder of the user's."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("ATMC_DATA_DIR", raising=False)
    return tmp_path


@pytest.fixture
def served(tmp_path: Path) -> Iterator[tuple[Path, str]]:
    """A folder and the address under which it is served."""
    folder = tmp_path / "served"
    folder.mkdir()
    handler = functools.partial(QuietHandler, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield folder, f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()
        thread.join()


@pytest.fixture
def closed_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def test_a_download_is_checked_and_kept(
    cache: Path, served: tuple[Path, str], monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    folder, url = served
    (folder / "a.gz").write_bytes(b"content")
    monkeypatch.setitem(download.SHA256, "mnist", {"a.gz": hashlib.sha256(b"content").hexdigest()})
    found = fetch("mnist", ["a.gz"], wanted=None, url=url)
    assert (found / "a.gz").read_bytes() == b"content"
    assert cache in found.parents
    (folder / "a.gz").unlink()
    assert fetch("mnist", ["a.gz"], wanted=None, url=url) == found
    assert capfd.readouterr() == ("", "")


@pytest.mark.skipif(sys.platform == "win32", reason="has no such locks")
@pytest.mark.usefixtures("cache")
def test_who_comes_meanwhile_waits_instead_of_downloading(
    served: tuple[Path, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, url = served
    (folder / "a.gz").write_bytes(b"content")
    monkeypatch.setitem(download.SHA256, "mnist", {"a.gz": hashlib.sha256(b"content").hexdigest()})
    with ThreadPoolExecutor() as pool:
        found = [pool.submit(fetch, "mnist", ["a.gz"], wanted=None, url=url) for _ in range(3)]
    assert all((path.result() / "a.gz").read_bytes() == b"content" for path in found)
    assert (folder / "asked").read_text() == "/a.gz\n"


def test_other_content_is_refused_and_not_kept(cache: Path, served: tuple[Path, str]) -> None:
    folder, url = served
    (folder / "train-labels-idx1-ubyte.gz").write_bytes(b"something else")
    with pytest.raises(InputError, match=r"another checksum.*put train-labels-idx1-ubyte\.gz \(\.gz or not\) into DIR"):
        fetch("mnist", ["train-labels-idx1-ubyte.gz"], wanted=None, url=url)
    assert not [path for path in cache.rglob("*labels*") if folder not in path.parents]


@pytest.mark.usefixtures("cache")
def test_a_file_that_is_not_served_is_named(served: tuple[Path, str]) -> None:
    with pytest.raises(InputError, match=r"can't be downloaded \(HTTPError\)"):
        fetch("mnist", ["train-labels-idx1-ubyte.gz"], wanted=None, url=served[1])


@pytest.mark.parametrize("name", ["mnist", "fashion-mnist"])
def test_without_a_network_one_line_says_which_files_go_where(
    cache: Path,
    closed_port: int,
    name: str,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    for variable in ("https_proxy", "HTTPS_PROXY"):  # so that no machine's network is reached
        monkeypatch.setenv(variable, f"http://127.0.0.1:{closed_port}")
    for variable in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(variable, raising=False)
    caplog.set_level(logging.INFO)
    (cache / "data").mkdir()
    start = time.monotonic()
    with pytest.raises(InputError) as caught:
        data.load_data(name, data_dir=cache / "data")
    assert time.monotonic() - start < 10
    message = str(caught.value)
    files = (
        "train-images-idx3-ubyte.gz, train-labels-idx1-ubyte.gz, t10k-images-idx3-ubyte.gz, t10k-labels-idx1-ubyte.gz"
    )
    assert f"put {files} (.gz or not) into {cache}/data/{name}" in message
    assert "\n" not in message
    assert capfd.readouterr() == ("", "")
    assert not [record for record in caplog.records if record.name.startswith("pooch")]


@pytest.mark.parametrize(
    ("name", "files"),
    [
        ("cifar10", "cifar-10-python.tar.gz"),
        ("cifar100", "cifar-100-python.tar.gz"),
        ("svhn", "train_32x32.mat, test_32x32.mat"),
    ],
)
def test_files_that_are_not_there_are_named(
    cache: Path, closed_port: int, name: str, files: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for variable in ("http_proxy", "HTTP_PROXY", "https_proxy", "HTTPS_PROXY"):
        monkeypatch.setenv(variable, f"http://127.0.0.1:{closed_port}")
    for variable in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(variable, raising=False)
    with pytest.raises(InputError) as caught:
        data.load_data(name, data_dir=cache)
    assert f"put {files} into {cache}/{name}" in str(caught.value)
    assert "\n" not in str(caught.value)
