"""Each loss beside a computation in NumPy, image by image, as its paper writes it."""

from typing import get_args

import click
import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from pydantic import ValidationError
from torch import Tensor, nn

from atmc_tool.attacks.pgd import pgd
from atmc_tool.cli.compress import command as compress
from atmc_tool.cli.train import command as train
from atmc_tool.config import ObjectiveName, ScheduleConfig, build_config
from atmc_tool.errors import UsageError
from atmc_tool.objectives import (
    OBJECTIVES,
    Objective,
    attack_targets,
    loss_weight,
    mart,
    mixed,
    needs_attack,
    trades,
)
from atmc_tool.torch_classifier import TorchClassifier

N, CLASSES = 6, 4


def classifier() -> TorchClassifier:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(12, 8), nn.Tanh(), nn.Linear(8, CLASSES))
    return TorchClassifier(net, dict(net.named_parameters()), (0.0,), (1.0,))


def batch() -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    images = torch.rand(N, 3, 2, 2, generator=generator)
    adversarial = (images + 0.3 * torch.rand(images.shape, generator=generator)).clamp(0, 1)
    return images, adversarial, torch.randint(CLASSES, (N,), generator=generator)


def probabilities(images: Tensor) -> NDArray[np.float64]:
    logits = classifier().logits(images).detach().numpy().astype(np.float64)
    powers = np.exp(logits - logits.max(1, keepdims=True))
    return powers / powers.sum(1, keepdims=True)


def total(objective: Objective, adversarial: Tensor | None, weight: float) -> Tensor:
    images, _, labels = batch()
    return torch.stack(list(objective(classifier(), images, adversarial, labels, weight))).sum().detach()


@pytest.mark.parametrize("weight", [0.0, 0.3, 1.0])
def test_mixed(weight: float) -> None:
    images, adversarial, labels = batch()
    expected = np.mean(
        [
            -weight * np.log(p[y]) - (1 - weight) * np.log(q[y])
            for p, q, y in zip(probabilities(images), probabilities(adversarial), labels.numpy(), strict=True)
        ]
    )
    assert float(total(mixed, adversarial, weight)) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("weight", [0.0, 6.0])
def test_trades(weight: float) -> None:
    images, adversarial, labels = batch()
    expected = np.mean(
        [
            -np.log(p[y]) + weight * sum(a * np.log(a / b) for a, b in zip(p, q, strict=True))
            for p, q, y in zip(probabilities(images), probabilities(adversarial), labels.numpy(), strict=True)
        ]
    )
    assert float(total(trades, adversarial, weight)) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("weight", [0.0, 5.0])
def test_mart(weight: float) -> None:
    images, adversarial, labels = batch()
    expected = 0.0
    for p, q, y in zip(probabilities(images), probabilities(adversarial), labels.numpy(), strict=True):
        second = max(q[k] for k in range(CLASSES) if k != y)
        divergence = sum(a * np.log(a / b) for a, b in zip(p, q, strict=True))
        expected += (-np.log(q[y]) - np.log(1 - second) + weight * divergence * (1 - p[y])) / N
    assert float(total(mart, adversarial, weight)) == pytest.approx(expected, rel=1e-5)


def by_hand(name: str, clean: Tensor, attacked: Tensor, labels: Tensor, smoothing: float) -> Tensor:
    """The objective, image by image and class by class, with the defaults of the configuration (w = 1/2, β = 6)."""
    losses = []
    for z, z_attacked, y in zip(clean, attacked, labels, strict=True):
        log_p, log_q = z - z.exp().sum().log(), z_attacked - z_attacked.exp().sum().log()
        target = [(1 - smoothing) * (k == y) + smoothing / CLASSES for k in range(CLASSES)]
        on_clean = -sum(t * log for t, log in zip(target, log_p, strict=True))
        on_attacked = -sum(t * log for t, log in zip(target, log_q, strict=True))
        divergence = sum(a.exp() * (a - b) for a, b in zip(log_p, log_q, strict=True))
        second = torch.stack([log_q[k].exp() for k in range(CLASSES) if k != y]).max()
        losses.append(
            {
                "natural": on_clean,
                "mixed": (on_clean + on_attacked) / 2,
                "trades": on_clean + 6 * divergence,
                "mart": -log_q[y] - (1 - second).log() + 6 * divergence * (1 - log_p[y].exp()),
            }.get(name, on_attacked)
        )
    return sum(losses) / N  # type: ignore[return-value]


