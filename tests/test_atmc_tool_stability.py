"""Real trainings that diverge or collapse, and what the loop does about it."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from conftest import Cli
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from atmc_tool.budget import Budget
from atmc_tool.config import AttackConfig, CompressConfig, ScheduleConfig, TrainConfig
from atmc_tool.data import DataSet, load_data
from atmc_tool.errors import AtmcError, InterruptedRunError
from atmc_tool.methods.atmc import Atmc
from atmc_tool.methods.dense import Dense
from atmc_tool.methods.method import Method
from atmc_tool.model_card import ModelCard
from atmc_tool.models import ARCHITECTURES
from atmc_tool.models.writing import write_model
from atmc_tool.stability import Collapse, all_finite
from atmc_tool.threat_model import parse_threat_model
from atmc_tool.training import Event, train
from atmc_tool.training_step import Setup

# Tried: both diverge, and recover, from 2/3 to 2 times these rates; the number of rollbacks varies.
ATMC = CompressConfig(max_steps=30, lr=6e3, checkpoint_steps=7)  # in the first epoch
CODEBOOKS = CompressConfig(max_steps=30, quantize_lr=50.0, checkpoint_steps=7)  # in the stage of codebooks alone


def atmc(network: nn.Module) -> Method:
    return Atmc(network, ATMC, Budget(2638))


def codebooks(network: nn.Module) -> Method:
    return Atmc(network, CODEBOOKS, Budget(2638))


@pytest.fixture(scope="module")
def digits() -> DataSet:
    return load_data("digits")


@dataclass(frozen=True)
class Run:
    """What a whole run reported, would ship, and wrote into metrics.jsonl."""

    events: list[Event]
    state: dict[str, Tensor]
    metrics: list[dict[str, object]]


class Stopped(Exception):
    """Stands for a kill: nothing is saved after it."""


def run(
    make: Callable[[nn.Module], Method],
    schedule: ScheduleConfig,
    data: DataSet,
    folder: Path,
    *,
    resume: bool = False,
    stop_at: int | None = None,
    kill_at_warning: int | None = None,
    eps: str | None = None,
    start: dict[str, Tensor] | None = None,
) -> tuple[list[Event], dict[str, Tensor]]:
    """The events, and what would be shipped. The network starts from `start`, else from the same weights each time."""
    torch.manual_seed(0)
    network = ARCHITECTURES["digits-cnn"].build()
    if start is not None:
        network.load_state_dict(start)
    method = make(network)
    events: list[Event] = []

    def report(event: Event) -> None:
        events.append(event)
        if len(warnings(events)) == kill_at_warning:
            raise Stopped

    def stop() -> bool:
        return events[-1].step == stop_at

    threat_model = None if eps is None else parse_threat_model(eps)
    setup = Setup(network, (0.0,), (1.0,), torch.device("cpu"), data, threat_model, AttackConfig(steps=2), 3)
    train(setup, method, schedule, folder, digest="d", select=False, resume=resume, report=report, stop=stop)
    return events, {**network.state_dict(), **method.shipped(1.0)}


def warnings(events: list[Event]) -> list[str]:
    return [event.text for event in events if event.kind == "warning"]


def metrics(folder: Path) -> list[dict[str, object]]:
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if key != "seconds"} for line in lines]


CASES = {"atmc": (atmc, ATMC), "codebooks": (codebooks, CODEBOOKS)}


@pytest.fixture(scope="module")
def whole(digits: DataSet, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Run]:
    """Every case without an interruption."""
    runs = {}
    for name, (make, schedule) in CASES.items():
        folder = tmp_path_factory.mktemp(name)
        events, state = run(make, schedule, digits, folder)
        runs[name] = Run(events, state, metrics(folder))
    return runs


@pytest.mark.parametrize(("name", "epoch", "step"), [("atmc", 1, 0), ("codebooks", 3, 20)])
def test_a_run_that_diverges_goes_back_and_on_slower(name: str, epoch: int, step: int, whole: dict[str, Run]) -> None:
    run = whole[name]
    said = warnings(run.events)
    assert 1 <= len(said) <= 3
    assert said[0] == f"training diverged in epoch {epoch}: back to step {step} with 1/2 of the learning rate"
    assert [text[text.index("1/") :] for text in said] == [f"1/{2**n} of the learning rate" for n in (1, 2, 3)][
        : len(said)
    ]
    assert [line["warning"] for line in run.metrics if "warning" in line] == said
    assert [line["step"] for line in run.metrics if "warning" not in line] == [10, 20, 30]
    assert all_finite(run.state.values())


@pytest.mark.parametrize(
    ("name", "interruption"),
    [
        ("atmc", {"stop_at": 9}),  # on the way down, between two checkpoints
        ("codebooks", {"stop_at": 29}),
        ("atmc", {"stop_at": 28}),  # after it
        ("atmc", {"kill_at_warning": 1}),
        ("codebooks", {"kill_at_warning": 1}),
    ],
)
def test_it_resumes_to_the_same_bits(
    name: str, interruption: dict[str, int], whole: dict[str, Run], digits: DataSet, tmp_path: Path
) -> None:
    make, schedule = CASES[name]
    with pytest.raises((InterruptedRunError, Stopped)):
        run(make, schedule, digits, tmp_path, **interruption)  # type: ignore[arg-type]
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 1, "rollback": 9, "warning": "of a future that is gone"}\n{"ep')
    _, resumed = run(make, schedule, digits, tmp_path, resume=True)
    assert resumed.keys() == whole[name].state.keys()
    assert all(torch.equal(tensor, resumed[key]) for key, tensor in whole[name].state.items())
    assert metrics(tmp_path) == whole[name].metrics


def test_killed_between_the_warning_and_the_new_checkpoint(
    whole: dict[str, Run], digits: DataSet, tmp_path: Path
) -> None:
    """What is on disk then: no checkpoint after the sound one, that one with the old rate, the line of the rollback."""
    with pytest.raises(InterruptedRunError):
        run(atmc, ATMC, digits, tmp_path, stop_at=1)
    (tmp_path / "checkpoints" / "step-1.ckpt").unlink()
    line = next(line for line in whole["atmc"].metrics if "rollback" in line)
    (tmp_path / "metrics.jsonl").write_text(json.dumps(line) + "\n")
    _, resumed = run(atmc, ATMC, digits, tmp_path, resume=True)
    assert all(torch.equal(tensor, resumed[name]) for name, tensor in whole["atmc"].state.items())
    assert metrics(tmp_path) == whole["atmc"].metrics


def test_three_times_and_then_an_error(digits: DataSet, tmp_path: Path) -> None:
    hopeless = TrainConfig(max_steps=22, lr=1e9)
    with pytest.raises(
        AtmcError, match=r"diverged in epoch 1, also with 1/8 of the learning rate\. Hint: lower the le"
    ):
        run(lambda network: Dense(network, hopeless), hopeless, digits, tmp_path)
    assert [line.get("rollback") for line in metrics(tmp_path)] == [1, 2, 3]


def test_the_command_line_says_it_in_one_line(cli: Cli, tmp_path: Path) -> None:
    card = ModelCard(arch="digits-cnn", image_shape=(1, 8, 8), n_classes=10, data="digits", eps="0.1", seed=3)
    torch.manual_seed(0)
    write_model(tmp_path / "model.pt", ARCHITECTURES["digits-cnn"].build().state_dict(), card)
    short = "--max-steps 30 --set attack.steps=1 --set evaluation.n=20 --set evaluation.steps=1"
    done = cli(f"compress model.pt {short} --set compress.quantize_lr=40", tmp_path)
    assert done.code == 0, done.err
    said = [line for line in done.err.splitlines() if "warning" in line and "guessing" not in line]
    line = "training diverged in epoch 3: back to step 20 with 1/2 of the learning rate"
    assert said[0] == f"compress: warning: {line}"
    shown = cli("watch --json", tmp_path)
    assert line in json.loads(shown.out)["runs"][0]["warnings"][0]
    quiet = cli(f"compress model.pt {short} --set compress.quantize_lr=40 -q --overwrite", tmp_path)
    assert quiet.err.splitlines() == said


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_all_finite(value: float) -> None:
    tensors = [torch.zeros(()), torch.full((3, 2), 3e38)]
    assert all_finite(tensors)
    tensors[1][1, 1] = value
    assert not all_finite(tensors)


def observed(robust: list[float], clean: list[float]) -> list[bool]:
    """Whether there was a warning, epoch by epoch."""
    collapse = Collapse()
    pairs = zip(robust, clean, strict=True)
    return [collapse.observe({"validation_robust": r, "validation_clean": c}) is not None for r, c in pairs]


@pytest.mark.parametrize(
    ("robust", "clean", "epochs"),
    [
        ([0.2, 0.5, 0.1, 0.1, 0.1], [0.8, 0.9, 0.9, 0.95, 0.99], [3]),  # once, at the second such epoch
        ([0.5, 0.1, 0.5, 0.1, 0.4], [0.9] * 5, []),  # never twice in a row
        ([0.5, 0.26, 0.26, 0.26], [0.9] * 4, []),  # less than half of it is lost
        ([0.09, 0.04, 0.0, 0.0], [0.2, 0.3, 0.5, 0.6], []),  # nothing was there to fall
        ([0.5, 0.1, 0.1, 0.1], [0.9, 0.6, 0.6, 0.6], []),  # all is worse: no overfitting to the attack
        ([0.5, 0.1, 0.0, 0.4, 0.1, 0.1], [0.9] * 6, [2, 5]),  # a second collapse is said again
        ([0.11, 0.0, 0.0], [0.2, 0.3, 0.5], []),  # a network that always says the same has the accuracy of chance
    ],
)
def test_a_collapse(robust: list[float], clean: list[float], epochs: list[int]) -> None:
    assert [epoch for epoch, said in enumerate(observed(robust, clean)) if said] == epochs


@given(st.lists(st.floats(0, 1), max_size=9).map(sorted), st.lists(st.floats(0, 1), min_size=9, max_size=9))
def test_what_gets_better_is_no_collapse(robust: list[float], clean: list[float]) -> None:
    assert not any(observed(robust, clean[: len(robust)]))


def test_a_real_collapse_is_said(digits: DataSet, tmp_path: Path) -> None:
    """A robust network that is trained on clean images alone loses its robustness and nothing else."""
    robust = TrainConfig(max_steps=100)
    events, state = run(lambda net: Dense(net, robust), robust, digits, tmp_path / "robust", eps="0.2")
    assert warnings(events) == []
    clean = TrainConfig(max_steps=60, lr=0.3, warmup=0.9, clean_weight=1)
    events, _ = run(lambda net: Dense(net, clean), clean, digits, tmp_path / "clean", eps="0.2", start=state)
    assert len(warnings(events)) >= 1
    assert warnings(events)[0].startswith("catastrophic overfitting: robust accuracy on validation images fell from ")
    assert events[-1].step == 60  # said, and no more
