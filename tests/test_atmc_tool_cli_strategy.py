"""`compress --strategy`: every method ships exactly what the strategy says, and the run keeps it."""

import json
from pathlib import Path

import pytest
import torch
import yaml
from conftest import Cli

from atmc_tool.budget import Budget
from atmc_tool.cli.strategies import with_strategy
from atmc_tool.config import build_config
from atmc_tool.methods import compression_method
from atmc_tool.models import resolve_architecture
from atmc_tool.search.own_allocation import from_model
from exporters.atmc_file import read_atmc

SHORT = "--set attack.steps=1 --set evaluation.n=20 --set evaluation.steps=1 --set evaluation.restarts=1 -q"
WEIGHTS = {"conv1.weight": 288, "conv2.weight": 18_432, "fc1.weight": 32_768, "fc2.weight": 1_280}
KEPT = {"conv1.weight": 200, "conv2.weight": 1_001, "fc1.weight": 333, "fc2.weight": 640}
BITS = {"conv1.weight": 5, "conv2.weight": 2, "fc1.weight": 1, "fc2.weight": 3}
PRUNING = ("atmc", "al0", "ap", "nap", "admm", "hydra", "harp", "lwm")


def strategy(folder: Path, **facts: object) -> Path:
    """A file that keeps KEPT, in BITS where `bits=True`."""
    bits = facts.pop("bits", False)
    layers = {
        name: {"keep": kept / WEIGHTS[name], **({"bits": BITS[name]} if bits else {})} for name, kept in KEPT.items()
    }
    path = folder / "strategy.yaml"
    path.write_text(yaml.safe_dump({"layers": layers, **facts}))
    return path


def shipped(folder: Path) -> dict[str, tuple[int, int]]:
    """Name → (kept entries, bits) of model.atmc."""
    weights = read_atmc(folder / "atmc-run" / "model.atmc").weights
    return {
        name: (weight.factors[weight.main].kept, weight.factors[weight.main].bits) for name, weight in weights.items()
    }


def test_what_ships_is_exactly_the_strategy(cli: Cli, folder: Path) -> None:
    strategy(folder, bits=True)
    done = cli(f"compress model.pt --strategy strategy.yaml --max-steps 8 {SHORT}", folder)
    assert done.code == 0, done.err
    assert shipped(folder) == {name: (KEPT[name], BITS[name]) for name in KEPT}


@pytest.mark.parametrize("bits", [False, True])
@pytest.mark.parametrize("method", PRUNING)
def test_every_method_keeps_exactly_the_strategy(method: str, bits: bool, tmp_path: Path) -> None:
    path = strategy(tmp_path, bits=bits)
    torch.manual_seed(0)
    network = resolve_architecture("digits-cnn").build(10)
    plain = {"bits": None, "quantize_share": 0.0} if method == "atmc" and not bits else {}
    stated = build_config({"compress": {"method": method, "strategy": str(path), **plain}})
    config = with_strategy(stated, network, (1, 8, 8)).compress
    assert config.keep is not None
    made = compression_method(network, config, Budget(int(config.keep * sum(WEIGHTS.values()))), (1, 8, 8))
    for number in range(10):
        for parameter in made.parameters():
            parameter.grad = None
        logits = torch.func.functional_call(network, made.weights(number / 10), (torch.randn(8, 1, 8, 8),))
        loss = torch.nn.functional.cross_entropy(logits, torch.randint(10, (8,)))
        penalty = made.penalty(number / 10)
        torch.autograd.backward(loss if penalty is None else loss + penalty)
        with torch.no_grad():
            for parameter in made.parameters():
                if parameter.grad is not None:
                    parameter -= 0.05 * parameter.grad
        made.after_step(number / 10, number + 1)
    made.finish()
    found = {name: weight.factors[weight.main] for name, weight in made.compressed().items()}
    assert {name: factor.kept for name, factor in found.items()} == KEPT
    assert made.kept == sum(KEPT.values())
    assert {name: factor.bits for name, factor in found.items()} == (BITS if bits else dict.fromkeys(KEPT, 32))


def test_a_run_does_not_depend_on_the_file_later(cli: Cli, folder: Path) -> None:
    path = strategy(folder)
    plan = json.loads(cli("compress model.pt --strategy strategy.yaml --dry-run --json", folder).out)
    assert plan["config"]["compress"]["strategy"] is None
    assert plan["config"]["compress"]["layers"] == {name: kept / WEIGHTS[name] for name, kept in KEPT.items()}
    assert plan["feasibility"]["sizes"]["asked for"]["layers"] == KEPT
    assert list(plan["feasibility"]["sizes"]) == ["asked for"]
    shown = cli("compress model.pt --strategy strategy.yaml --dry-run", folder).out
    assert "1.0162%" in shown  # 333 of 32,768
    assert cli(f"compress model.pt --strategy strategy.yaml --max-steps 3 {SHORT}", folder).code == 0
    for option in ("--strategy strategy.yaml", ""):
        (folder / "atmc-run" / "model.atmc").unlink()
        again = cli(f"compress model.pt --max-steps 3 --resume {option} {SHORT}", folder)
        assert again.code == 0, again.err
        assert {name: kept for name, (kept, _) in shipped(folder).items()} == KEPT
        path.unlink(missing_ok=True)


def test_units_of_structures(cli: Cli, folder: Path) -> None:
    layers = {"conv1.weight": 1.0, "conv2.weight": 7 / 32, "fc1.weight": 100 / 256, "fc2.weight": 0.5}
    (folder / "s.json").write_text(json.dumps({"structure": "channel", "layers": layers}))
    done = cli(f"compress model.pt --method hydra --strategy s.json --max-steps 6 {SHORT}", folder)
    assert done.code == 0, done.err
    found = from_model(read_atmc(folder / "atmc-run" / "model.atmc").weights, "channel")
    assert found.shares == layers
    assert "structure: channel" in (folder / "atmc-run" / "config.yaml").read_text()


