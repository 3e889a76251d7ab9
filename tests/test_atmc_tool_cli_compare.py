"""`atmc-tool compare` on real digits, with trainings of a few steps."""

import csv
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
import yaml
from conftest import ROOT, Cli, run_atmc
from test_evaluators_report_run_report import Page

from atmc_tool.models.reading import read_model
from exporters.atmc_file import read_atmc

pytestmark = pytest.mark.xdist_group("compared")  # one fixture, one process
SETTINGS: dict[str, Any] = {
    "data": {"name": "digits"},
    "model": {"arch": "digits-cnn"},
    "threat_model": {"eps": 0.1},
    "attack": {"steps": 1},
    "train": {"max_steps": 3},
    "compress": {"max_steps": 3},
    "evaluation": {"n": 20, "steps": 1, "restarts": 1, "square_queries": 2},
}
GRID: dict[str, Any] = {
    "settings": SETTINGS,
    "methods": ["dense", "nap", {"atmc-8": {"method": "atmc", "bits": 8}}],
    "keep": [0.1, 0.05],
}
WEIGHTS, TRAINING_IMAGES = 52_768, 1293


def write_grid(folder: Path, **changed: Any) -> Path:
    path = folder / "grid.yaml"
    path.write_text(yaml.safe_dump({**GRID, **changed}))
    return path


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def changes(folder: Path) -> dict[str, int]:
    return {str(path.relative_to(folder)): path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}


