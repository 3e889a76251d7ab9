import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from atmc_tool.budget import Budget
from atmc_tool.config import AttackConfig, CompressConfig, ScheduleConfig, TrainConfig
from atmc_tool.data import DataSet, load_data
from atmc_tool.data.images import Images
from atmc_tool.devices import select_device
from atmc_tool.distributed import Ranks
from atmc_tool.errors import InputError, InterruptedRunError, MissingEnvironmentError
from atmc_tool.methods.atmc import Atmc
from atmc_tool.methods.dense import Dense
from atmc_tool.methods.method import Method
from atmc_tool.models import resolve_architecture
from atmc_tool.threat_model import parse_threat_model
from atmc_tool.training import Event, _Loop, planned_steps, train
from atmc_tool.training_step import Setup


@pytest.fixture(scope="module")
def digits() -> DataSet:
    return load_data("digits")


def network() -> nn.Module:
    torch.manual_seed(0)
    return resolve_architecture("digits-cnn").build()


def setup(net: nn.Module, data: DataSet, eps: str | None = "0.1") -> Setup:
    threat_model = None if eps is None else parse_threat_model(eps)
    return Setup(net, (0.0,), (1.0,), torch.device("cpu"), data, threat_model, AttackConfig(steps=2), 3)


def run(
    net: nn.Module,
    method: Method,
    schedule: ScheduleConfig,
    data: DataSet,
    folder: Path,
    *,
    eps: str | None = "0.1",
    resume: bool = False,
    stop_at: int | None = None,
    select: bool = False,
    digest: str = "d",
    time_limit: float | None = None,
) -> list[Event]:
    events: list[Event] = []

    def stop() -> bool:
        return stop_at is not None and events[-1].step == stop_at

    arguments = {"digest": digest, "select": select, "resume": resume, "time_limit": time_limit}
    arguments |= {"report": events.append, "stop": stop}
    train(setup(net, data, eps), method, schedule, folder, **arguments)  # type: ignore[arg-type]
    return events


COMPRESS = [
    CompressConfig(max_steps=30, checkpoint_steps=7),
    CompressConfig(max_steps=30, checkpoint_steps=7, projection="hard", factors="uvc", bits=2),
    CompressConfig(max_steps=30, checkpoint_steps=7, bits=None),
    CompressConfig.model_validate({"method": "admm", "rounds": 2, "bits": 4, "max_steps": 30, "checkpoint_steps": 7}),
    CompressConfig.model_validate({"method": "hydra", "structure": "2:4", "max_steps": 30, "checkpoint_steps": 7}),
]


@pytest.mark.parametrize(
    ("config", "stop_at"),
    [
        *((COMPRESS[0], step) for step in (5, 18, 26)),
        (COMPRESS[1], 24),
        (COMPRESS[2], 18),
        *((COMPRESS[3], step) for step in (4, 11, 17, 25)),
        *((COMPRESS[4], step) for step in (3, 18)),
    ],
)
def test_a_resumed_run_ends_with_the_same_bits(
    config: CompressConfig, stop_at: int, digits: DataSet, tmp_path: Path
) -> None:
    def method(net: nn.Module) -> Atmc:
        return Atmc(net, config, Budget(2638))

    net = network()
    whole = method(net)
    run(net, whole, config, digits, tmp_path / "whole")
    net = network()
    with pytest.raises(InterruptedRunError):
        run(net, method(net), config, digits, tmp_path / "cut", stop_at=stop_at)
    torch.rand(17)  # the state of the global generator must not matter
    net = network()
    resumed = method(net)
    run(net, resumed, config, digits, tmp_path / "cut", resume=True)
    for name, weight in whole.compressed().items():
        other = resumed.compressed()[name]
        assert set(weight.factors) == set(other.factors)
        for factor, sparse in weight.factors.items():
            np.testing.assert_array_equal(sparse.positions, other.factors[factor].positions)
            np.testing.assert_array_equal(sparse.values, other.factors[factor].values)
    texts = [(tmp_path / folder / "metrics.jsonl").read_text().splitlines() for folder in ("whole", "cut")]
    lines = [[json.loads(line) for line in text] for text in texts]
    for a, b in zip(*lines, strict=True):
        assert {k: v for k, v in a.items() if k != "seconds"} == {k: v for k, v in b.items() if k != "seconds"}


@pytest.mark.parametrize(
    ("config", "kept"), [(COMPRESS[0], 4), (COMPRESS[0], 2638), (COMPRESS[1], 100), (COMPRESS[2], 2638)]
)
def test_the_result_meets_every_constraint_exactly(
    config: CompressConfig, kept: int, digits: DataSet, tmp_path: Path
) -> None:
    net = network()
    method = Atmc(net, config.model_copy(update={"max_steps": 12}), Budget(kept))
    run(net, method, config.model_copy(update={"max_steps": 12}), digits, tmp_path)
    factors = [f for weight in method.compressed().values() for f in weight.factors.values()]
    assert sum(factor.kept for factor in factors) <= kept
    assert all(np.all(factor.values != 0) for factor in factors)
    if config.bits is not None:
        assert all(len(np.unique(factor.values)) <= 2**config.bits for factor in factors)
    shipped = method.shipped()
    for name, weight in method.compressed().items():
        np.testing.assert_allclose(weight.dense(), shipped[name].numpy(), atol=1e-6)


