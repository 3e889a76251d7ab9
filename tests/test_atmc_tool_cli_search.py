"""`atmc-tool search` as users run it, on a small network for digits."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import ROOT, Cli, environment_without, run_atmc
from test_evaluators_report_run_report import Page

SHORT = "--images 60 --attack-steps 1 -q"


def results(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "results.json").read_text())
    return found


def outcomes(folder: Path) -> list[dict[str, Any]]:
    """The trials, without the seconds they took."""
    lines = [json.loads(line) for line in (folder / "trials.jsonl").read_text().splitlines()]
    return [{**line, "outcome": {**line["outcome"], "seconds": 0}} for line in lines]


@pytest.mark.parametrize(
    ("algorithm", "more"),
    [
        ("uniform", ""),
        ("erk", ""),
        ("lamp", "--structure filter --keep 0.8"),
        ("global", ""),
        ("sensitivity", "--structure channel --measure shrunk --keep 0.8"),
        ("random", "--halving 2"),
        ("ddpg", ""),
        ("tpe", "--steps 1"),
        ("cmaes", "--measure flops"),
        ("nsga2", "--lower 0.01"),
        ("harp", "--set compress.max_steps=4 --set attack.steps=1 --set evaluation.n=20 --set evaluation.steps=1"),
    ],
)
def test_every_algorithm_leaves_a_strategy_within_its_budget(algorithm: str, more: str, cli: Cli, folder: Path) -> None:
    line = f"search model.pt --algorithm {algorithm} --keep 0.2 --evaluations 6 --batch 3 {more} {SHORT} -o out"
    done = cli(line, folder)
    assert done.code == 0, done.err
    found, out = results(folder / "out"), folder / "out"
    measure, limit = found["budget"]["measure"], found["budget"]["limit"]
    searched = algorithm in ("random", "ddpg", "tpe", "cmaes", "nsga2")
    assert found["proposed"] == (6 if searched else 1)
    assert found["best"]["outcome"][measure] <= limit
    assert all(trial["outcome"][measure] <= limit for trial in outcomes(out))
    assert found["front"]
    assert found["dense"]["weights"] == 52768
    assert found["confirmed"] is not None
    strategy = yaml.safe_load((out / "strategy.yaml").read_text())
    assert {name: layer["keep"] for name, layer in strategy["layers"].items()} == found["best"]["rates"]
    assert strategy["found"]["algorithm"] == algorithm
    page = Page((out / "search.html").read_bytes())
    assert len(page.all("svg")) == 3


def test_bytes_are_a_budget_too(cli: Cli, folder: Path) -> None:
    line = f"search model.pt --algorithm random --measure bytes --keep 0.05 --evaluations 2 {SHORT} -o out --json"
    done = cli(line, folder)
    assert done.code == 0, done.err
    found = json.loads(done.out)
    assert found["budget"]["limit"] == int(0.05 * 4 * 52768)
    assert 0.9 * found["budget"]["limit"] < found["best"]["outcome"]["bytes"] <= found["budget"]["limit"]


def test_what_was_found_can_be_compressed_with(cli: Cli, folder: Path) -> None:
    assert cli(f"search model.pt --algorithm random --keep 0.1 --evaluations 2 {SHORT} -o out", folder).code == 0
    short = "--max-steps 2 --set attack.steps=1 --set evaluation.n=20 --set evaluation.steps=1 --bits 8 -q"
    done = cli(f"compress model.pt --strategy out/strategy.yaml --method hydra {short} --json", folder)
    assert done.code == 0, done.err
    assert json.loads(done.out)["kept"]["total"] == results(folder / "out")["best"]["outcome"]["weights"]


def test_a_killed_search_goes_on_to_the_same_end(cli: Cli, folder: Path) -> None:
    line = "search model.pt --algorithm tpe --keep 0.1 --evaluations 24 --images 100 --attack-steps 5"
    command = [sys.executable, "-m", "atmc_tool", *line.split(), "-o", "out", "-q"]
    process = subprocess.Popen(command, cwd=folder, env={**os.environ, "PYTHONPATH": str(ROOT)})
    log, deadline = folder / "out" / "trials.jsonl", time.monotonic() + 120
    while not (log.is_file() and log.read_bytes().count(b"\n") > 4) and time.monotonic() < deadline:
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (folder / "out" / "results.json").exists()
    kept = outcomes(folder / "out")[:4]
    refused = cli(f"{line} -o out --resume --seed 1", folder)
    assert refused.code == 2
    assert "was begun with other settings: search.seed" in refused.error
    assert cli(f"{line} -o out --resume -q", folder).code == 0
    assert cli(f"{line} -o whole -q", folder).code == 0
    assert outcomes(folder / "out") == outcomes(folder / "whole")
    assert outcomes(folder / "out")[:4] == kept
    assert (folder / "out" / "strategy.yaml").read_bytes() == (folder / "whole" / "strategy.yaml").read_bytes()


def test_an_interrupted_search_says_that_it_can_go_on(folder: Path) -> None:
    line = "search model.pt --algorithm random --keep 0.1 --evaluations 4000 --images 100 -q -o out"
    command = [sys.executable, "-m", "atmc_tool", *line.split()]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(command, cwd=folder, env=environment, stderr=subprocess.PIPE, text=True)
    log, deadline = folder / "out" / "trials.jsonl", time.monotonic() + 120
    while not (log.is_file() and log.read_bytes()) and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    try:
        _, errors = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 130, errors
    assert errors == "error: interrupted. Hint: the state is saved; go on with --resume\n"


def children(process: int) -> list[int]:
    """The processes that `process` has started to evaluate."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text().rsplit(")", 1)[1].split()
            command = path.with_name("cmdline").read_bytes()
        except OSError:  # it has ended
            continue
        if int(fields[1]) == process and b"spawn_main" in command:
            found.append(int(path.parent.name))
    return found


