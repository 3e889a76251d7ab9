"""What `verify` leaves for people: verify.html; `report verify.json`; and that --offline uses no network."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT, Cli
from test_evaluators_report_run_report import Page

pytestmark = pytest.mark.xdist_group("digits_run")

NO_SOCKETS = """
import os, sys
def refuse(event, arguments):
    if event in ("socket.connect", "socket.getaddrinfo", "socket.sendto"):
        os.write(2, f"{event} {arguments[1]!r}".encode())
        os._exit(99)
sys.addaudithook(refuse)
from atmc_tool.cli import main
main(sys.argv[1:])
"""


@pytest.fixture
def run(digits_run: Path, tmp_path: Path) -> Path:
    """A copy of `digits_run` to change."""
    return shutil.copytree(digits_run, tmp_path / "job")


def test_verify_writes_the_page_whatever_the_verdict(run: Path, cli: Cli) -> None:
    done = cli("verify", run)
    assert done.code == 0, done.err
    assert "report: atmc-run/verify.html, for programs atmc-run/verify.json" in done.out
    page = Page((run / "atmc-run" / "verify.html").read_bytes())
    report = json.loads((run / "atmc-run" / "verify.json").read_text())
    assert "✓ PASSED" in page.text
    assert report["artefact"]["sha256"] in page.text
    for check in report["verdict"]["checks"]:
        assert check["name"] in page.text
    pictures = page.all("img")
    assert 3 <= len(pictures) <= 18
    assert len(pictures) % 3 == 0
    labels = [(each["alt"] or "").rpartition(" ")[2] for each in pictures]
    assert all(before != after for before, after in zip(labels[::3], labels[1::3], strict=True))
    first = (run / "atmc-run" / "verify.html").read_bytes()
    assert cli("verify --min-clean 1", run).code == 5
    failed = Page((run / "atmc-run" / "verify.html").read_bytes())
    assert "Do not release this file. Failed: min-clean." in failed.text
    assert cli("verify", run).code == 0
    assert (run / "atmc-run" / "verify.html").read_bytes() == first


def test_the_page_of_a_verify_json(run: Path, cli: Cli) -> None:
    assert cli("verify -o out", run).code == 0
    written = (run / "out" / "verify.html").read_text()
    failed = cli("report out/verify.json", run)
    assert (failed.code, failed.error.partition(". ")[0]) == (2, "error: out/verify.html exists")
    assert cli("report out/verify.json -o page.html", run).out == "report: page.html\n"
    alone = (run / "page.html").read_text()
    start, end = "<h2>Images that fool this file</h2>", "<h2>Beside other networks</h2>"
    assert alone == written[: written.index(start)] + written[written.index(end) :]


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"verdict": 1}', "[" * 100_000])
def test_what_is_no_verify_json_is_refused(content: str, cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "verify.json").write_text(content)
    failed = cli("report verify.json", tmp_path)
    assert (failed.code, re.match(r"error: verify\.json is (damaged|no report of verify)", failed.error) is None) == (
        4,
        False,
    )
    assert not (tmp_path / "verify.html").exists()


def watched(line: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """`atmc-tool LINE` in a process that ends with 99 where a socket is used; nothing of the user's is cached."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "XDG_CACHE_HOME": str(folder / "cache")}
    environment.pop("ATMC_DATA_DIR", None)
    command = [sys.executable, "-c", NO_SOCKETS, *line.split()]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)


def test_offline_uses_no_socket(run: Path) -> None:
    done = watched("verify --offline", run)
    assert done.returncode == 0, done.stderr
    refused = watched("verify --offline --data mnist --eps 0.1", run)
    assert refused.returncode == 4
    assert "mnist is not on this machine and can't be downloaded (downloads are forbidden)" in refused.stderr
    assert "put train-images-idx3-ubyte.gz" in refused.stderr
    assert watched("verify --data mnist --eps 0.1", run).returncode == 99  # it would have used one