@pytest.mark.parametrize("smoothing", [0.0, 0.3])
@pytest.mark.parametrize("name", OBJECTIVES)
def test_every_objective_and_its_gradient_are_those_by_hand(name: ObjectiveName, smoothing: float) -> None:
    if name == "mart" and smoothing:
        with pytest.raises(ValidationError, match="label_smoothing is not defined for mart"):
            ScheduleConfig(objective=name, label_smoothing=smoothing)
        return
    images, adversarial, labels = batch()
    weight = loss_weight(ScheduleConfig(objective=name))
    found = []
    for loss_of in (
        lambda c: torch.stack(list(OBJECTIVES[name](c, images, adversarial, labels, weight, smoothing))).sum(),
        lambda c: by_hand(name, c.logits(images), c.logits(adversarial), labels, smoothing),
    ):
        used = classifier()
        loss = loss_of(used)
        found.append([loss, *torch.autograd.grad(loss, list(used._weights.values()))])
    for ours, expected in zip(*found, strict=True):
        torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-6)


def test_what_needs_no_attack() -> None:
    assert [name for name in OBJECTIVES if not needs_attack(ScheduleConfig(objective=name))] == ["natural"]
    assert not needs_attack(ScheduleConfig(clean_weight=1))
    assert needs_attack(ScheduleConfig(objective="trades", beta=1))


@pytest.mark.parametrize("command", [train, compress])
def test_the_option_offers_every_objective(command: click.Command) -> None:
    (option,) = (parameter for parameter in command.params if "--objective" in parameter.opts)
    assert isinstance(option.type, click.Choice)
    assert tuple(option.type.choices) == tuple(OBJECTIVES) == get_args(ObjectiveName)


@pytest.mark.parametrize("name", ["trades", "free"])
def test_an_attack_with_a_loss_of_its_own_takes_no_other(name: str) -> None:
    with pytest.raises(UsageError, match=f"compress.objective {name} has an attack loss of its own"):
        build_config({"attack": {"loss": "margin"}, "compress": {"objective": name}})


@pytest.mark.parametrize("name", OBJECTIVES)
def test_without_an_attack_it_is_the_cross_entropy(name: str) -> None:
    images, _, labels = batch()
    expected = -np.mean(np.log(probabilities(images)[np.arange(N), labels.numpy()]))
    assert float(total(OBJECTIVES[name], None, 0.5)) == pytest.approx(expected, rel=1e-5)


def test_mart_of_a_hopeless_image_is_finite() -> None:
    images, _, labels = batch()
    net = nn.Sequential(nn.Flatten(), nn.Linear(12, CLASSES))
    sure = torch.zeros(CLASSES)
    sure[(int(labels[0]) + 1) % CLASSES] = 1000.0
    weights = {"1.weight": torch.zeros(CLASSES, 12, requires_grad=True), "1.bias": sure.requires_grad_()}
    loss = sum(mart(TorchClassifier(net, weights, (0.0,), (1.0,)), images, images, labels, 5.0))
    assert isinstance(loss, Tensor)
    assert torch.isfinite(loss)
    assert all(torch.isfinite(g).all() for g in torch.autograd.grad(loss, list(weights.values())))


def test_the_attack_of_trades_raises_the_divergence_and_knows_no_label() -> None:
    images, _, labels = batch()
    targets = attack_targets("trades", classifier(), images, labels)
    np.testing.assert_allclose(targets.numpy(), probabilities(images), rtol=1e-5)
    assert torch.equal(attack_targets("mart", classifier(), images, labels), labels)

    def divergence(x: Tensor) -> float:
        p, q = probabilities(images), probabilities(x)
        return float((p * np.log(p / q)).sum(1).mean())

    noise = torch.rand(images.shape, generator=torch.Generator().manual_seed(3)) * 2 - 1
    start = (images + 0.1 * noise).clamp(0, 1)
    found = pgd(classifier(), images, targets, 0.1, steps=10, step_size=0.025, noise=noise)
    assert divergence(found) > 2 * divergence(start) > 0
