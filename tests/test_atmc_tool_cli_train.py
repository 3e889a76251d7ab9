import json
from pathlib import Path

import torch
from conftest import Cli

from atmc_tool.models.reading import read_model
from atmc_tool.settings import read_yaml

SHORT = "--set attack.steps=1 --set evaluation.n=20 --set evaluation.steps=1 --set evaluation.restarts=1"
TRAIN = f"train --data digits --arch digits-cnn --eps 0.1 {SHORT}"


def test_the_file_knows_what_the_next_command_needs(cli: Cli, tmp_path: Path) -> None:
    done = cli(f"{TRAIN} --max-steps 3 --seed 5 -q --json", tmp_path)
    assert (done.code, done.err) == (0, "")
    report = json.loads(done.out)
    file = read_model(tmp_path / "model.pt")
    assert file.card is not None
    assert report["card"] == file.card.model_dump(mode="json")
    assert (file.card.arch, file.card.data, file.card.eps, file.card.seed) == ("digits-cnn", "digits", "0.1", 5)
    stated = {"n": 20, "norm": "linf", "eps": "0.1", "attack": "pgd", "steps": 1, "restarts": 1, "split": "test"}
    assert stated.items() <= file.card.metrics.items()
    assert {path.name for path in (tmp_path / "model.train").iterdir()} == {
        "config.yaml",
        "metrics.jsonl",
        "checkpoints",
        "report.html",
    }


def test_the_same_seed_gives_the_same_file(cli: Cli, tmp_path: Path) -> None:
    for name in ("a", "b"):
        assert cli(f"{TRAIN} --max-steps 3 -q -o {name}.pt", tmp_path).code == 0
    assert cli(f"{TRAIN} --max-steps 3 --seed 1 -q -o c.pt", tmp_path).code == 0
    a, b, c = ((tmp_path / f"{name}.pt").read_bytes() for name in "abc")
    assert a == b != c


def test_resuming_a_finished_training_gives_the_same_file(cli: Cli, tmp_path: Path) -> None:
    assert cli(f"{TRAIN} --max-steps 12 -q", tmp_path).code == 0
    first = (tmp_path / "model.pt").read_bytes()
    (tmp_path / "model.pt").unlink()
    assert cli("train --resume -q", tmp_path).code == 0
    assert (tmp_path / "model.pt").read_bytes() == first


def test_an_existing_output_is_kept_unless_told(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "model.pt").write_text("mine")
    failed = cli(f"{TRAIN} --max-steps 2", tmp_path)
    assert failed.code == 2
    assert failed.error == "error: model.pt exists. Hint: --overwrite replaces it, -o names another file"
    assert (tmp_path / "model.pt").read_text() == "mine"
    assert cli(f"{TRAIN} --max-steps 2 --overwrite -q", tmp_path).code == 0
    assert torch.load(tmp_path / "model.pt", weights_only=True)["state_dict"]


def test_a_time_limit_that_leaves_nothing_for_training_is_said_before_it(cli: Cli, tmp_path: Path) -> None:
    long = "--set evaluation.n=360 --set evaluation.steps=100000"
    failed = cli(f"{TRAIN} {long} --time-limit 5s", tmp_path)
    assert failed.code == 2
    assert "a time limit of 5 s is too short: starting took" in failed.error
    assert "--set evaluation.n=" in failed.error
    assert list(tmp_path.iterdir()) == []


def test_a_time_limit_shortens_the_schedule(cli: Cli, tmp_path: Path) -> None:
    done = cli(f"{TRAIN} --set train.epochs=100000 --time-limit 15s", tmp_path)
    assert done.code == 0, done.err
    assert "the time limit ended the schedule after" in done.err
    last = json.loads((tmp_path / "model.train" / "metrics.jsonl").read_text().splitlines()[-1])
    assert last["step"] < last["steps"] == 1_000_000
    assert (tmp_path / "model.pt").exists()


def test_an_objective_is_an_option(cli: Cli, tmp_path: Path) -> None:
    more = "--set attack.steps=2 --set train.label_smoothing=0.1 --set train.average=0.5"
    assert cli(f"{TRAIN} {more} --objective free --max-steps 12 -q", tmp_path).code == 0
    config = read_yaml(tmp_path / "model.train" / "config.yaml")
    assert (config["train"]["objective"], config["train"]["label_smoothing"]) == ("free", 0.1)
    (line,) = (tmp_path / "model.train" / "metrics.jsonl").read_text().splitlines()[:1]
    assert "validation_single_step" in json.loads(line)
    compressed = cli("compress model.pt --objective n-fgsm --max-steps 3 -q --set attack.loss=margin", tmp_path)
    assert compressed.code == 0, compressed.err
    failed = cli(f"{TRAIN} --objective fast", tmp_path)
    assert failed.code == 2
    assert "'fast' is not one of 'natural', 'mixed'" in failed.error