def test_ranks_of_alr(cli: Cli, folder: Path) -> None:
    layers = {"conv1.weight": 1.0, "conv2.weight": 0.1, "fc1.weight": {"keep": 0.5, "rank": 7}, "fc2.weight": 0.001}
    (folder / "s.yaml").write_text(yaml.safe_dump({"layers": layers}))
    done = cli(f"compress model.pt --method alr --strategy s.yaml --max-steps 3 {SHORT}", folder)
    assert done.code == 0, done.err
    recorded = yaml.safe_load((folder / "atmc-run" / "config.yaml").read_text())["compress"]["layers"]
    ranks = {name: rate["rank"] for name, rate in recorded.items()}
    assert ranks == {"conv1.weight": 9, "conv2.weight": 1_843 // (64 + 288), "fc1.weight": 7, "fc2.weight": 1}
    kept = {
        name: sum(f.kept for f in w.factors.values())
        for name, w in read_atmc(folder / "atmc-run" / "model.atmc").weights.items()
    }
    assert kept["conv1.weight"] == 288
    assert kept["fc1.weight"] <= 7 * (128 + 256)


def test_the_allocation_of_a_finished_run_is_a_strategy(cli: Cli, folder: Path) -> None:
    assert cli(f"compress model.pt --keep 0.03 --bits 3 --max-steps 6 -o first {SHORT}", folder).code == 0
    done = cli(f"compress model.pt --method lwm --strategy first --max-steps 3 {SHORT}", folder)
    assert done.code == 0, done.err
    first = from_model(read_atmc(folder / "first" / "model.atmc").weights)
    second = from_model(read_atmc(folder / "atmc-run" / "model.atmc").weights)
    assert second.shares == first.shares


def test_a_grid_runs_strategies_beside_budgets(cli: Cli, folder: Path) -> None:
    strategy(folder)
    grid = {
        "dense": "model.pt",
        "settings": {"compress": {"max_steps": 4}, "attack": {"steps": 1}, "evaluation": {"n": 20, "steps": 1}},
        "methods": ["lwm", {"lwm-s": {"method": "lwm", "strategy": "strategy.yaml"}}],
        "keep": [0.05],
    }
    (folder / "grid.yaml").write_text(yaml.safe_dump(grid))
    plan = json.loads(cli("compare grid.yaml --dry-run --json", folder).out)
    assert [run["run"] for run in plan["runs"]] == ["lwm keep 0.05 seed 0", "lwm-s strategy strategy.yaml seed 0"]
    assert plan["runs"][1]["kept"] == sum(KEPT.values())
    assert cli("compare grid.yaml -o out -q", folder).code == 0
    weights = read_atmc(folder / "out" / "runs" / "lwm-s-strategy-seed0" / "model.atmc").weights
    assert {name: weight.factors[weight.main].kept for name, weight in weights.items()} == KEPT
    again = cli("compare grid.yaml -o out -q --resume", folder)
    assert again.code == 0, again.err


@pytest.mark.parametrize(
    ("options", "code", "message"),
    [
        ("--strategy strategy.yaml --keep 0.1", 2, "give one of keep, size, nominal_size and strategy"),
        ("--strategy strategy.yaml --structure filter", 2, "is for the structure irregular: got filter"),
        ("--strategy strategy.yaml --set compress.scope=global", 2, "expected scope: layer"),
        ("--strategy strategy.yaml --set compress.factors=uvc", 2, "not about factors U V C"),
        ("--strategy strategy.yaml --set compress.layers.fc1.weight=0.5", 2, "give layers or strategy, not both"),
        ("--strategy strategy.yaml --method dense", 2, "dense keeps every weight"),
        ("--strategy missing.yaml", 4, "missing.yaml"),
        ("--strategy wrong.yaml", 4, "a layer that the network has not"),
        ("--strategy few.yaml", 4, "says nothing of 3 of 4 layers"),
        ("--strategy date.yaml", 4, "date.yaml is not valid YAML or JSON"),
        ("--strategy long.json", 4, "long.json is not valid YAML or JSON"),
    ],
)
def test_mistakes_are_one_line(options: str, code: int, message: str, cli: Cli, folder: Path) -> None:
    strategy(folder)
    (folder / "wrong.yaml").write_text("layers: {conv9.weight: 0.5}")
    (folder / "few.yaml").write_text("layers: {conv1.weight: 0.5}")
    (folder / "date.yaml").write_text("layers: 2024-99-99")
    (folder / "long.json").write_text("9" * 5000)
    done = cli(f"compress model.pt {options} --dry-run", folder)
    assert done.code == code
    assert message in done.error


def test_a_strategy_on_the_command_line_takes_the_place_of_a_budget_in_a_file(cli: Cli, folder: Path) -> None:
    strategy(folder)
    (folder / "atmc.yaml").write_text("compress: {keep: 0.5}")
    plan = json.loads(cli("compress model.pt --strategy strategy.yaml --dry-run --json", folder).out)
    assert plan["feasibility"]["sizes"]["asked for"]["kept"] == sum(KEPT.values())


def test_a_file_does_not_speak_as_the_program(cli: Cli, folder: Path) -> None:
    strategy(folder, found={"warning": "x\r\x1b[2Kverdict: PASSED"})
    done = cli("compress model.pt --strategy strategy.yaml --dry-run", folder)
    assert done.code == 0, done.err
    assert "verdict" not in done.out + done.err
