"""TensorBoard and MLflow, each read back by its own reader."""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from conftest import Cli, environment_without, run_atmc

from atmc_tool.errors import AtmcError, InterruptedRunError
from atmc_tool.metrics import append_metrics
from atmc_tool.trackers import check_installed, track_result, tracked
from atmc_tool.training import Event

BOTH = ("tensorboard", "mlflow")
SETTINGS = {"seed": 0, "compress": {"lr": 0.1, "size": None}, "data": {"name": "<b>|digits"}}


@pytest.fixture(autouse=True)
def no_server(monkeypatch: pytest.MonkeyPatch) -> None:
    """MLflow as it is where the user has set nothing; what we set does not outlive the test."""
    for name in ("MLFLOW_TRACKING_URI", "MLFLOW_EXPERIMENT_NAME"):
        monkeypatch.delenv(name, raising=False)
    for name in ("MLFLOW_DISABLE_TELEMETRY", "MLFLOW_ALLOW_FILE_STORE"):
        monkeypatch.setenv(name, "true")


def warn(text: str) -> None:
    raise AssertionError(text)


def epoch(step: int, **metrics: float) -> Event:
    return Event("epoch", step, 100, step // 10, 10, 1.0, {"loss": 1 / step, **metrics})


def scalars(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """Tag → (step, value) as TensorBoard shows them."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder / "tensorboard"), size_guidance={"scalars": 0}).Reload()
    return {tag: [(e.step, e.value) for e in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def texts(folder: Path) -> list[str]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder / "tensorboard")).Reload()
    return [e.tensor_proto.string_val[0].decode() for e in events.Tensors("configuration/text_summary")]


def run_of(folder: Path) -> Any:
    """The one run of MLflow in `folder`."""
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=(folder / "mlflow").as_uri())
    experiment = client.get_experiment_by_name("atmc-tool")
    assert experiment is not None
    (run,) = client.search_runs([experiment.experiment_id])
    return run


def history(folder: Path, name: str) -> list[tuple[int, float]]:
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=(folder / "mlflow").as_uri())
    return [(m.step, m.value) for m in client.get_metric_history(run_of(folder).info.run_id, name)]


def cut_off(events: list[Event], folder: Path) -> None:
    with tracked(BOTH, folder, SETTINGS, warn) as track:
        for event in events:
            track(event)
        raise InterruptedRunError("interrupted")


def test_a_run_that_is_cut_and_goes_on(tmp_path: Path) -> None:
    events = [*map(epoch, (10, 20, 30)), Event("step", 31, 100, 4, 10, 1.0, {"loss": 7.0})]
    with pytest.raises(InterruptedRunError):
        cut_off([*events, Event("warning", 31, 100, 4, 10, 1.0, {}, "beware")], tmp_path)
    first = run_of(tmp_path)
    assert first.info.status == "KILLED"
    assert first.data.params == {"seed": "0", "compress.lr": "0.1", "compress.size": "null", "data.name": "<b>|digits"}
    with tracked(BOTH, tmp_path, SETTINGS, warn) as track:
        assert run_of(tmp_path).info.status == "RUNNING"
        for step in (20, 30, 40):  # the last checkpoint was of step 10
            track(epoch(step))
    append_metrics(tmp_path / "metrics.jsonl", {"step": 40})
    track_result(BOTH, tmp_path, SETTINGS, {"bytes_model.atmc": 6253, "test_dense_clean_accuracy": 0.5}, warn)
    expected = [(step, pytest.approx(1 / step)) for step in (10, 20, 30, 40)]
    assert scalars(tmp_path)["loss"] == expected
    assert history(tmp_path, "loss") == expected
    last = run_of(tmp_path)
    assert (last.info.run_id, last.info.status) == (first.info.run_id, "FINISHED")
    for name, value in {"bytes_model.atmc": 6253, "test_dense_clean_accuracy": 0.5}.items():
        assert scalars(tmp_path)[name] == [(40, value)]
        assert history(tmp_path, name) == [(40, value)]
    (text,) = texts(tmp_path)
    assert text.splitlines() == [
        "    seed: 0",
        "    compress.lr: 0.1",
        "    compress.size: null",
        "    data.name: <b>|digits",
    ]


def test_a_tracker_that_fails_is_left_out_and_that_is_said(tmp_path: Path) -> None:
    said: list[str] = []
    with tracked(BOTH, tmp_path, SETTINGS, said.append) as track:
        track(epoch(10))
        shutil.rmtree(tmp_path / "mlflow")
        track(epoch(20))
        track(epoch(30))
    assert len(said) == 1
    assert said[0].startswith("warning: mlflow gets no more numbers: ")
    assert [step for step, _ in scalars(tmp_path)["loss"]] == [10, 20, 30]
    track_result(("mlflow",), tmp_path, SETTINGS, {"bytes": 1}, said.append)
    assert len(said) == 2
    assert "the tracker mlflow can't be opened" in said[1]


def test_a_server_that_is_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with (
        pytest.raises(AtmcError, match=r"tracker mlflow can't be opened: .*127.0.0.1.*leave it out"),
        tracked(("mlflow",), tmp_path, SETTINGS, warn),
    ):
        pytest.fail("it began")


def test_no_tracker_leaves_nothing(tmp_path: Path) -> None:
    check_installed(())
    with tracked((), tmp_path, SETTINGS, warn) as track:
        track(epoch(10))
    track_result((), tmp_path, SETTINGS, {}, warn)
    assert not list(tmp_path.iterdir())


def test_a_missing_package_is_said_before_anything_is_done(tmp_path: Path) -> None:
    environment = environment_without(BOTH, tmp_path / "site")
    line = "train --data digits --arch digits-cnn --eps 0.1 --epochs 1 --set trackers=[tensorboard]"
    failed = run_atmc(line, tmp_path, environment)
    assert failed.code == 3
    assert failed.error == (
        "error: the tracker tensorboard needs a package that is not installed. "
        "Hint: pip install 'atmc-tool[tensorboard]', or leave it out of trackers"
    )
    assert [path.name for path in tmp_path.iterdir()] == ["site"]
    code = "from atmc_tool.trackers import check_installed; check_installed(['mlflow'])"
    done = subprocess.run(
        [sys.executable, "-S", "-c", code], env=environment, capture_output=True, text=True, check=False
    )
    assert "MissingEnvironmentError: the tracker mlflow needs" in done.stderr
    assert "pip install 'atmc-tool[mlflow]'" in done.stderr


def test_train_and_compress_by_the_command_line(cli: Cli, tmp_path: Path) -> None:
    short = "--set attack.steps=1 --set evaluation.n=20 --set evaluation.steps=1 --set evaluation.restarts=1 -q"
    line = f"train --data digits --arch digits-cnn --eps 0.1 --epochs 2 {short}"
    (tmp_path / "atmc.yaml").write_text("trackers: [tensorboard, mlflow]\n")
    assert cli(line, tmp_path).code == 0
    assert cli(f"compress model.pt --epochs 2 {short}", tmp_path).code == 0
    for folder, made in ((tmp_path / "model.train", "bytes_trained"), (tmp_path / "atmc-run", "bytes_model.atmc")):
        lines = [json.loads(each) for each in (folder / "metrics.jsonl").read_text().splitlines()]
        where = {"epoch", "step", "steps", "seconds"}
        for name in set().union(*lines) - where:
            written = [(each["step"], pytest.approx(each[name])) for each in lines if name in each]
            assert scalars(folder)[name] == written
            assert history(folder, name) == written
        assert [step for step, _ in scalars(folder)[made]] == [20]
        assert run_of(folder).info.status == "FINISHED"
        assert run_of(folder).data.params["data.name"] == "digits"
    made_with = (tmp_path / "atmc-run" / "model.atmc").read_bytes()
    assert cli(f"compress model.pt --epochs 2 {short} --overwrite --set trackers=[]", tmp_path).code == 0
    assert (tmp_path / "atmc-run" / "model.atmc").read_bytes() == made_with
    left = {path.name for path in (tmp_path / "atmc-run").iterdir()}
    assert left == {"config.yaml", "checkpoints", "metrics.jsonl", "model.atmc", "report.html"}
