import json
from pathlib import Path

import pytest
from conftest import Cli, run_atmc


def test_it_touches_no_folder_of_others(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "quickstart").mkdir()
    (tmp_path / "quickstart" / "thesis.tex").write_text("mine")
    failed = cli("quickstart", tmp_path)
    assert failed.code == 2
    assert failed.error == "error: quickstart holds files of others (thesis.tex). Hint: choose an empty folder with -o"
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "model.pt").write_text("three days of training")
    assert "holds files of others (model.pt)" in cli("quickstart -o own", tmp_path).error
    assert (tmp_path / "own" / "model.pt").read_text() == "three days of training"
    (tmp_path / "file").write_text("mine")
    assert "file is not a folder" in cli("quickstart -o file", tmp_path).error


@pytest.mark.slow
def test_it_replaces_its_own_earlier_run_and_ends_with_the_table(tmp_path: Path) -> None:
    for stale in ("model.pt", "model.train/config.yaml", "atmc-run/model.onnx", ".atmc-quickstart"):
        (tmp_path / "quickstart" / stale).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "quickstart" / stale).write_text("stale")
    done = run_atmc("quickstart", tmp_path)
    assert done.code == 0, done.err
    commands = [line for line in done.out.splitlines() if line.startswith("quickstart$ atmc-tool ")]
    assert [line.split()[2] for line in commands] == ["train", "compress", "export", "verify"]
    end = done.out[done.out.rindex("Size") :]
    for word in ("dense weights", "gzip of the pruned dense weights", "model.atmc", "model.onnx", "verdict: PASSED"):
        assert word in end
    run = (tmp_path / "quickstart" / "atmc-run").resolve()
    assert end.splitlines()[-1] == f"report: {run / 'verify.html'}, for programs {run / 'verify.json'}"
    report = json.loads((tmp_path / "quickstart" / "atmc-run" / "verify.json").read_text())
    assert report["clean"]["accuracy"] >= 0.97
