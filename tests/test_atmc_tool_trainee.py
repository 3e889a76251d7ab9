"""Trainings by every objective beside the loop that one would write; resumption; what an attack leaves alone."""

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from atmc_tool.budget import Budget
from atmc_tool.checkpoint import load_checkpoint
from atmc_tool.compute import Compute
from atmc_tool.config import AttackConfig, CompressConfig, ScheduleConfig, TrainConfig
from atmc_tool.data import DataSet
from atmc_tool.data.data_set import Augmentation
from atmc_tool.data.images import Images
from atmc_tool.data.loader import batches, device_images
from atmc_tool.errors import InterruptedRunError
from atmc_tool.methods.atmc import Atmc
from atmc_tool.methods.dense import Dense
from atmc_tool.methods.method import Method
from atmc_tool.threat_model import parse_threat_model
from atmc_tool.torch_classifier import TorchClassifier
from atmc_tool.training import train
from atmc_tool.training_attack import StepAttack, step_attack
from atmc_tool.training_step import Setup

EPS, BATCH, SEED = 0.1, 8, 3
PLAIN, AUGMENTED = Augmentation(), Augmentation(shift=1, flip=True)


def network(*, batch_norm: bool = False) -> nn.Module:
    torch.manual_seed(0)
    norm = nn.BatchNorm2d(4) if batch_norm else nn.Identity()
    return nn.Sequential(nn.Conv2d(1, 4, 3), norm, nn.Tanh(), nn.Flatten(), nn.Linear(144, 10))


def noise_data(augmentation: Augmentation = PLAIN) -> DataSet:
    """Images without sense: five batches."""
    generator = np.random.default_rng(0)
    images = Images(generator.integers(0, 256, (5 * BATCH, 1, 8, 8), np.uint8), generator.integers(0, 10, 5 * BATCH))
    return DataSet("noise", images, images, images, 10, tuple("0123456789"), augmentation, "")


def trained(
    schedule: ScheduleConfig,
    attack: AttackConfig,
    folder: Path,
    *,
    method: Callable[[nn.Module], Method] | None = None,
    data: DataSet | None = None,
    net: nn.Module | None = None,
    compute: Compute | None = None,
    stop_at: int | None = None,
    resume: bool = False,
) -> dict[str, Any]:
    """The last checkpoint of a training, and what it ships as "shipped"."""
    net = net or network()
    made = method(net) if method else Dense(net, TrainConfig(**schedule.model_dump()))
    threat_model = parse_threat_model(str(EPS))
    setup = Setup(
        net, (0.0,), (1.0,), torch.device("cpu"), data or noise_data(), threat_model, attack, SEED, compute or Compute()
    )
    steps: list[int] = []
    arguments: dict[str, Any] = {"digest": "d", "select": False, "resume": resume}
    arguments |= {"report": lambda event: steps.append(event.step), "stop": lambda: steps[-1] == stop_at}
    train(setup, made, schedule, folder, **arguments)
    state = load_checkpoint(folder / "checkpoints")
    assert state is not None
    return {**state, "shipped": {**net.state_dict(), **made.shipped(1.0)}}


def by_hand(steps: int, take: Callable[[nn.Module, Tensor, Tensor, int], None], replays: int = 1) -> nn.Module:
    """Dense training of `steps` steps in which `take(net, images, labels, step)` leaves the gradients."""
    net = network()
    config = TrainConfig()
    optimizer = torch.optim.SGD(net.parameters(), 0.1, config.momentum, weight_decay=config.weight_decay)
    images = device_images(noise_data().train, "cpu")
    feed = itertools.chain.from_iterable(batches(*images, BATCH, epoch=epoch, seed=SEED) for epoch in range(9))
    for step in range(steps):
        if step % replays == 0:
            x, y = next(feed)
        optimizer.param_groups[0]["lr"] = Dense(net, config).learning_rate(step / steps)
        optimizer.zero_grad()
        torch.manual_seed(SEED * 1_000_003 + step)
        take(net, x, y, step)
        optimizer.step()
    return net


