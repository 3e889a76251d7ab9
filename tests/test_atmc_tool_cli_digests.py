"""The list of digests is one that sha256sum reads, whatever the files are called."""

import shutil
import subprocess
from pathlib import Path

import pytest

from atmc_tool.cli.digests import digest_list
from atmc_tool.errors import AtmcError
from atmc_tool.files import remove, sha256


@pytest.mark.skipif(shutil.which("sha256sum") is None, reason="no sha256sum")
def test_sha256sum_reads_it_and_finds_what_was_changed(tmp_path: Path) -> None:
    folder = tmp_path / "reports"
    (tmp_path / "release").mkdir()
    folder.mkdir()
    names = [
        "release/model.onnx",
        "reports/verify.json",
        "reports/a name",
        "reports/back\\\\slash",
        "reports/new\nline",
    ]
    for name in names:
        (tmp_path / name).write_text(name)
    made = digest_list(folder, {tmp_path / name: sha256(name.encode()) for name in names})
    (folder / "manifest.sha256").write_bytes(made)
    command = ["sha256sum", "--check", "--strict", "manifest.sha256"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout.count(": OK")) == (0, len(names)), done.stderr
    assert "../release/model.onnx: OK" in done.stdout
    (tmp_path / names[0]).write_text("another")
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "../release/model.onnx: FAILED" in done.stdout


def test_a_list_that_can_not_be_removed_is_one_line(tmp_path: Path) -> None:
    """`verify -o` below a file ended with the words of the operating system alone."""
    path = tmp_path / "manifest.sha256"
    path.touch()
    remove(path)
    remove(path)
    assert not path.exists()
    (tmp_path / "file").touch()
    with pytest.raises(AtmcError, match=r"can't remove .*file/manifest\.sha256: Not a directory"):
        remove(tmp_path / "file" / "manifest.sha256")
