"""Budgets, plans, what a file knows, and runs that stop and go on."""

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from conftest import ROOT, Cli

from atmc_tool.cli.compress import only_guesses
from atmc_tool.models import ARCHITECTURES

SHORT = "--set attack.steps=1 --set evaluation.n=20 --set evaluation.steps=1 --set evaluation.restarts=1"


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def config_of(run: Path) -> dict[str, object]:
    config: dict[str, object] = yaml.safe_load((run / "config.yaml").read_text())
    return config


def test_a_plan_writes_nothing_and_says_what_is_feasible(cli: Cli, folder: Path) -> None:
    before = sorted(folder.rglob("*"))
    plan = json.loads(cli("compress model.pt --dry-run --keep 0.02 --bits 3 --json", folder).out)
    assert sorted(folder.rglob("*")) == before
    assert plan["config"]["data"]["name"] == "digits"
    assert plan["config"]["threat_model"]["eps"] == "0.1"
    assert plan["config"]["seed"] == 3
    assert plan["config"]["compress"]["bits"] == 3
    sizes = plan["feasibility"]["sizes"]
    assert sizes["asked for"]["kept"] == int(0.02 * 52_768)
    assert sizes["largest"]["kept"] == 52_768
    for size in sizes.values():
        assert sum(size["layers"].values()) == size["kept"]
        assert size["nominal_bytes"] < size["file_bytes"]
    shown = cli("compress model.pt --dry-run", folder)
    assert "keep: 0.05" in shown.out
    assert "What is feasible" in shown.out
    assert (shown.code, shown.err) == (0, "")