def ascended(net: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """The sign of the loss's gradient at x, summed over the batch."""
    x = x.clone().requires_grad_()
    return torch.autograd.grad(F.cross_entropy(net(x), y, reduction="sum"), x)[0].sign()


def same(found: dict[str, Tensor], net: nn.Module) -> None:
    for name, tensor in net.state_dict().items():
        torch.testing.assert_close(found[name], tensor, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("replays", [1, 3])
@pytest.mark.parametrize("micro_batch", [None, 3])
def test_free_is_its_obvious_loop(replays: int, micro_batch: int | None, tmp_path: Path) -> None:
    """Seventeen steps: with three replays the last batch of the first pass is replayed across the end of an epoch."""
    delta = torch.zeros(BATCH, 1, 8, 8)

    def take(net: nn.Module, x: Tensor, y: Tensor, _: int) -> None:
        attacked = (x + delta).clamp(0, 1).requires_grad_()
        F.cross_entropy(net(attacked), y).backward()  # type: ignore[no-untyped-call]
        assert attacked.grad is not None
        delta.add_(EPS * attacked.grad.sign()).clamp_(-EPS, EPS)

    expected = by_hand(17, take, replays)
    schedule = ScheduleConfig(objective="free", max_steps=17, batch_size=BATCH)
    compute = Compute(micro_batch=micro_batch)
    found = trained(schedule, AttackConfig(steps=replays), tmp_path, compute=compute)
    same(found["network"], expected)
    torch.testing.assert_close(found["perturbation"], delta)
    assert float(delta.abs().max()) == pytest.approx(EPS)


@pytest.mark.parametrize("name", ["fgsm-rs", "n-fgsm", "pgd-at"])
def test_attacks_with_adversarial_images_alone_are_their_obvious_loops(name: Any, tmp_path: Path) -> None:
    def take(net: nn.Module, x: Tensor, y: Tensor, _: int) -> None:
        noise = torch.empty_like(x).uniform_(-1, 1)
        if name == "n-fgsm":
            attacked = (x + 2 * EPS * noise).clamp(0, 1)
            attacked = (attacked + EPS * ascended(net, attacked, y)).clamp(0, 1)
        else:
            delta = EPS * noise
            for _ in range(2 if name == "pgd-at" else 1):
                step = EPS * ascended(net, (x + delta).clamp(0, 1), y)  # of both: 2.5·eps/2 and 1.25·eps
                delta = ((x + delta).clamp(0, 1) + 1.25 * step - x).clamp(-EPS, EPS)
            attacked = (x + delta).clamp(0, 1)
        targets = 0.7 * F.one_hot(y, 10) + 0.3 / 10
        (-(targets * net(attacked).log_softmax(1)).sum() / BATCH).backward()

    schedule = ScheduleConfig(objective=name, max_steps=6, batch_size=BATCH, label_smoothing=0.3)
    same(trained(schedule, AttackConfig(steps=2), tmp_path)["network"], by_hand(6, take))


def test_which_attack_a_step_takes() -> None:
    config = AttackConfig(steps=1, step_size=0.02, loss="margin", train_mode=True, fgsm_warmup=0.25)
    pgd = StepAttack("pgd", 1, 0.02, "margin", True)
    assert step_attack("mixed", config, 0.25, guarded=False) == pgd
    for name in ("mixed", "pgd-at", "trades", "mart"):
        assert step_attack(name, config, 0.2, guarded=False).kind == "fgsm-rs"  # type: ignore[arg-type]
    for name in ("free", "fgsm-rs", "n-fgsm"):
        assert step_attack(name, config, 0.9, guarded=False).kind == name  # type: ignore[arg-type]
        assert step_attack(name, config, 0.1, guarded=True) == StepAttack("pgd", 2, 0.02, "margin", True)  # type: ignore[arg-type]
    assert pgd.of_validation() is None
    assert StepAttack("free").of_validation() == StepAttack("fgsm-rs")
    assert StepAttack("n-fgsm", train_mode=True).of_validation() == StepAttack("n-fgsm")


@pytest.mark.parametrize("kind", ["pgd", "fgsm-rs", "n-fgsm"])
def test_the_margin_as_the_loss_of_the_attack(kind: Any) -> None:
    """On a linear network its gradient is the difference of two rows of the weights."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    classifier = TorchClassifier(net, dict(net.named_parameters()), (0.0,), (1.0,))
    x, y, noise = torch.rand(64, 1, 8, 8), torch.randint(10, (64,)), torch.rand(64, 1, 8, 8) * 2 - 1
    found, other = (
        StepAttack(kind, 1, 0.05, loss=loss).adversarial(classifier, x, y, EPS, noise)  # type: ignore[arg-type]
        for loss in ("margin", "cross_entropy")
    )
    start = (x + (2 if kind == "n-fgsm" else 1) * EPS * noise).clamp(0, 1)
    rows = net[1].weight.detach()
    best = net(start).scatter(1, y[:, None], -torch.inf).argmax(1)
    step = {"pgd": 0.05, "fgsm-rs": 1.25 * EPS, "n-fgsm": EPS}[kind] * (rows[best] - rows[y]).sign().view(x.shape)
    expected = start + step if kind == "n-fgsm" else (start + step).clamp(x - EPS, x + EPS)
    torch.testing.assert_close(found, expected.clamp(0, 1))
    assert not torch.equal(found, other)


@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_a_warm_up_takes_single_steps(share: float, tmp_path: Path) -> None:
    """All of the schedule: the very bits of `fgsm-rs`. A part of it: another attack in the part that is left."""
    attack = AttackConfig(steps=2, step_size=EPS, fgsm_warmup=share)
    schedules = [ScheduleConfig(objective=name, max_steps=4, batch_size=BATCH) for name in ("pgd-at", "fgsm-rs")]  # type: ignore[arg-type]
    warm, single = (
        trained(schedule, attack, tmp_path / schedule.objective)["network"]["4.weight"] for schedule in schedules
    )
    assert torch.equal(warm, single) == (share == 1)


@pytest.mark.parametrize(
    ("objective", "train_mode", "passes"),
    [
        ("natural", True, 1),
        ("mixed", False, 2),
        ("mixed", True, 5),
        ("pgd-at", False, 1),
        ("pgd-at", True, 4),
        ("trades", False, 2),
        ("trades", True, 6),  # with one for what is attacked, p(x)
        ("free", False, 1),
        ("fgsm-rs", False, 1),
        ("n-fgsm", True, 2),
    ],
)
def test_forward_passes_that_move_batch_norm(objective: Any, train_mode: bool, passes: int, tmp_path: Path) -> None:
    """PGD-3 in evaluation mode moves nothing; the loss's passes do, and no muted one is made."""
    schedule = ScheduleConfig(objective=objective, max_steps=1, batch_size=BATCH)
    attack = AttackConfig(steps=3, train_mode=train_mode)
    state = trained(schedule, attack, tmp_path, net=network(batch_norm=True))
    assert int(state["network"]["1.num_batches_tracked"]) == passes


FREE = ScheduleConfig(objective="free", lr=0.02, max_steps=17, batch_size=BATCH, checkpoint_steps=2)
AVERAGED = CompressConfig(max_steps=17, batch_size=BATCH, checkpoint_steps=2, average=0.9, quantize_share=0.4)


def atmc(net: nn.Module) -> Method:
    return Atmc(net, AVERAGED, Budget(100))


@pytest.mark.parametrize("stop_at", [1, 4, 6, 13])
@pytest.mark.parametrize(("schedule", "method"), [(FREE, None), (AVERAGED, atmc)])
def test_it_resumes_to_the_same_bits(
    schedule: ScheduleConfig, method: Callable[[nn.Module], Method] | None, stop_at: int, tmp_path: Path
) -> None:
    arguments: dict[str, Any] = {"method": method, "data": noise_data(AUGMENTED)}
    whole = trained(schedule, AttackConfig(steps=3), tmp_path / "whole", **arguments)
    with pytest.raises(InterruptedRunError):
        trained(schedule, AttackConfig(steps=3), tmp_path / "cut", stop_at=stop_at, **arguments)
    resumed = trained(schedule, AttackConfig(steps=3), tmp_path / "cut", resume=True, **arguments)
    for name, tensor in whole["shipped"].items():
        assert torch.equal(tensor, resumed["shipped"][name])
    assert not whole["guarded"]
    assert (whole["perturbation"] is None) == (method is not None)
    if whole["perturbation"] is not None:
        assert torch.equal(whole["perturbation"], resumed["perturbation"])
    for ours, other in zip(whole["average"]["values"], resumed["average"]["values"], strict=True):
        assert torch.equal(ours, other)


def test_a_replayed_batch_is_augmented_alike(tmp_path: Path) -> None:
    """What the network sees differs by the perturbation alone."""
    seen: list[Tensor] = []

    class Recorded(nn.Flatten):
        def forward(self, images: Tensor) -> Tensor:
            if self.training:
                seen.append(images.detach().clone())
            return super().forward(images)

    torch.manual_seed(0)
    net = nn.Sequential(Recorded(), nn.Linear(64, 10))
    schedule = ScheduleConfig(objective="free", max_steps=4, batch_size=BATCH)
    trained(schedule, AttackConfig(steps=2), tmp_path, data=noise_data(AUGMENTED), net=net)
    assert len(seen) == 4
    for first, second in ((0, 1), (2, 3)):
        assert float((seen[first] - seen[second]).abs().max()) <= EPS + 1e-6
    assert float((seen[1] - seen[2]).abs().max()) > 0.5


def test_the_average_of_the_dense_weights_is_projected_at_the_end(tmp_path: Path) -> None:
    """Of the codebook part, with which it starts anew; what ships meets the budget exactly."""
    state = trained(AVERAGED, AttackConfig(steps=1), tmp_path, method=atmc)
    assert state["average"]["updates"] == 17 - 11  # from step 11 (progress 11/17 ≥ 0.6) on
    shipped = state["shipped"]
    assert sum(int((shipped[name] != 0).sum()) for name in ("0.weight", "4.weight")) <= 100
    bias = [tensor for tensor in state["average"]["values"] if tensor.shape == (10,)]
    assert torch.equal(shipped["4.bias"], bias[0])
    assert not torch.equal(state["network"]["4.bias"], bias[0])
