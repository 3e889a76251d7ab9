"""Runs that end too early, each in its own way, and go on."""

import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

from conftest import ROOT, Cli

SHORT = "--set attack.steps=1 --set evaluation.n=20 --set evaluation.steps=1 --set evaluation.restarts=1"
LINE = f"compress model.pt --max-steps 40 --set compress.checkpoint_steps=7 {SHORT}"


def start_until(pattern: str, line: str, folder: Path) -> subprocess.Popen[str]:
    """`atmc-tool LINE`, running, and a file of `pattern` is there."""
    command = [sys.executable, "-m", "atmc_tool", *line.split()]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(command, cwd=folder, env=environment, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 120
    while not list(folder.glob(pattern)) and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.001)
    return process


def hidden(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.rglob(".*"))


def test_a_run_killed_before_its_first_checkpoint_starts_from_the_beginning(cli: Cli, folder: Path) -> None:
    process = start_until("atmc-run/config.yaml", LINE, folder)
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=60)
    run = folder / "atmc-run"
    shutil.rmtree(run / "checkpoints", ignore_errors=True)  # where the kill came a moment too late
    (run / "metrics.jsonl").write_text('{"epoch": 1, "step": 11}\n{"epo')  # as if killed within the first save
    resumed = cli("compress model.pt --resume", folder)
    assert resumed.code == 0, resumed.err
    assert resumed.err.splitlines()[0] == "atmc-run has no checkpoint yet: starting from the beginning"
    assert cli(f"{LINE} -o whole", folder).code == 0
    assert (run / "model.atmc").read_bytes() == (folder / "whole" / "model.atmc").read_bytes()
    assert len((run / "metrics.jsonl").read_text().splitlines()) == 4


def test_a_full_disk_costs_nothing_but_the_time_since_the_last_checkpoint(cli: Cli, folder: Path) -> None:
    process = start_until("atmc-run/checkpoints/*.ckpt", f"{LINE} -q", folder)
    resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (100_000, 100_000))
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 1
    assert errors.startswith("error: can't write atmc-run/checkpoints/step-")
    assert errors.endswith(".ckpt: File too large. Hint: free space, then go on with --resume\n")
    assert list(folder.glob("atmc-run/checkpoints/*.ckpt"))
    assert hidden(folder) == []
    assert cli("compress model.pt --resume -q", folder).code == 0
    assert cli(f"{LINE} -o whole -q", folder).code == 0
    assert (folder / "atmc-run" / "model.atmc").read_bytes() == (folder / "whole" / "model.atmc").read_bytes()


def test_what_killed_writes_left_goes_and_nothing_else(cli: Cli, folder: Path) -> None:
    run = folder / "atmc-run"
    run.mkdir()
    (run / ".config.yaml.abcd_123.tmp").write_text("see")  # killed at its very first write: nothing was begun
    line = f"compress model.pt --max-steps 4 {SHORT} -q"
    assert cli(f"{line} --resume", folder).code == 2
    assert cli(line, folder).code == 0
    assert hidden(folder) == []
    first = (run / "model.atmc").read_bytes()
    for path in ("checkpoints/.step-9.ckpt.abcd_123.tmp", ".model.atmc.abcd_123.tmp", ".metrics.jsonl.abcd_123.tmp"):
        (run / path).write_text("half")
    for path in (".mine.tmp", ".mine.abcd_123.tmp"):
        (run / path).write_text("keep")
    assert cli("compress model.pt --resume -q", folder).code == 0
    assert hidden(folder) == [".mine.abcd_123.tmp", ".mine.tmp"]
    assert (run / "model.atmc").read_bytes() == first


def test_a_finished_run_without_checkpoints_is_not_trained_again(cli: Cli, folder: Path) -> None:
    train = f"train --data digits --arch digits-cnn --eps 0.1 --max-steps 2 {SHORT} -q -o dense.pt"
    assert cli(train, folder).code == 0
    for path in (folder / "dense.train" / "checkpoints").iterdir():
        path.unlink()
    failed = cli("train -o dense.pt --resume", folder)
    assert failed.code == 2
    assert failed.error == "error: dense.pt is there and no checkpoint to resume. Hint: --overwrite starts again"