def results(folder: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((folder / "out" / "results.json").read_text())
    return content


@pytest.fixture(scope="module")
def compared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with grid.yaml and out/, its comparison, made by the command line."""
    folder = tmp_path_factory.mktemp("compared")
    write_grid(folder)
    done = run_atmc("compare grid.yaml -o out --json", folder)
    assert done.code == 0, done.err
    assert json.loads(done.out) == results(folder)
    assert "[3/6] nap keep 0.1 seed 0\n" in done.err
    return folder


@pytest.fixture
def copy(compared: Path, tmp_path: Path) -> Path:
    """A copy of `compared` to change."""
    return Path(shutil.copytree(compared, tmp_path / "copy"))


def test_results_say_what_the_files_are(compared: Path) -> None:
    out, found = compared / "out", results(compared)
    assert (out / "grid.yaml").read_bytes() == (compared / "grid.yaml").read_bytes()
    names = [run["name"] for run in found["runs"]]
    assert names[:4] == ["dense-seed0", "natural-seed0", "nap-keep0.1-seed0", "nap-keep0.05-seed0"]
    assert found["planned"] == len(names) == 6
    for run in found["runs"][2:]:
        folder = out / "runs" / run["name"]
        manifest = read_atmc(folder / "model.atmc").manifest
        measured = manifest["metrics"]["compressed"]
        assert run["file_bytes"] == (folder / "model.atmc").stat().st_size
        assert run["kept"] == int(float(run["budget"].split()[1]) * WEIGHTS)
        assert run["density"] == run["kept"] / run["weights"] == run["kept"] / WEIGHTS
        assert run["nominal_bytes"] < run["file_bytes"] < run["dense_bytes"] == 212_008
        assert (run["clean_accuracy"], run["robust_accuracy"]) == tuple(
            measured[key] for key in ("clean_accuracy", "robust_accuracy")
        )
        assert (run["attack_steps"], run["restarts"], run["n"], run["eps"]) == (1, 1, 20, "0.1")
        start = out / f"{'natural' if run['label'] == 'nap' else 'dense'}-seed0.pt"
        assert manifest["digests"]["model"] == digest(start)
        passes = 1 if run["label"] == "nap" else 3
        assert (run["steps"], run["passes"]) == (3, 3 * 128 * passes)
        assert run["passes_per_image"] == 3 * 128 * passes / TRAINING_IMAGES
        assert run["seconds"] > 0
        lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        assert run["validation_robust"] == lines[-1].get("validation_robust")
    for label in ("nap", "atmc-8"):  # measured once for all that start from them
        dense = [read_atmc(path).manifest["metrics"]["dense"] for path in out.glob(f"runs/{label}-*/model.atmc")]
        source = "natural" if label == "nap" else "dense"
        card = read_model(out / f"{source}-seed0.pt").card
        assert card is not None
        assert dense == [card.metrics] * 2
    assert yaml.safe_load((out / "natural-seed0.train" / "config.yaml").read_text())["train"]["objective"] == "natural"
    assert found["machine"]["cores"] >= 1
    assert found["command"] == "atmc-tool compare grid.yaml -o out"


def test_every_form_of_the_results_is_there(compared: Path) -> None:
    out = compared / "out"
    lines = list(csv.DictReader((out / "results.csv").read_text().splitlines()))
    assert [line["name"] for line in lines] == [run["name"] for run in results(compared)["runs"]]
    page = Page((out / "compare.html").read_bytes())
    assert "6 of 6 runs finished" in page.text
    assert len(page.all("svg")) == 2
    figure = (out / "compare.svg").read_text()
    ElementTree.fromstring(figure)
    assert ">atmc-8<" in figure
    assert ">natural<" not in figure


def test_a_run_is_what_the_command_line_would_do(cli: Cli, copy: Path) -> None:
    short = " ".join(f"--set evaluation.{key}={value}" for key, value in SETTINGS["evaluation"].items())
    short += " --set attack.steps=1 --max-steps 3 -q"
    assert cli(f"train --data digits --arch digits-cnn --eps 0.1 {short} -o alone.pt", copy).code == 0
    assert digest(copy / "alone.pt") == digest(copy / "out" / "dense-seed0.pt")
    assert cli(f"compress alone.pt --bits 8 --keep 0.05 {short} -o alone", copy).code == 0
    of_grid = copy / "out" / "runs" / "atmc-8-keep0.05-seed0" / "model.atmc"
    assert digest(copy / "alone" / "model.atmc") == digest(of_grid)
    assert cli("inspect out/runs/atmc-8-keep0.05-seed0", copy).code == 0


def test_resume_runs_what_is_not_finished_and_nothing_else(cli: Cli, copy: Path) -> None:
    lost = copy / "out" / "runs" / "nap-keep0.05-seed0" / "model.atmc"
    before, made = changes(copy), digest(lost)
    lost.unlink()
    refused = cli("compare grid.yaml -o out", copy)
    assert (refused.code, refused.error) == (
        2,
        "error: out is not empty. Hint: --resume goes on, --overwrite replaces, -o elsewhere",
    )
    done = cli("compare grid.yaml -o out --resume", copy)
    assert done.code == 0, done.err
    assert done.err.count("finished before") == 5
    assert digest(lost) == made
    touched = {path for path, when in changes(copy).items() if before.get(path) != when}
    own = {"out/grid.yaml", "out/results.json", "out/results.csv", "out/compare.html", "out/compare.svg"}
    assert touched == own | {f"out/runs/{lost.parent.name}/{name}" for name in ("model.atmc", "report.html")}


def test_a_grid_may_grow_but_not_change(cli: Cli, copy: Path) -> None:
    changed = {**SETTINGS, "compress": {"max_steps": 4}}
    write_grid(copy, settings=changed)
    before = changes(copy)
    refused = cli("compare grid.yaml -o out --resume", copy)
    assert refused.code == 2
    assert "the run out/runs/nap-keep0.1-seed0 was begun with other settings: compress" in refused.error
    assert changes(copy) == before
    write_grid(copy, methods=["dense", {"atmc-8": {"method": "atmc", "bits": 8}}], keep=[0.1], verify=True)
    done = cli("compare grid.yaml -o out --resume --json", copy)
    assert done.code == 0, done.err
    dense, compressed = json.loads(done.out)["runs"]
    assert dense["worst_case"] is None
    assert compressed["worst_case"] <= compressed["robust_accuracy"]
    verified = json.loads((copy / "out" / "runs" / compressed["name"] / "verify.json").read_text())
    assert verified["robust"]["accuracy"] == compressed["worst_case"]


def test_another_dense_network_is_not_the_one_that_runs_started_from(cli: Cli, copy: Path) -> None:
    shutil.copy(copy / "out" / "natural-seed0.pt", copy / "out" / "dense-seed0.pt")
    refused = cli("compare grid.yaml -o out --resume", copy)
    assert refused.code == 2
    assert "atmc-8-keep0.1-seed0 was made of another network than out/dense-seed0.pt" in refused.error


def test_overwrite_replaces_a_comparison_alone(cli: Cli, copy: Path) -> None:
    mine = copy / "out" / "runs" / "mine.txt"
    mine.write_text("mine")
    (copy / "other").mkdir()
    (copy / "other" / "run.txt").write_text("mine")
    assert "holds no comparison" in cli("compare grid.yaml -o other --overwrite", copy).error
    write_grid(copy, methods=["dense"], keep=[])
    assert cli("compare grid.yaml -o out --overwrite -q", copy).code == 0
    assert [run["name"] for run in results(copy)["runs"]] == ["dense-seed0"]
    assert sorted(path.name for path in (copy / "out").rglob("*.atmc")) == []
    assert mine.read_text() == "mine"


def test_a_given_dense_network_is_measured_and_compressed(cli: Cli, folder: Path) -> None:
    write_grid(folder, dense="model.pt", methods=["dense", "alr"], keep=[0.2], seeds=[1])
    done = cli("compare grid.yaml -o out -q", folder)
    assert done.code == 0, done.err
    assert "0.2" in done.out
    runs = results(folder)["runs"]
    assert [run["name"] for run in runs] == ["dense", "alr-keep0.2-seed1"]
    assert runs[0]["steps"] is None
    assert runs[0]["n"] == 20
    assert not list((folder / "out").glob("*.pt"))
    stated = read_atmc(folder / "out" / "runs" / "alr-keep0.2-seed1" / "model.atmc").manifest
    assert stated["metrics"]["dense"]["clean_accuracy"] == runs[0]["clean_accuracy"]
    assert stated["config"]["seed"] == 1


def test_a_plan_writes_nothing(cli: Cli, tmp_path: Path) -> None:
    write_grid(tmp_path, seeds=[0, 1])
    shown = cli("compare grid.yaml -o out --dry-run", tmp_path)
    assert shown.code == 0, shown.err
    assert "12 runs" in shown.out
    plan = json.loads(cli("compare grid.yaml -o out --dry-run --json", tmp_path).out)["runs"]
    assert [path.name for path in tmp_path.iterdir()] == ["grid.yaml"]
    assert [row["run"] for row in plan[:3]] == ["dense seed 0", "natural seed 0", "nap keep 0.1 seed 0"]
    assert plan[2]["kept"] == int(0.1 * WEIGHTS)
    assert plan[2]["nominal_bytes"] == 4 * plan[2]["kept"]
    assert {row["state"] for row in plan} == {"new"}


def test_budgets_that_cannot_be_met_are_named_before_anything_is_written(cli: Cli, tmp_path: Path) -> None:
    write_grid(tmp_path, methods=["al0", "alr"], keep=[0.1, 1e-5])
    refused = cli("compare grid.yaml -o out", tmp_path)
    assert refused.code == 6
    assert "2 of 4 budgets can't be met: al0 keep 1e-05: " in refused.error
    assert "alr keep 1e-05: " in refused.error
    assert [path.name for path in tmp_path.iterdir()] == ["grid.yaml"]


@pytest.mark.parametrize(
    ("changed", "code", "said"),
    [
        ({"metods": []}, 2, "unknown configuration key metods. Hint: did you mean methods?"),
        ({"settings": {**SETTINGS, "atack": {}}}, 2, "unknown configuration key atack. Hint: did you mean attack?"),
        ({"methods": [{"al0": {"rhoo": 1}}]}, 2, "method al0: unknown configuration key compress.rhoo"),
        ({"settings": {"data": {"name": "digits"}}}, 2, "no threat model: expected settings: {threat_model: {eps"),
        (
            {"settings": {"threat_model": {"eps": 0.1}}},
            2,
            "the grid states no data: expected settings: {data: {name: mnist}}",
        ),
        ({"base": "mnits"}, 2, "unknown preset"),
        ({"dense": "missing.pt"}, 4, "can't read missing.pt"),
    ],
)
def test_mistakes_are_one_line(changed: dict[str, Any], code: int, said: str, cli: Cli, tmp_path: Path) -> None:
    write_grid(tmp_path, **changed)
    refused = cli("compare grid.yaml", tmp_path)
    assert refused.code == code
    assert said in refused.error
    assert [path.name for path in tmp_path.iterdir()] == ["grid.yaml"]


def test_a_run_that_fails_stops_no_other(cli: Cli, folder: Path) -> None:
    write_grid(folder, dense="model.pt", methods=[{"wild": {"method": "al0", "lr": 1e30}}, "ap"], keep=[0.1])
    done = cli("compare grid.yaml -o out -q --json", folder)
    assert done.code == 1
    assert "1 of 2 runs failed: wild-keep0.1-seed0" in done.err
    wild, ap = json.loads(done.out)["runs"]
    assert wild["state"] == "failed"
    assert "training diverged" in wild["error"]
    assert wild["clean_accuracy"] is None
    assert ap["state"] == "finished"
    assert "training diverged" in Page((folder / "out" / "compare.html").read_bytes()).text


@pytest.mark.slow
def test_an_interrupted_comparison_goes_on(cli: Cli, folder: Path) -> None:
    steps = {**SETTINGS, "compress": {"max_steps": 60, "checkpoint_steps": 7}}
    write_grid(folder, settings=steps, dense="model.pt", methods=["al0"], keep=[0.1])
    command = [sys.executable, "-m", "atmc_tool", "compare", "grid.yaml", "-o", "out"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(command, cwd=folder, env=environment, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 120
    while not list(folder.glob("out/runs/*/checkpoints/*.ckpt")) and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130, errors
    assert errors.endswith("error: interrupted. Hint: the state is saved; go on with --resume\n")
    model = folder / "out" / "runs" / "al0-keep0.1-seed0" / "model.atmc"
    assert not model.exists()
    assert cli("compare grid.yaml -o out --resume -q", folder).code == 0
    assert cli("compare grid.yaml -o whole -q", folder).code == 0
    assert digest(model) == digest(folder / "whole" / "runs" / model.parent.name / model.name)
