"""Runs on two processes, as torchrun starts them, against the same runs on one."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import ROOT, Cli
from hypothesis import given
from hypothesis import strategies as st
from ranks_worker import KEPT, run

from atmc_tool.data import load_data
from atmc_tool.distributed import Ranks
from exporters.atmc_file import decode_model

pytestmark = pytest.mark.xdist_group("ranks")
TOLERANCE = 1e-5  # found: 3e-6 after 40 steps; gradients are the same numbers, added up in another order
SHORT = (
    "--set attack.steps=1 --set evaluation.n=51 --set evaluation.steps=2 --set evaluation.restarts=2 "
    "--set compute.precision=fp32 --set compress.batch_size=65 --set compress.checkpoint_steps=5"
)
LINE = f"compress model.pt --max-steps 24 {SHORT} -q"


def torchrun(line: str, folder: Path, *options: str) -> subprocess.Popen[str]:
    """torchrun with two processes of `line`, running."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", *options]
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests'}", "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [*command, *line.split()],
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def own_lines(errors: str) -> list[str]:
    """Of stderr, what is not torchrun's."""
    return [line for line in errors.splitlines() if line.startswith(("error:", "compress:", "saving", "warning"))]


def processes_of(launcher: int) -> list[int]:
    """The processes that torchrun started, in the order of their ranks."""
    return [int(pid) for pid in Path(f"/proc/{launcher}/task/{launcher}/children").read_text().split()]


def wait_for(path: Path, process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 120
    while not path.exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.005)
    assert path.exists()


@given(st.integers(1, 9), st.integers(0, 60), st.none() | st.integers(2, 20))
def test_shares_and_parts_hold_every_image_once(size: int, more: int, most: int | None) -> None:
    n = size + more
    parts = [Ranks(rank, size).parts(n, most) for rank in range(size)]
    assert [i for own in parts for part in own for i in range(n)[part]] == list(range(n))
    assert len({len(own) for own in parts}) == 1
    assert all(1 <= part.stop - part.start <= (most or n) for own in parts for part in own)
    shares = [Ranks(rank, size).share(n) for rank in range(size)]
    assert [(own[0].start, own[-1].stop) for own in parts] == [(share.start, share.stop) for share in shares]


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[dict[str, Any]]]:
    """The folder of the trainings in ranks_worker.py, and what each of two ranks has in the end."""
    folder = tmp_path_factory.mktemp("ranks")
    process = torchrun(f"{ROOT / 'tests' / 'ranks_worker.py'} {folder}", folder)
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors
    return folder, [torch.load(folder / f"rank{rank}.pt") for rank in range(2)]


