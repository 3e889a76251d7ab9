"""Layers, budgets and built-in strategies: units, exact budgets for any actions, and the papers' definitions."""

import random
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from atmc_tool.compressed import CompressedWeight, sparsify
from atmc_tool.errors import InfeasibleBudgetError, InputError, UsageError
from atmc_tool.models import resolve_architecture
from atmc_tool.search.allocations import ALLOCATIONS, erk, global_magnitude, lamp, uniform
from atmc_tool.search.budget_wall import BudgetWall
from atmc_tool.search.layers import Layer, cost_of, kept_units, layers_of, slots, units_of, whole_cost
from atmc_tool.search.own_allocation import from_model
from atmc_tool.search.sensitivity import by_sensitivity
from atmc_tool.search.strategy import LayerRate, Strategy, StrategyBudget, read_strategy, strategy_of, write_strategy
from atmc_tool.selection import Selection, layer_shares

torch.manual_seed(0)
NETWORK = resolve_architecture("resnet18-8").build(10)
LAYERS = layers_of(NETWORK, (3, 32, 32))
WEIGHTS: Mapping[str, Tensor] = {name: p for name, p in NETWORK.named_parameters() if p.dim() > 1}
STRUCTURES = ("irregular", "filter", "column", "channel")
MEASURES = ("weights", "flops", "shrunk")


def wall(share: float, structure: str = "irregular", measure: str = "weights", **bounds: float) -> BudgetWall:
    cost = cost_of(LAYERS, structure, measure)  # type: ignore[arg-type]
    return BudgetWall(LAYERS, structure, cost, int(share * whole_cost(LAYERS, structure, cost)), **bounds)  # type: ignore[arg-type]


def kept_of(shares: list[float], structure: str) -> list[int]:
    return [kept_units(layer, structure, share) for layer, share in zip(LAYERS, shares, strict=True)]


def test_layers_are_in_order_of_execution_with_what_they_read() -> None:
    names = [layer.name for layer in LAYERS]
    assert names[:3] == ["conv1.weight", "layer1.0.conv1.weight", "layer1.0.conv2.weight"]
    assert names[-1] == "fc.weight"
    by_name = {layer.name: layer for layer in LAYERS}
    assert by_name["layer2.0.downsample.0.weight"].group == by_name["layer2.0.conv1.weight"].name
    assert [layer.first for layer in LAYERS] == [True] + [False] * 20
    assert [layer.linear for layer in LAYERS] == [False] * 20 + [True]
    assert by_name["conv1.weight"].outputs == 32 * 32
    assert by_name["layer4.0.conv1.weight"].outputs == 4 * 4
    assert by_name["fc.weight"].outputs == 1
    assert sum(layer.weights for layer in LAYERS) == sum(p.numel() for p in WEIGHTS.values())
    assert NETWORK.training


