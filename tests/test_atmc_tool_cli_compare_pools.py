"""`atmc-tool compare` in several processes and on a Ray cluster of this machine: the results of one process."""

import json
import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path
from subprocess import PIPE
from typing import Any

import fsspec
import pytest
import yaml
from conftest import ROOT, Cli, environment_without, run_atmc

pytestmark = [pytest.mark.xdist_group("pools"), pytest.mark.timeout(300)]
GRID: dict[str, Any] = {
    "settings": {
        "data": {"name": "digits"},
        "model": {"arch": "digits-cnn"},
        "threat_model": {"eps": 0.1},
        "attack": {"steps": 1},
        "train": {"max_steps": 3},
        "compress": {"max_steps": 3},
        "evaluation": {"n": 20, "steps": 1, "restarts": 1},
    },
    "methods": ["dense", "al0", "ap"],
    "keep": [0.1],
}
DIFFERENT = ("results.json", "results.csv", "compare.html", "report.html", "metrics.jsonl")  # they state times


def write_grid(folder: Path, **changed: Any) -> None:
    (folder / "grid.yaml").write_text(yaml.safe_dump({**GRID, **changed}))


def files(folder: Path) -> dict[str, bytes | None]:
    """Every file with its content, but that of files which say how long something took; names of folders left out."""
    found = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file() and path.suffix != ".ckpt":  # a run that goes on has others
            content = path.read_bytes().replace(f"{folder.name}/".encode(), b"")
            found[str(path.relative_to(folder))] = None if path.name.endswith(DIFFERENT) else content
    return found


def results(folder: Path) -> dict[str, Any]:
    """Of results.json, without times and the command."""

    def timeless(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: timeless(part) for key, part in value.items() if key not in ("seconds", "command")}
        return [timeless(part) for part in value] if isinstance(value, list) else value

    content: dict[str, Any] = timeless(json.loads((folder / "results.json").read_text()))
    return content


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with grid.yaml and `out`, made run after run in one process."""
    folder = tmp_path_factory.mktemp("alone")
    write_grid(folder)
    done = run_atmc("compare grid.yaml -o out -q", folder)
    assert done.code == 0, done.err
    return folder


def start(line: str, folder: Path) -> "subprocess.Popen[str]":
    """`atmc-tool LINE`, running."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "atmc_tool", *shlex.split(line)]
    return subprocess.Popen(command, cwd=folder, env=environment, stdout=PIPE, stderr=PIPE, text=True)


