"""Each loss beside a computation in NumPy, image by image, as its paper writes it."""

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from atmc_tool.attacks.pgd import pgd
from atmc_tool.objectives import OBJECTIVES, Objective, attack_targets, mart, mixed, trades
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