def test_layers_that_no_hook_sees_come_last_and_every_call_counts() -> None:
    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.hidden = nn.Linear(4, 3)
            self.twice = nn.Conv2d(1, 1, 3, padding=1)
            self.out = nn.Linear(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            x = self.twice(self.twice(x)).flatten(1)
            return self.out(x) + nn.functional.linear(x, self.hidden.weight)[:, :2]  # type: ignore[no-any-return]

    found = layers_of(Odd(), (1, 2, 2))
    assert [(layer.name, layer.outputs) for layer in found] == [
        ("twice.weight", 8),
        ("out.weight", 1),
        ("hidden.weight", 1),
    ]
    assert found[1].macs == 8


def test_units_are_those_that_a_selection_keeps() -> None:
    """Independent reference: the masks of `Selection` at the same share."""
    for structure in STRUCTURES:
        for layer in (LAYERS[1], LAYERS[7]):
            share = random.Random(1).random()
            selection = Selection(structure, "layer", [torch.Size(layer.shape)], [share], layer.weights, 0)
            (mask,) = selection.masks([WEIGHTS[layer.name].detach().flatten(1)], 0)
            units = kept_units(layer, structure, share)
            assert int(mask.sum()) == units * layer.weights // units_of(layer, structure)


def test_what_stays_whole_is_what_a_compression_leaves_whole_but_for_channels_of_linear_layers() -> None:
    shapes = {layer.name: torch.Size(layer.shape) for layer in LAYERS}
    for structure in STRUCTURES:
        whole = {
            layer.name for i, layer in enumerate(LAYERS) if not any(i in slot for slot in slots(LAYERS, structure))
        }
        shares = layer_shares(shapes, structure, {}, {})
        left = {name for name, share in zip(shapes, shares, strict=True) if share == 1.0}
        assert whole == left - ({"fc.weight"} if structure == "channel" else set())
    assert slots(LAYERS, "channel", "pruned")[0] == [0]
    assert slots(LAYERS, "irregular", "whole")[0] == [1]
    assert [6, 8] not in slots(LAYERS, "irregular")


@settings(max_examples=150)
@given(
    st.lists(st.floats(0, 1), min_size=21, max_size=21),
    st.sampled_from(STRUCTURES),
    st.sampled_from(MEASURES),
    st.floats(0.02, 1),
    st.floats(0, 0.02),
    st.floats(0.3, 1),
)
def test_no_action_ever_exceeds_the_budget(
    actions: list[float], structure: str, measure: str, share: float, lower: float, upper: float
) -> None:
    try:
        budget = wall(share, structure, measure, lower=lower, upper=upper)
    except InfeasibleBudgetError:
        return
    actions = actions[: len(budget.slots)]
    executed = budget.project(actions)
    kept = kept_of(executed, structure)
    assert budget.cost(kept) <= budget.limit
    assert all(1 <= k <= units_of(layer, structure) for k, layer in zip(kept, LAYERS, strict=True))
    assert kept == budget.kept(actions)
    before: list[float] = []
    for action in actions:
        before.append(budget.wall(action, before))
    assert budget.allows(before)
    for slot, rate, action in zip(budget.slots, before, actions, strict=True):
        units = units_of(LAYERS[slot[0]], structure)
        assert rate * units <= max(1, round(max(action, lower) * units)) + 1e-9
    assert budget.cost(kept_of(budget.layer_rates(before), structure)) <= budget.limit


@settings(max_examples=60)
@given(st.lists(st.floats(0, 1), min_size=21, max_size=21), st.floats(0.05, 0.9))
def test_bytes_that_sometimes_fall_as_more_is_kept_never_exceed_the_limit(actions: list[float], share: float) -> None:
    plain = cost_of(LAYERS, "irregular", "weights")

    def dented(kept: Sequence[int]) -> int:
        return plain(kept) + 400 * (sum(kept) % 7)

    budget = BudgetWall(LAYERS, "irregular", dented, int(share * plain([layer.weights for layer in LAYERS])))
    assert dented(kept_of(budget.project(actions), "irregular")) <= budget.limit
    before: list[float] = []
    for action in actions:
        before.append(budget.wall(action, before))
    assert dented(kept_of(budget.layer_rates(before), "irregular")) <= budget.limit


@settings(max_examples=40)
@given(st.lists(st.floats(0.001, 1), min_size=21, max_size=21), st.floats(0.01, 0.9))
def test_any_actions_spend_the_budget(actions: list[float], share: float) -> None:
    budget = wall(share)
    assert budget.cost(kept_of(budget.project(actions), "irregular")) >= budget.limit - 21


def test_groups_have_one_rate_and_a_budget_that_can_not_be_met_is_said() -> None:
    executed = wall(0.25, "channel").project([0.5] * 17)
    by_name = {layer.name: rate for layer, rate in zip(LAYERS, executed, strict=True)}
    assert by_name["layer3.0.downsample.0.weight"] == by_name["layer3.0.conv1.weight"]
    assert by_name["conv1.weight"] == 1
    with pytest.raises(InfeasibleBudgetError, match="at least"):
        wall(0.0001, "channel")
    with pytest.raises(ValueError, match="17 rates"):
        wall(0.25, "channel").project([0.5])


def test_costs_against_their_definitions() -> None:
    small = [
        Layer("a", (8, 3, 3, 3), 16, linear=False, first=True, group="a"),
        Layer("b", (4, 8, 3, 3), 4, linear=False, first=False, group="b"),
        Layer("c", (10, 4), 1, linear=True, first=False, group="c"),
    ]
    assert cost_of(small, "channel", "weights")([3, 4, 2]) == 8 * 3 * 9 + 4 * 4 * 9 + 10 * 2
    assert cost_of(small, "channel", "flops")([3, 4, 2]) == 8 * 3 * 9 * 16 + 4 * 4 * 9 * 4 + 10 * 2
    assert cost_of(small, "channel", "shrunk")([3, 4, 2]) == 4 * 3 * 9 + 2 * 4 * 9 + 10 * 2
    assert cost_of(small, "irregular", "shrunk")([3, 4, 2]) == 9
    assert cost_of(small, "filter", "shrunk")([4, 2, 10]) == 4 * 27 + 2 * 4 * 9 + 10 * 2


def test_shortcuts_are_no_neighbours() -> None:
    """All channels kept but those that layer3.0.conv1 and its shortcut read: what they lose, and what feeds them."""
    cost = cost_of(LAYERS, "channel", "shrunk")
    whole = [units_of(layer, "channel") for layer in LAYERS]
    kept = [k // 2 if layer.group == "layer3.0.conv1.weight" else k for layer, k in zip(LAYERS, whole, strict=True)]
    sizes = {layer.name: layer.weights for layer in LAYERS}
    halved = ("layer3.0.conv1.weight", "layer3.0.downsample.0.weight", "layer2.1.conv2.weight")
    assert cost(whole) - cost(kept) == sum(sizes[name] for name in halved) // 2


def test_erk_is_proportional_below_one_and_spends_the_budget() -> None:
    budget = wall(0.1)
    rates = erk(budget, WEIGHTS)
    raw = [sum(layer.shape) / layer.weights for layer in LAYERS]
    factors = [rate / r for rate, r in zip(rates, raw, strict=True) if rate < 1]
    assert max(factors) / min(factors) < 1.01
    assert all(rate == 1 or r * max(factors) < 1 for rate, r in zip(rates, raw, strict=True))
    assert any(rate == 1 for rate in rates)


def test_lamp_and_global_magnitude_against_one_threshold_over_all_scores() -> None:
    """The papers' definitions with plain loops over a small network's weights."""
    small = {"a": torch.randn(4, 3, 3, 3), "b": torch.randn(5, 36) * 3, "c": torch.randn(6, 5) * 0.1}
    layers = [Layer(name, tuple(w.shape), 1, w.dim() == 2, name == "a", name) for name, w in small.items()]
    cost = cost_of(layers, "irregular", "weights")
    for k in (10, 60, 200):
        budget = BudgetWall(layers, "irregular", cost, k)
        scored: list[tuple[float, str]] = []
        for name, weight in small.items():
            ordered = sorted(float(w) ** 2 for w in weight.flatten())
            scored += [(square / sum(ordered[i:]), name) for i, square in enumerate(ordered)]
        largest = sorted(scored, reverse=True)[:k]
        expected = [sum(name == layer.name for _, name in largest) for layer in layers]
        found = [round(s * layer.weights) for s, layer in zip(lamp(budget, small), layers, strict=True)]
        assert found == [max(1, n) for n in expected]
        magnitudes = sorted(((abs(float(w)), name) for name, t in small.items() for w in t.flatten()), reverse=True)[:k]
        expected = [sum(name == layer.name for _, name in magnitudes) for layer in layers]
        if min(expected):
            rates = global_magnitude(budget, small)
            assert [round(s * layer.weights) for s, layer in zip(rates, layers, strict=True)] == expected


@pytest.mark.parametrize("structure", STRUCTURES)
@pytest.mark.parametrize("name", ALLOCATIONS)
def test_every_allocation_meets_its_budget(name: str, structure: str) -> None:
    budget = wall(0.25, structure)
    cost = budget.cost(kept_of(ALLOCATIONS[name](budget, WEIGHTS), structure))
    assert 0.9 * budget.limit < cost <= budget.limit


def test_uniform_is_uniform() -> None:
    rates = uniform(wall(0.1), WEIGHTS)
    assert all(abs(rate - 0.1) < 0.01 for rate in rates)


def test_the_insensitive_layer_is_pruned_first() -> None:
    budget = wall(0.6)
    heavy = max(range(len(LAYERS)), key=lambda i: LAYERS[i].weights)
    calls = []

    def loss(shares: list[float]) -> float:
        calls.append(shares)
        return sum((1 - share) * (0.001 if i == heavy else 1) for i, share in enumerate(shares))

    rates = by_sensitivity(budget, loss, (0.5, 0.1))  # type: ignore[arg-type]
    assert len(calls) == 1 + 2 * len(LAYERS)
    assert min(rates) == rates[heavy] < 0.2
    assert budget.cost(kept_of(rates, "irregular")) <= budget.limit


def test_the_allocation_of_a_model() -> None:
    dense = np.zeros((4, 6), np.float32)
    dense[0, :2], dense[2, 5] = [0.5, -0.5], 0.25
    weights = {"a": CompressedWeight((4, 6), {"V": sparsify(dense, quantized=True)}), "b": CompressedWeight((2, 3), {})}
    strategy = from_model(weights)
    assert strategy.layers == {"a": LayerRate(keep=3 / 24, bits=2), "b": LayerRate(keep=1 / 6, bits=2)}
    assert from_model(weights, "filter").shares == {"a": 0.5, "b": 0.5}
    assert from_model(weights, "channel").shares == {"a": 0.5, "b": 1 / 3}
    with pytest.raises(UsageError, match="factors U V"):
        from_model({"a": CompressedWeight((4, 6), {"U": sparsify(np.eye(4, dtype=np.float32), quantized=False)})})


@pytest.mark.parametrize("suffix", [".yaml", ".json"])
def test_files_round_trip_and_are_the_same_bytes(suffix: str, tmp_path: Path) -> None:
    strategy = Strategy(
        structure="channel",
        budget=StrategyBudget(measure="weights", share=0.25),
        layers={"a": LayerRate(keep=1 / 3, bits=4), "b": LayerRate(keep=1.0, bits=2, rank=3)},
        found={"by": "erk", "reward": 1.25},
    )
    one, two = tmp_path / f"one{suffix}", tmp_path / f"two{suffix}"
    write_strategy(one, strategy)
    write_strategy(two, read_strategy(one, ["a", "b"]))
    assert one.read_bytes() == two.read_bytes()
    assert read_strategy(two, ["b", "a"]) == strategy


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            "layers: {a: 0.5}",
            "says nothing of 1 of 2 layers: expected a rate for every compressed layer, got none for b",
        ),
        ("layers: {a: 0.5, b: 1, c: 0.1}", "speaks of a layer that the network has not: expected a, b, got c"),
        ("layers: {a: 0.5, b: 2}", "layers.b.keep: expected at most 1, got 2"),
        ("layers: {a: {keep: 0.5, bit: 3}, b: 1}", "bit"),
        ("layers: {a: {keep: 0.5, bits: 3}, b: 1}", "bits are given for some layers only"),
        ("layers: {a: 0.5, b: 1}\nstructure: rows", "structure is one of"),
        ("layers: {a: 0.5, b: 1}\nbudget: {measure: bytes, share: 0.5}", "a budget in bytes is a limit"),
        ("- 0.5", "holds no strategy"),
        ("layers: {a: [", "not valid YAML"),
    ],
)
def test_a_damaged_file_is_one_line(content: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "strategy.yaml"
    path.write_text(content)
    with pytest.raises(InputError) as raised:
        read_strategy(path, ["a", "b"])
    assert message in str(raised.value)
    assert strategy_of({"a": 0.5, "b": 1.0}).shares == {"a": 0.5, "b": 1.0}
