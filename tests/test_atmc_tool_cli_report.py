import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT, Cli

LINES = '{"epoch": 1, "step": 10, "steps": 30, "seconds": 60.0, "loss": 1.5, "validation_clean": 0.5}\n'


@pytest.fixture
def run(digits_run: Path, tmp_path: Path) -> Path:
    """A folder with model.pt, model.train and atmc-run of a finished job."""
    return shutil.copytree(digits_run, tmp_path / "job")


@pytest.mark.parametrize("name", ["atmc-run", "model.train"])
def test_train_and_compress_write_the_report_that_the_command_writes(name: str, cli: Cli, run: Path) -> None:
    written = (run / name / "report.html").read_bytes()
    for said in ("finished", "loss", "<svg", "config"):
        assert said in written.decode()
    (run / name / "report.html").unlink()
    shown = cli(f"report {name} --json", run)
    assert (shown.code, shown.err, json.loads(shown.out)) == (0, "", {"report": f"{name}/report.html"})
    assert (run / name / "report.html").read_bytes() == written
    assert not list(run.rglob("*.tmp"))


def test_the_same_bytes_in_another_process(run: Path) -> None:
    written = (run / "atmc-run" / "report.html").read_bytes()
    for seed in ("1", "2"):
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONHASHSEED": seed}
        subprocess.run([sys.executable, "-m", "atmc_tool", "report"], cwd=run, env=environment, check=True)
        assert (run / "atmc-run" / "report.html").read_bytes() == written


def test_the_report_of_a_run_that_goes_on_or_was_killed(cli: Cli, tmp_path: Path) -> None:
    folder = tmp_path / "atmc-run"
    folder.mkdir()
    (folder / "config.yaml").write_text("seed: 0\nrun: <script>alert(1)</script>\n")
    assert cli("report", tmp_path).out == "report: atmc-run/report.html\n"
    assert "waiting for the first epoch" in (folder / "report.html").read_text()
    (folder / "metrics.jsonl").write_text(LINES + '{"epoch": 2, "st')
    assert cli("report atmc-run -o elsewhere/r.html", tmp_path).out == "report: elsewhere/r.html\n"
    content = (tmp_path / "elsewhere" / "r.html").read_text()
    assert "not finished" in content
    assert "10 of 30" in content
    assert "<script" not in content


def test_no_file_but_a_report_is_replaced(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "atmc-run").mkdir()
    (tmp_path / "atmc-run" / "metrics.jsonl").write_text(LINES)
    (tmp_path / "model.pt").write_text("mine")
    for name in ("model.pt", "atmc-run"):
        failed = cli(f"report -o {name}", tmp_path)
        assert (failed.code, failed.error) == (
            2,
            f"error: {name} exists. Hint: name a file that is not there yet with -o",
        )
    assert (tmp_path / "model.pt").read_text() == "mine"
    assert [cli("report", tmp_path).code for _ in range(2)] == [0, 0]


@pytest.mark.parametrize("there", ["nothing", "folder", "file"])
def test_what_is_no_run(there: str, cli: Cli, tmp_path: Path) -> None:
    if there == "folder":
        (tmp_path / "it").mkdir()
    if there == "file":
        (tmp_path / "it").write_text("")
    failed = cli("report it", tmp_path)
    assert failed.code == 4
    assert "it is not the folder of a run" in failed.error
    assert not (tmp_path / "it" / "report.html").exists()


def test_a_damaged_result_is_said(cli: Cli, run: Path) -> None:
    (run / "atmc-run" / "model.atmc").write_bytes(b"x" * 100)
    assert cli("report", run).code == 4


def test_a_report_that_can_t_be_written_does_not_fail_the_run(cli: Cli, run: Path) -> None:
    (run / "atmc-run" / "report.html").unlink()
    (run / "atmc-run" / "report.html").mkdir()
    (run / "atmc-run" / "report.html" / "mine").touch()
    done = cli("compress model.pt --resume", run)
    assert done.code == 0, done.err
    assert "warning: no report was written: AtmcError: can't write atmc-run/report.html" in done.err
    assert (run / "atmc-run" / "model.atmc").is_file()
