import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT, Cli, on_terminal

SHORT = "--set attack.steps=1 --set evaluation.n=20 --set evaluation.steps=1 --set evaluation.restarts=1 -q"
EPOCHS = [
    {"epoch": 1, "step": 10, "steps": 30, "seconds": 60.0, "loss": 1.5, "validation_clean": 0.5, "learning_rate": 0.1},
    {"epoch": 2, "step": 20, "steps": 30, "seconds": 120.0, "loss": 1.25, "validation_clean": 0.75},
]


def write(run: Path, lines: list[dict[str, object]], rest: str = "") -> None:
    run.mkdir(exist_ok=True)
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines) + rest)


def test_a_run_is_followed_from_before_its_start_to_its_end(cli: Cli, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "atmc_tool", "watch", "model.train", "atmc-run"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(command, cwd=tmp_path, env=environment, stdout=subprocess.PIPE, text=True) as watch:
        assert watch.stdout is not None
        first = [watch.stdout.readline() for _ in range(2)]
        assert first == [f"{run}: waiting: the folder is not there yet\n" for run in ("model.train", "atmc-run")]
        assert cli(f"train --data digits --arch digits-cnn --eps 0.1 --epochs 2 {SHORT}", tmp_path).code == 0
        assert watch.poll() is None
        assert cli(f"compress model.pt --epochs 3 {SHORT}", tmp_path).code == 0
        lines = watch.stdout.read().splitlines()
        assert watch.wait(timeout=30) == 0
    for run, epochs in (("model.train", 2), ("atmc-run", 3)):
        said = [line.removeprefix(f"{run}: ").split("  ") for line in lines if line.startswith(run)]
        expected = [[f"epoch {epoch}", f"step {10 * epoch}/{10 * epochs}"] for epoch in range(1, epochs + 1)]
        assert [words[:2] for words in said if words[0].startswith("epoch")] == expected
        assert said[-1] == ["finished"]
    assert all(word in lines[-2] for word in ("loss", "clean", "robust", "kept", "lr"))


def test_once_shows_what_is_there(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "begun").mkdir()
    write(tmp_path / "atmc-run", [*EPOCHS, {"step": 20, "warning": "beware"}], rest='{"epoch": 3, "st')
    shown = cli("watch --once", tmp_path)
    assert (shown.code, shown.out, shown.err) == (0, "atmc-run: warning: beware\n", "")
    write(tmp_path / "atmc-run", EPOCHS)
    shown = cli("watch --once nowhere begun atmc-run", tmp_path)
    assert shown.code == 0
    assert shown.out.splitlines() == [
        "nowhere: waiting: the folder is not there yet",
        "begun: waiting for the first epoch",
        "atmc-run: epoch 2  step 20/30  loss 1.25  clean 0.75",
    ]
    (tmp_path / "atmc-run" / "model.atmc").touch()
    assert cli("watch", tmp_path).out.splitlines()[-1] == "atmc-run: finished"


def test_json(cli: Cli, tmp_path: Path) -> None:
    write(tmp_path / "run", [*EPOCHS, {"step": 20, "warning": "beware"}])
    shown = cli("watch run nowhere --json", tmp_path)
    assert shown.code == 0
    run, nowhere = json.loads(shown.out)["runs"]
    assert (run["state"], run["finished"], run["last"]) == ("running", False, EPOCHS[-1])
    assert run["warnings"] == ["run: warning: beware"]
    assert (nowhere["finished"], nowhere["last"]) == (False, None)


def test_an_older_output_does_not_end_a_training(cli: Cli, tmp_path: Path) -> None:
    write(tmp_path / "model.train", EPOCHS)
    (tmp_path / "model.pt").touch()
    os.utime(tmp_path / "model.pt", (1, 1))
    (tmp_path / "model.train" / "config.yaml").touch()
    assert "finished" not in cli("watch --once model.train", tmp_path).out
    os.utime(tmp_path / "model.pt")
    assert "finished" in cli("watch --once model.train", tmp_path).out


@pytest.mark.parametrize("options", ["--once", ""])
def test_a_terminal_gets_a_table(options: str, tmp_path: Path) -> None:
    write(tmp_path / "run[1]", [*EPOCHS, {"step": 20, "warning": "beware"}])
    if not options:
        (tmp_path / "run[1]" / "model.atmc").touch()
    shown = on_terminal(f"watch run[1] {options}", tmp_path)
    assert all(word in shown for word in ("run[1]", "20/30", "1.25", "0.75", "2:00", "beware"))
    assert ("1:00" in shown) == bool(options)  # the time left
    assert ("finished" in shown) != bool(options)


def test_a_file_is_no_run(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "model.atmc").touch()
    failed = cli("watch model.atmc", tmp_path)
    assert failed.code == 2
    assert failed.error == "error: model.atmc is not a run folder: expected a folder such as atmc-run"
