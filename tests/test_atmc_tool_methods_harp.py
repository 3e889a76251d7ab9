"""HARP: rates and scores trained together; its gradients by an obvious loop, its budget exact."""

from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from torch import Tensor, nn

from atmc_tool.budget import Budget
from atmc_tool.config import CompressConfig
from atmc_tool.methods import compression_method
from atmc_tool.methods.atmc import Atmc
from atmc_tool.methods.rate_search import LEAST, RateSearch
from atmc_tool.search.own_allocation import from_model

IMAGE = (3, 8, 8)
SIZES = {"conv1.weight": 216, "conv2.weight": 864, "short.weight": 96, "fc.weight": 120}
TOTAL = sum(SIZES.values())


class Network(nn.Module):
    """A convolution, then one beside a shortcut that reads the same tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 12, 3, padding=1)
        self.short, self.fc = nn.Conv2d(8, 12, 1), nn.Linear(12, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv1(x).relu()
        return torch.as_tensor(self.fc((self.conv2(x) + self.short(x)).relu().mean((2, 3))))


def method(keep: float, **settings: Any) -> tuple[Network, Atmc, RateSearch]:
    torch.manual_seed(0)
    network = Network()
    config = CompressConfig.model_validate({"method": "harp", **settings})
    made = compression_method(network, config, Budget(int(keep * TOTAL)), IMAGE)
    assert isinstance(made, Atmc)
    search = made._search
    assert isinstance(search, RateSearch)
    return network, made, search


def step(network: Network, made: Atmc, progress: float, number: int, lr: float = 0.3) -> None:
    torch.manual_seed(number)
    for parameter in made.parameters():
        parameter.grad = None
    logits = torch.func.functional_call(network, made.weights(progress), (torch.randn(16, *IMAGE),))
    loss = nn.functional.cross_entropy(logits, torch.randint(10, (16,)))
    penalty = made.penalty(progress)
    torch.autograd.backward(loss if penalty is None else loss + penalty)
    with torch.no_grad():
        for parameter in made.parameters():
            if parameter.grad is not None:
                parameter -= lr * parameter.grad
    made.after_step(progress, number)


def kept(made: Atmc) -> dict[str, int]:
    return {name: int(np.count_nonzero(weight.dense())) for name, weight in made.compressed().items()}


def test_gradients_of_scores_and_rates_by_the_definition() -> None:
    """With one factor t per entry in place of the mask, ∂L/∂a is Σ ∂L/∂t and ∂L/∂s is sign(s)·∂L/∂t."""
    network, made, search = method(0.2)
    images, labels = torch.randn(16, *IMAGE), torch.randint(10, (16,))
    weights = made.weights(0.0)
    nn.functional.cross_entropy(torch.func.functional_call(network, weights, (images,)), labels).backward()
    *scores, raw = search.parameters()
    shapes = {name: p.shape for name, p in network.named_parameters()}
    names = list(made.compressed())
    factors = {n: m.reshape(shapes[n]).float().requires_grad_() for n, m in zip(names, search.masks(), strict=True)}
    own = {name: network.get_parameter(name).detach() * factor for name, factor in factors.items()}
    with_factors = {**weights, **own}
    nn.functional.cross_entropy(torch.func.functional_call(network, with_factors, (images,)), labels).backward()
    sigmoid = raw.detach().sigmoid()
    slope = (1 - LEAST * 0.2) * sigmoid * (1 - sigmoid)
    order = ["conv1.weight", "conv2.weight", "short.weight", "fc.weight"]  # of execution
    sums = torch.stack([torch.as_tensor(factors[name].grad).sum() for name in order])
    torch.testing.assert_close(raw.grad, slope * sums, rtol=2e-2, atol=1e-6)
    for name, s in zip(names, scores, strict=True):
        expected = s.detach().sign() * torch.as_tensor(factors[name].grad).flatten(1)
        torch.testing.assert_close(s.grad, expected, atol=1e-6, rtol=1e-4)


def test_the_network_runs_with_what_rates_and_scores_say() -> None:
    _, made, search = method(0.2)
    with torch.no_grad():
        search.parameters()[-1].copy_(torch.tensor([3.0, -1.0, 0.0, 1.0]))
    weights = made.weights(0.0)
    for name, rate in zip(
        ["conv1.weight", "conv2.weight", "short.weight", "fc.weight"], search.rates().tolist(), strict=True
    ):
        assert int(weights[name].count_nonzero()) == round(rate * SIZES[name])
        assert LEAST * 0.2 < rate < 1


def test_the_penalty_is_what_exceeds_the_budget_and_its_weight_grows_until_it_is_met() -> None:
    network, made, search = method(0.1, budget_weight=0.5, search_share=1.0)
    weights, used = [], []
    for number in range(40):
        step(network, made, number / 40, number + 1)
        used.append(search.metrics()["budget_used"])
        weights.append(search.metrics()["budget_weight"])
        penalty = made.penalty(number / 40)
        assert penalty is not None
        assert float(penalty.detach()) == pytest.approx(weights[-1] * max(used[-1] - 1, 0), rel=1e-4, abs=1e-6)
    met = next(i for i, share in enumerate(used) if share <= 1)
    assert 0 < met < 39
    assert weights[: met + 1] == sorted(weights[: met + 1])
    assert weights[0] == 0.5 < weights[met]
    assert set(weights[met:]) == {weights[met]}


@pytest.mark.parametrize("settings", [{}, {"bits": 3}, {"rounds": 2, "search_share": 0.5}, {"keep_zeros": True}])
def test_the_budget_is_met_exactly_by_rates_in_the_proportion_that_was_found(settings: dict[str, Any]) -> None:
    network, made, search = method(0.15, **{"search_share": 0.5, **settings})
    for number in range(24):
        step(network, made, number / 24, number + 1)
    made.finish()
    found = kept(made)
    assert sum(found.values()) <= int(0.15 * TOTAL)
    assert sum(found.values()) >= int(0.15 * TOTAL) - len(found)
    rates = dict(
        zip(["conv1.weight", "conv2.weight", "short.weight", "fc.weight"], search.rates().tolist(), strict=True)
    )
    factor = sum(found.values()) / sum(rates[name] * size for name, size in SIZES.items())
    assert len(set(rates.values())) == 4
    for name, size in SIZES.items():
        assert found[name] == pytest.approx(factor * rates[name] * size, abs=1.5)


def test_channels_that_are_read_together_have_one_rate() -> None:
    network, made, search = method(0.6, structure="channel", search_share=0.5)
    assert len(search.rates()) == 1
    for number in range(10):
        step(network, made, number / 10, number + 1)
    made.finish()
    shares = from_model(made.compressed(), "channel").shares
    assert shares["conv1.weight"] == shares["fc.weight"] == 1
    assert shares["conv2.weight"] == shares["short.weight"] < 1
    assert sum(kept(made).values()) <= 0.6 * TOTAL


def test_what_is_stated_stays_as_it_is_stated() -> None:
    network, made, search = method(0.4, layers={"conv1.weight": 1.0, "fc*": 0.5})
    assert len(search.rates()) == 2
    for number in range(10):
        step(network, made, number / 10, number + 1)
    made.finish()
    found = kept(made)
    assert (found["conv1.weight"], found["fc.weight"]) == (216, 60)
    assert sum(found.values()) <= int(0.4 * TOTAL)


def test_a_search_goes_on_from_its_state() -> None:
    network, made, _ = method(0.15, search_share=0.5)
    other_network, other, _ = method(0.15, search_share=0.5)
    for number in range(20):
        step(network, made, number / 20, number + 1)
        if number == 6:
            other.load_state(made.state())
            with torch.no_grad():
                for mine, theirs in zip(other_network.parameters(), network.parameters(), strict=True):
                    mine.copy_(theirs)
        if number > 6:
            step(other_network, other, number / 20, number + 1)
    made.finish()
    other.finish()
    for name, weight in made.compressed().items():
        assert np.array_equal(weight.dense(), other.compressed()[name].dense())


def test_a_budget_below_one_unit_of_each_layer_keeps_one() -> None:
    _, made, _ = method(0.01, structure="channel")
    made.finish()
    assert from_model(made.compressed(), "channel").shares["conv2.weight"] == 1 / 8


def test_rates_need_the_scope_layer() -> None:
    with pytest.raises(ValidationError, match="leave scope out"):
        CompressConfig(method="harp", scope="global")