def test_a_limit_in_bytes_is_never_exceeded(digits: DataSet, tmp_path: Path) -> None:
    def measure(weights: object) -> int:
        assert isinstance(weights, dict)
        factors = [f for weight in weights.values() for f in weight.factors.values()]
        return 500 + sum(2 * f.kept + 4 * len(f.codebook) for f in factors)

    config = CompressConfig(max_steps=12)
    net = network()
    method = Atmc(net, config, Budget(2638, limit=3000, measure=measure))
    run(net, method, config, digits, tmp_path)
    assert 2990 <= measure(method.compressed()) <= 3000


@pytest.mark.parametrize("eps", ["0.1", None])
@pytest.mark.parametrize("average", [0.0, 0.9])
def test_training_learns(eps: str | None, average: float, digits: DataSet, tmp_path: Path) -> None:
    net = network()
    config = TrainConfig(max_steps=110, average=average)
    events = run(net, Dense(net, config), config, digits, tmp_path, eps=eps, select=True)
    epochs = [event for event in events if event.kind == "epoch"]
    assert len(epochs) == 11
    assert max(event.metrics["validation_clean"] for event in epochs) > 0.7
    assert ("validation_robust" in epochs[0].metrics) == (eps is not None)
    assert not net.training


@pytest.mark.parametrize("objective", ["trades", "mart"])
def test_training_learns_by_other_objectives(objective: str, digits: DataSet, tmp_path: Path) -> None:
    net = network()
    config = TrainConfig.model_validate({"max_steps": 80, "objective": objective, "beta": 2.0})
    events = run(net, Dense(net, config), config, digits, tmp_path)
    assert max(event.metrics["validation_robust"] for event in events if event.kind == "epoch") > 0.25


def test_the_selected_epoch_is_the_best_on_validation(digits: DataSet, tmp_path: Path) -> None:
    net = network()
    config = TrainConfig(max_steps=33, lr=0.5, warmup=0.9)
    method = Dense(net, config)
    events = run(net, method, config, digits, tmp_path, eps=None, select=True)
    best = max(e.metrics["validation_clean"] for e in events if e.kind == "epoch")
    images = torch.tensor(digits.validation.floats())
    with torch.no_grad():
        accuracy = float((net(images).argmax(1).numpy() == digits.validation.labels).mean())
    assert accuracy == pytest.approx(best)


def test_attacks_in_training_leave_batch_norm_alone(digits: DataSet, tmp_path: Path) -> None:
    """A step moves the statistics for the clean and the adversarial batch, not for every attack step."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(144, 10))
    config = TrainConfig(max_steps=1)
    run(net, Dense(net, config), config, digits, tmp_path)
    assert int(net.state_dict()["1.num_batches_tracked"]) == 2


def test_resume_refuses_another_configuration(digits: DataSet, tmp_path: Path) -> None:
    net = network()
    config = TrainConfig(max_steps=20)
    with pytest.raises(InputError, match="nothing to resume"):
        run(net, Dense(net, config), config, digits, tmp_path, resume=True)
    with pytest.raises(InterruptedRunError):
        run(net, Dense(net, config), config, digits, tmp_path, stop_at=2)
    with pytest.raises(InputError, match="another configuration"):
        run(net, Dense(net, config), config, digits, tmp_path, resume=True, digest="other")


def test_a_time_limit_ends_the_schedule(digits: DataSet, tmp_path: Path) -> None:
    net = network()
    config = CompressConfig(epochs=100_000)
    method = Atmc(net, config, Budget(2638))
    events = run(net, method, config, digits, tmp_path, time_limit=3.0)
    assert events[-1].step < events[-1].steps
    assert sum(f.kept for w in method.compressed().values() for f in w.factors.values()) <= 2638
    assert method.metrics()["primal_residual"] >= 0  # it did get to the quantising part


def test_planned_steps() -> None:
    assert planned_steps(ScheduleConfig(epochs=3, batch_size=100), 1050) == (10, 30)
    assert planned_steps(ScheduleConfig(epochs=3, batch_size=100, max_steps=7), 1050) == (10, 7)
    assert planned_steps(ScheduleConfig(batch_size=100), 50) == (1, 1000)


def test_devices() -> None:
    assert select_device("cpu", Ranks()).type == "cpu"
    for text in ("cuda:7", "meta", "gpu"):
        with pytest.raises(MissingEnvironmentError, match="device"):
            select_device(text, Ranks())


def test_validation_takes_every_class_alike(digits: DataSet, tmp_path: Path) -> None:
    """Image folders are in the order of the classes."""
    n = 900
    labels = np.sort(np.arange(n) % 10)
    held_out = Images(np.zeros((n, 1, 8, 8), np.uint8), labels)
    config = TrainConfig(max_steps=3)
    net = network()
    loop = _Loop(
        setup(net, dataclasses.replace(digits, validation=held_out)), Dense(net, config), config, tmp_path, "", True,
        None, lambda _: None, lambda: False,
    )  # fmt: skip
    assert np.bincount(loop.validation[1].numpy()).tolist() == [50] * 10