def lines(path: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.mark.parametrize("name", ["dense", "free", "in parts", "latent", "hard"])
def test_two_ranks_train_what_one_trains(name: str, shared: tuple[Path, list[dict[str, Any]]], tmp_path: Path) -> None:
    folder, (first, second) = shared
    alone = run(name, load_data("digits"), Ranks(), tmp_path)
    assert set(first[name]) == set(alone)
    for key, tensor in alone.items():
        assert torch.equal(first[name][key], second[name][key])
        torch.testing.assert_close(first[name][key], tensor, rtol=0, atol=TOLERANCE)
        assert torch.equal(first[name][key] != 0, tensor != 0), "kept positions"
    if name in ("latent", "hard"):
        assert lines(folder / name / "metrics.jsonl")[-1]["kept"] == KEPT
    for here, there in zip(*(lines(path / name / "metrics.jsonl") for path in (tmp_path, folder)), strict=True):
        assert there.pop("seconds") > 0
        assert {key: value for key, value in here.items() if key != "seconds"} == pytest.approx(there, rel=1e-3)


def test_two_ranks_have_the_bits_of_one_with_batches_in_two_parts(
    shared: tuple[Path, list[dict[str, Any]]], tmp_path: Path
) -> None:
    alone = run("plain", load_data("digits"), Ranks(), tmp_path, micro_batch=33)
    assert all(torch.equal(tensor, shared[1][0]["plain"][name]) for name, tensor in alone.items())


def test_checkpoints_do_not_say_how_many_ranks_there_were(
    shared: tuple[Path, list[dict[str, Any]]], tmp_path: Path
) -> None:
    run("latent", load_data("digits"), Ranks(), tmp_path)
    states = []
    for path in (shared[0], tmp_path):
        content = (path / "latent" / "checkpoints" / "step-24.ckpt").read_bytes()
        (path / "state.pt").write_bytes(content[64:])
        states.append(torch.load(path / "state.pt"))
    assert states[0].keys() == states[1].keys()
    assert states[0]["network"].keys() == states[1]["network"].keys()
    assert states[0]["method"].keys() == states[1]["method"].keys()


def test_ranks_go_back_together(shared: tuple[Path, list[dict[str, Any]]]) -> None:
    folder, (first, second) = shared
    assert all(torch.equal(tensor, second["diverging"][key]) for key, tensor in first["diverging"].items())
    assert [line for line in lines(folder / "diverging" / "metrics.jsonl") if "rollback" in line]


def test_ranks_that_differ_by_one_bit_are_found_out(shared: tuple[Path, list[dict[str, Any]]]) -> None:
    for rank in shared[1]:
        assert rank["drifting"] == "the processes of this run have come apart. Hint: go on with --resume"


def test_ranks_tell_each_other(shared: tuple[Path, list[dict[str, Any]]]) -> None:
    for number, rank in enumerate(shared[1]):
        assert rank["said"] == ["rank 1 can't", "rank 0 can't"]
        assert (rank["from_first"], rank["together"], rank["agree"]) == (0, number, (True, 10.0))


@pytest.mark.parametrize("victim", [pytest.param(0, marks=pytest.mark.slow), 1])
def test_a_run_goes_on_after_a_rank_was_killed(victim: int, cli: Cli, folder: Path) -> None:
    process = torchrun(f"-m atmc_tool {LINE} -o two --json", folder, "--max-restarts", "3")
    wait_for(folder / "two" / "checkpoints" / "step-5.ckpt", process)
    os.kill(processes_of(process.pid)[victim], signal.SIGKILL)
    out, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors
    assert "exitcode: -9" in errors, "too late"
    assert "failed to connect" not in errors, "to the address of a process that has ended"
    assert [line for line in own_lines(errors) if not line.startswith("error: another process")] == []
    assert_close(folder, json.loads(cli(f"{LINE} -o one --json", folder).out), json.loads(out))
    assert sorted(path.name for path in (folder / "two").iterdir()) == sorted(
        path.name for path in (folder / "one").iterdir()
    )
    assert [line["step"] for line in lines(folder / "two" / "metrics.jsonl")] == [19, 24]


def assert_close(folder: Path, here: dict[str, Any], there: dict[str, Any]) -> None:
    """The runs `one` and `two` came to the same: reports, positions, and values but for rounding."""
    assert here["metrics"] == there["metrics"]
    assert here["kept"] == there["kept"]
    models = [decode_model((folder / name / "model.atmc").read_bytes()) for name in ("one", "two")]
    assert models[0].manifest == models[1].manifest
    for name, weight in models[0].weights.items():
        for factor, entries in weight.factors.items():
            other = models[1].weights[name].factors[factor]
            assert (entries.positions == other.positions).all()
            assert entries.values == pytest.approx(other.values, abs=TOLERANCE)


@pytest.mark.slow
def test_a_run_killed_before_its_first_checkpoint_starts_over_with_the_same_bits(folder: Path) -> None:
    digests = []
    for name in ("cut", "whole"):
        process = torchrun(f"-m atmc_tool {LINE} -o {name}", folder, "--max-restarts", "1")
        if name == "cut":
            wait_for(folder / name / "config.yaml", process)
            os.kill(processes_of(process.pid)[0], signal.SIGKILL)
        _, errors = process.communicate(timeout=300)
        assert process.returncode == 0, errors
        digests.append((folder / name / "model.atmc").read_bytes())
    assert digests[0] == digests[1]


@pytest.mark.slow
def test_interrupted_at_the_same_step_and_resumed_on_one(cli: Cli, folder: Path) -> None:
    long = LINE.replace("--max-steps 24", "--max-steps 200").removesuffix(" -q")
    process = torchrun(f"-m atmc_tool {long} -o two", folder, "--max-restarts", "3")
    wait_for(folder / "two" / "checkpoints" / "step-5.ckpt", process)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=300)
    assert own_lines(errors)[-2:] == [
        "saving a checkpoint … press Ctrl-C again to stop at once",
        "error: interrupted. Hint: the state is saved; go on with --resume",
    ]
    stopped = max(int(path.stem.removeprefix("step-")) for path in (folder / "two" / "checkpoints").iterdir())
    assert 5 <= stopped < 200
    resumed = cli("compress model.pt --resume -q -o two --json", folder)
    assert resumed.code == 0, resumed.err
    here, there = json.loads(cli(f"{long} -q -o one --json", folder).out), json.loads(resumed.out)
    assert here["kept"]["total"] == there["kept"]["total"]
    for key in ("clean_accuracy", "robust_accuracy"):  # after 200 steps rounding shows
        assert here["metrics"]["compressed"][key] == pytest.approx(there["metrics"]["compressed"][key], abs=0.1)
    assert [line["step"] for line in lines(folder / "two" / "metrics.jsonl")] == [*range(19, 200, 19), 200]


@pytest.mark.slow
def test_a_mistake_is_said_once(folder: Path) -> None:
    process = torchrun(f"-m atmc_tool {LINE} --keep 2", folder)
    _, errors = process.communicate(timeout=300)
    assert len(own_lines(errors)) == 1
    process = torchrun("-m atmc_tool compress none.pt", folder)
    _, errors = process.communicate(timeout=300)
    message = "error: none.pt is not there: expected a trained network. Hint: make one with atmc-tool train"
    assert own_lines(errors) == [message]
    process = torchrun(f"-m atmc_tool {LINE} --set compress.batch_size=2", folder, "--nproc-per-node", "3")
    _, errors = process.communicate(timeout=300)
    assert own_lines(errors) == ["error: more processes than images in a batch: expected at most 2, got 3"]


@pytest.mark.slow
def test_two_processes_verify_what_one_verifies(digits_run: Path, cli: Cli, tmp_path: Path) -> None:
    shutil.copytree(digits_run, tmp_path, dirs_exist_ok=True)
    alone = json.loads(cli("verify --json -o one", tmp_path).out)
    process = torchrun("-m atmc_tool verify --json -o two", tmp_path)
    out, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors
    together = json.loads(out)
    assert together == json.loads((tmp_path / "two" / "verify.json").read_text())
    for key in ("clean", "robust", "attacks", "settings", "images"):
        assert together[key] == alone[key]