@pytest.mark.slow
def test_processes_give_what_one_gives_even_where_one_is_killed(cli: Cli, folder: Path) -> None:
    line = "search model.pt --algorithm tpe --keep 0.1 --evaluations 24 --images 100 --attack-steps 5"
    assert cli(f"{line} -o one -q", folder).code == 0
    command = [sys.executable, "-m", "atmc_tool", *line.split(), "-o", "two", "--workers", "2"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(command, cwd=folder, env=environment, stderr=subprocess.PIPE, text=True)
    log, deadline = folder / "two" / "trials.jsonl", time.monotonic() + 120
    while not (log.is_file() and log.read_bytes()) and time.monotonic() < deadline:
        time.sleep(0.005)
    os.kill(children(process.pid)[0], signal.SIGKILL)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors
    assert [line["number"] for line in outcomes(folder / "two")] == list(range(24))
    assert outcomes(folder / "one") == outcomes(folder / "two")
    assert (folder / "one" / "strategy.yaml").read_bytes() == (folder / "two" / "strategy.yaml").read_bytes()


@pytest.mark.slow
@pytest.mark.xdist_group("ray")
def test_a_cluster_gives_what_one_process_gives(cli: Cli, folder: Path) -> None:
    line = f"search model.pt --algorithm random --keep 0.1 --evaluations 8 {SHORT}"
    assert cli(f"{line} -o one", folder).code == 0
    done = run_atmc(f"{line} -o two --ray", folder)
    assert done.code == 0, done.err
    assert outcomes(folder / "one") == outcomes(folder / "two")
    assert (folder / "one" / "strategy.yaml").read_bytes() == (folder / "two" / "strategy.yaml").read_bytes()


def test_several_searches_are_drawn_together(cli: Cli, folder: Path) -> None:
    for name, options in (("a", "random"), ("b", "random --seed 1"), ("c", "lamp")):
        done = cli(f"search model.pt --algorithm {options} --keep 0.1 --evaluations 3 {SHORT} -o {name}", folder)
        assert done.code == 0, done.err
    assert cli("search --figures a b c", folder).code == 0
    page = Page((folder / "searches.html").read_bytes())
    assert len(page.all("svg")) == 3
    assert "3 finished" in page.text
    assert "searches.html is there" in cli("search --figures a b c", folder).error
    assert "holds no finished search" in cli("search --figures model.pt -o x.html", folder).error


def test_a_plan_writes_nothing(cli: Cli, folder: Path) -> None:
    before = sorted(folder.iterdir())
    shown = cli("search model.pt --keep 0.1 --dry-run", folder)
    assert shown.code == 0, shown.err
    assert "conv2.weight" in shown.out
    plan = json.loads(cli("search model.pt --keep 0.1 --dry-run --json", folder).out)
    assert plan["limit"] == 5276
    assert sorted(folder.iterdir()) == before


@pytest.mark.parametrize(
    ("options", "code", "said"),
    [
        ("model.pt --keep 0.00001", 6, "no strategy meets the budget"),
        ("model.pt --keep 0.1 --lower 0.5", 6, "no strategy meets the budget"),
        ("model.pt --algorithm harp --measure flops", 2, "harp has its budget in weights"),
        ("model.pt --lower 0.5 --upper 0.1", 2, "lower is above upper"),
        ("model.pt --halving 8 --batch 2", 2, "halving 8 would go on with none of 2"),
        ("model.pt --algorithm uniform --halving 2", 2, "halving is for random, ddpg, tpe, cmaes, nsga2"),
        ("missing.pt", 4, "missing.pt is not there"),
        ("model.pt model.pt", 2, "a search takes one network"),
        ("model.pt -o there", 2, "there is not empty. Hint: --resume goes on"),
        ("model.pt -o there --overwrite", 2, "there holds no search to replace"),
        ("model.pt --resume", 2, "nothing to resume in atmc-search"),
    ],
)
def test_mistakes_are_one_line(options: str, code: int, said: str, cli: Cli, folder: Path) -> None:
    (folder / "there").mkdir()
    (folder / "there" / "mine.txt").write_text("mine")
    refused = cli(f"search --algorithm random {options}", folder)
    assert refused.code == code, refused.err
    assert said in refused.error


def test_missing_packages_are_named(folder: Path, tmp_path: Path) -> None:
    without = environment_without(("optuna", "stable_baselines3"), tmp_path / "packages")
    for algorithm, name in (("tpe", "optuna"), ("ddpg", "stable_baselines3")):
        refused = run_atmc(f"search model.pt --algorithm {algorithm}", folder, without)
        assert refused.code == 3, refused.err
        assert name in refused.error
        assert "pip install 'atmc-tool[search]'" in refused.error