@pytest.mark.parametrize(("size", "limit"), [("8KB", 8000), ("40x", 212_008 // 40)])
def test_a_budget_in_bytes_is_met_and_used(size: str, limit: int, cli: Cli, folder: Path) -> None:
    done = cli(f"compress model.pt --size {size} --max-steps 12 {SHORT} --json -q", folder)
    assert done.code == 0, done.err
    report = json.loads(done.out)
    actual = (folder / "atmc-run" / "model.atmc").stat().st_size
    assert report["model"]["bytes"] == report["sizes"]["model.atmc"] == actual
    assert 0.96 * limit < actual <= limit


def test_an_option_takes_back_the_other_budget_of_a_file(cli: Cli, folder: Path) -> None:
    (folder / "atmc.yaml").write_text("run: here\ncompress: {keep: 0.5, max_steps: 3}\n")
    plan = json.loads(cli("compress model.pt --dry-run --json --size 9KB --set compress.max_steps=2", folder).out)
    assert (plan["config"]["compress"]["keep"], plan["config"]["compress"]["size"]) == (None, "9KB")
    assert plan["config"]["compress"]["max_steps"] == 2
    assert plan["config"]["run"] == "here"


def test_layers_of_the_configuration(cli: Cli, folder: Path) -> None:
    (folder / "mine.yaml").write_text("compress: {rho: 0.2, path: 0.5}\n")
    (folder / "atmc.yaml").write_text("compress: {rho: 0.9}\n")
    line = "compress model.pt --dry-run --json --preset published -c mine.yaml --set compress.path=0.25 --keep 0.1"
    compress = json.loads(cli(line, folder).out)["config"]["compress"]
    assert (compress["factors"], compress["rho"], compress["path"], compress["keep"]) == ("uvc", 0.2, 0.25, 0.1)


@pytest.mark.parametrize(("kill", "code"), [(signal.SIGKILL, -signal.SIGKILL), (signal.SIGINT, 130)])
def test_a_resumed_run_equals_an_uninterrupted_one(kill: int, code: int, cli: Cli, folder: Path) -> None:
    line = f"compress model.pt --max-steps 60 --set compress.checkpoint_steps=7 {SHORT}"
    assert cli(f"{line} -o whole", folder).code == 0
    command = [sys.executable, "-m", "atmc_tool", *line.split()]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(command, cwd=folder, env=environment, stderr=subprocess.PIPE, text=True)
    run = folder / "atmc-run"
    deadline = time.monotonic() + 120
    while not list(run.glob("checkpoints/*.ckpt")) and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(kill)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == code, errors
    assert not (run / "model.atmc").exists()
    if code == 130:
        assert errors.splitlines()[-1].startswith("error: interrupted. Hint: the state is saved")
    other = cli("compress model.pt --resume --keep 0.5", folder)
    assert other.code == 4
    assert "is of another configuration" in other.error
    resumed = cli("compress model.pt --resume", folder)
    assert resumed.code == 0, resumed.err
    assert digest(run / "model.atmc") == digest(folder / "whole" / "model.atmc")
    steps = [json.loads(each)["step"] for each in (run / "metrics.jsonl").read_text().splitlines()]
    assert steps == sorted(set(steps))


def test_one_line_per_epoch_where_stderr_is_no_terminal(cli: Cli, folder: Path) -> None:
    done = cli(f"compress model.pt --epochs 2 {SHORT}", folder)
    first, *lines, last = [line for line in done.err.splitlines() if "guessing" not in line]
    assert first.startswith("training on cpu, in ")
    assert [line.split("  ")[0] for line in lines] == ["compress: epoch 1/2", "compress: epoch 2/2"]
    assert last == "report: atmc-run/report.html"
    assert all(word in lines[-1] for word in ("step", "loss", "clean", "robust", "kept", "primal", "dual", "ETA"))
    assert "\x1b" not in done.out + done.err
    assert cli(f"compress model.pt --epochs 1 {SHORT} -q -o quiet", folder).err == ""


def test_low_rank_is_exported_as_two_layers_and_verified(cli: Cli, folder: Path) -> None:
    short = f"--max-steps 1 {SHORT}"
    assert cli(f"compress model.pt --method alr --keep 0.1 {short} -o low", folder).code == 0
    done = cli("export low --onnx --json", folder)
    assert done.code == 0, done.err
    (exported,) = json.loads(done.out)["files"]
    assert set(exported["factored"]["ranks"]) >= {"conv2.weight"}
    assert exported["factored"]["times"] > 1.1
    verified = cli("verify low --json", folder)
    checks = {check["name"]: check for check in json.loads(verified.out)["verdict"]["checks"]}
    assert checks["same-logits"]["status"] == "passed", checks["same-logits"]
    assert checks["weight-parity"]["status"] == "passed", checks["weight-parity"]
    content = (folder / "low" / "model.onnx").read_bytes()
    assert b"conv2.weight.first" in content
    assert b"conv2.weight.second" in content


def test_a_network_that_only_guesses_is_named_as_such(cli: Cli, folder: Path) -> None:
    done = cli(f"compress model.pt --method nap --keep 0.0002 --max-steps 1 {SHORT}", folder)
    assert done.code == 0, done.err
    assert "warning: the compressed network is no better than guessing (clean accuracy 0." in done.err


@pytest.mark.parametrize(("clean", "said"), [(0.1, True), (0.119, True), (0.2, False), (0.98, False)])
def test_guessing_is_told_apart_by_its_error(clean: float, said: bool) -> None:
    assert only_guesses(clean, 1000, 10) == said


def test_code_of_the_user_for_network_and_data(cli: Cli, folder: Path) -> None:
    (folder / "mine.py").write_text(
        "import numpy as np\nfrom torch import nn\n"
        "def net():\n    return nn.Sequential(nn.Flatten(), nn.Linear(192, 3))\n"
        "def data():\n    x = np.random.default_rng(0).integers(0, 256, (90, 3, 8, 8), dtype=np.uint8)\n"
        "    y = np.arange(90) % 3\n"
        "    return {'x_train': x[:60], 'y_train': y[:60], 'x_test': x[60:], 'y_test': y[60:]}\n"
    )
    mine = "--data mine.py:data"
    short = f"--max-steps 2 --set train.batch_size=8 --set compress.batch_size=8 {SHORT} -q"
    assert cli(f"train {mine} --arch mine.py:net --eps 8/255 -o mine.pt {short}", folder).code == 0
    assert cli(f"compress mine.pt {mine} --arch mine.py:net --keep 0.5 {short}", folder).code == 0
    assert config_of(folder / "atmc-run")["threat_model"] == {"eps": "8/255", "norm": "linf"}
    assert cli("export --onnx", folder).code == 0
    refused = cli("verify", folder)
    assert refused.code == 4
    assert "--data mine.py:data" in refused.error
    assert cli(f"verify {mine} {'--max-drop 1'} -n 20 --steps 1 --restarts 1", folder).code in (0, 5)
    assert json.loads((folder / "atmc-run" / "verify.json").read_text())["data"]["name"] == "mine.py:data"


def test_a_network_that_does_not_export_is_refused_before_training(cli: Cli, folder: Path) -> None:
    (folder / "odd.py").write_text(
        "from torch import nn\n"
        "class Odd(nn.Module):\n"
        "    def __init__(self):\n        super().__init__()\n        self.fc = nn.Linear(64, 10)\n"
        "    def forward(self, x):\n"
        "        return self.fc(x.flatten(1)) if x.sum() > 0 else self.fc(-x.flatten(1))\n"
        "def build():\n    return Odd()\n"
    )
    torch.save({"fc.weight": torch.ones(10, 64), "fc.bias": torch.ones(10)}, folder / "odd.pt")
    failed = cli("compress odd.pt --arch odd.py:build --data digits --eps 0.1", folder)
    assert failed.code == 1
    assert "can't be exported to ONNX" in failed.error
    assert "odd.py:7" in failed.error
    assert not (folder / "atmc-run").exists()


def test_an_operator_that_verify_cannot_attack_is_said_before_training(cli: Cli, folder: Path) -> None:
    (folder / "smooth.py").write_text(
        "import torch\nfrom torch import nn\nclass Wave(nn.Module):\n    def forward(self, x): return torch.sin(x)\n"
        "def build():\n    return nn.Sequential(nn.Flatten(), nn.Linear(64, 10), Wave())\n"
    )
    torch.save({"1.weight": torch.ones(10, 64), "1.bias": torch.ones(10)}, folder / "smooth.pt")
    planned = cli("compress smooth.pt --arch smooth.py:build --data digits --eps 0.1 --dry-run", folder)
    assert planned.code == 0
    assert "warning: verify will fail on this network" in planned.err
    assert "operator Sin" in planned.err
    assert "warning" not in cli("compress model.pt --dry-run", folder).err


def test_a_file_of_others_needs_data_and_threat_model(cli: Cli, folder: Path) -> None:
    state = ARCHITECTURES["digits-cnn"].build().state_dict()
    torch.save({"state_dict": {f"module.{name}": tensor for name, tensor in state.items()}}, folder / "theirs.pth")
    assert "which threat model?" in cli("compress theirs.pth --data digits", folder).error
    assert "which data set?" in cli("compress theirs.pth --eps 0.1", folder).error
    plan = json.loads(cli("compress theirs.pth --data digits --eps 0.1 --dry-run --json", folder).out)
    assert plan["config"]["model"]["arch"] == "digits-cnn"


def test_a_trusted_whole_module_is_compressed_and_resumed(cli: Cli, folder: Path) -> None:
    torch.save(ARCHITECTURES["digits-cnn"].build(), folder / "module.pt")
    line = f"compress module.pt --data digits --eps 0.1 --max-steps 4 {SHORT} -q"
    assert "--trust-pickle" in cli(line, folder).error
    assert cli(f"{line} --trust-pickle", folder).code == 0
    first = digest(folder / "atmc-run" / "model.atmc")
    assert cli("compress module.pt --trust-pickle --resume -q", folder).code == 0
    assert digest(folder / "atmc-run" / "model.atmc") == first
    assert cli("export --onnx", folder).code == 0


def test_a_natural_network_states_no_threat_model(cli: Cli, folder: Path) -> None:
    done = cli(
        f"train --data digits --arch digits-cnn --objective natural --max-steps 3 {SHORT} -q -o n.safetensors --json",
        folder,
    )
    assert done.code == 0, done.err
    card = json.loads(done.out)["card"]
    assert card["eps"] is None
    assert "robust_accuracy" not in card["metrics"]
    assert "which threat model?" in cli("compress n.safetensors", folder).error
    assert np.isclose(json.loads(cli("inspect n.safetensors --json", folder).out)["bytes"], 213_500, rtol=0.01)
    shutil.rmtree(folder / "n.train")
    assert (
        "n.safetensors exists"
        in cli("train --data digits --arch digits-cnn --objective natural -o n.safetensors", folder).error
    )