def workers(process: int) -> list[int]:
    """Processes that do trials of `process`: spawned ones, or Ray's."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        try:
            line = (path / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            if ("spawn_main" in line or line.startswith("ray::_task")) and process in ancestors(int(path.name)):
                found.append(int(path.name))
        except OSError:
            continue
    return found


def ancestors(process: int) -> list[int]:
    found = []
    while process > 1:
        process = int(Path(f"/proc/{process}/stat").read_text().rsplit(")", 1)[1].split()[1])
        found.append(process)
    return found


def check_same(folder: Path, alone: Path) -> None:
    assert files(folder / "out") == files(alone / "out")
    assert results(folder / "out") == results(alone / "out")


@pytest.mark.parametrize("pool", ["--workers 2", "--ray"])
def test_a_pool_that_loses_a_worker_leaves_the_files_of_one_process(pool: str, alone: Path, tmp_path: Path) -> None:
    write_grid(tmp_path)
    with start(f"compare grid.yaml -o out --json {pool}", tmp_path) as process:
        while not (found := workers(process.pid)):
            assert process.poll() is None, process.communicate()
            time.sleep(0.02)
        time.sleep(1)  # into its work
        os.kill(found[0], signal.SIGKILL)
        out, errors = process.communicate(timeout=250)
    assert process.returncode == 0, errors
    check_same(tmp_path, alone)
    assert json.loads(out) == json.loads((tmp_path / "out" / "results.json").read_text())
    for title in ("[1/3] dense seed 0", "[2/3] al0 keep 0.1 seed 0", "[3/3] ap keep 0.1 seed 0"):
        assert errors.count(f"{title}: finished\n") == 1
        assert errors.count(title) == 1
    assert not workers(process.pid)


@pytest.mark.slow
def test_what_is_interrupted_here_goes_on_elsewhere(alone: Path, tmp_path: Path) -> None:
    write_grid(tmp_path)
    with start("compare grid.yaml -o out --workers 2", tmp_path) as process:
        while not (tmp_path / "out" / "runs" / "ap-keep0.1-seed0" / "config.yaml").exists():
            assert process.poll() is None, process.communicate()
            time.sleep(0.02)
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=120)
    assert process.returncode == 130, errors
    assert errors.endswith("error: interrupted. Hint: the state is saved; go on with --resume\n")
    assert "Traceback" not in errors
    assert not (tmp_path / "out" / "runs" / "ap-keep0.1-seed0" / "model.atmc").exists()
    done = run_atmc("compare grid.yaml -o out --resume --ray", tmp_path)
    assert done.code == 0, done.err
    assert "[1/3] dense seed 0: finished before\n" in done.err
    assert results(tmp_path / "out") == results(alone / "out")
    for name in ("dense-seed0.pt", "runs/al0-keep0.1-seed0/model.atmc", "runs/ap-keep0.1-seed0/model.atmc"):
        assert (tmp_path / "out" / name).read_bytes() == (alone / "out" / name).read_bytes()


def test_a_run_that_fails_on_a_worker_stops_no_other(cli: Cli, folder: Path) -> None:
    write_grid(folder, dense="model.pt", methods=[{"wild": {"method": "al0", "lr": 1e30}}, "ap"])
    done = cli("compare grid.yaml -o out -q --json --workers 2", folder)
    assert done.code == 1
    wild, ap = json.loads(done.out)["runs"]
    assert "training diverged" in wild["error"]
    assert ap["state"] == "finished"


@pytest.mark.parametrize("kind", ["memory", "file"])
def test_results_on_another_file_system(kind: str, cli: Cli, folder: Path) -> None:
    url = {"memory": f"memory://{folder.name}/out", "file": (folder / "out").as_uri()}[kind]
    files, root = fsspec.core.url_to_fs(url)
    write_grid(folder, dense="model.pt", methods=["ap"], keep=[0.2, 0.1])
    made = cli(f"compare grid.yaml -o {url}", folder)
    assert made.code == 0, made.err
    assert made.out.endswith(f"report: {url}/compare.html\n")
    model = f"{root}/runs/ap-keep0.1-seed0/model.atmc"
    content = files.cat_file(model)
    assert sorted(path.rpartition("/")[2] for path in files.ls(root, detail=False)) == [
        *("compare.html", "compare.svg", "grid.yaml", "results.csv", "results.json", "runs")
    ]
    assert "is not empty" in cli(f"compare grid.yaml -o {url}", folder).error
    files.rm_file(model)
    again = cli(f"compare grid.yaml -o {url} --resume", folder)
    assert again.code == 0, again.err
    assert "[1/2] ap keep 0.2 seed 0: finished before\n" in again.err
    assert files.cat_file(model) == content
    assert url in files.cat_file(f"{root}/compare.html").decode()
    write_grid(folder, dense="model.pt", methods=["dense"], keep=[])
    assert cli(f"compare grid.yaml -o {url} --overwrite -q", folder).code == 0
    assert not files.exists(f"{root}/runs/ap-keep0.1-seed0/model.atmc")


@pytest.mark.parametrize(
    ("options", "code", "said"),
    [
        ("--workers 2 --ray", 2, "--workers and --ray exclude each other"),
        ("--gpus 1", 2, "--cpus and --gpus are those of a run on Ray"),
        ("--ray nowhere", 2, "not the address of a Ray cluster"),
        ("--ray 127.0.0.1:1", 3, "no Ray cluster at 127.0.0.1:1: got "),
        ("--ray=ray://127.0.0.1:1", 3, "no Ray cluster at ray://127.0.0.1:1: got "),
        ("-o nothing://x", 3, "can't use nothing://x: got Protocol not known: nothing"),
    ],
)
def test_options_that_do_not_fit_are_one_line(options: str, code: int, said: str, cli: Cli, tmp_path: Path) -> None:
    write_grid(tmp_path)
    refused = cli(f"compare grid.yaml {options}", tmp_path)
    assert refused.code == code
    assert said in refused.error
    assert [path.name for path in tmp_path.iterdir()] == ["grid.yaml"]


def test_without_ray_one_line_says_how_to_install_it(tmp_path: Path) -> None:
    write_grid(tmp_path)
    environment = environment_without(("ray",), tmp_path / "packages")
    refused = run_atmc("compare grid.yaml --ray", tmp_path, environment)
    assert refused.code == 3
    assert "pip install 'atmc-tool[cluster]'" in refused.error
