"""Heracles' lists: order of layers, shortcuts, budgets recomputed, and lists that miss theirs."""

import json
from pathlib import Path
from typing import Any

import pytest

from atmc_tool.errors import InputError, UsageError
from atmc_tool.models import resolve_architecture
from atmc_tool.search.heracles import lists_in, read_heracles, stated_rate
from atmc_tool.search.layers import layers_of

NETWORKS = {
    "resnet18": ("resnet18-4", 32, 21, 18, (5, 10, 15)),
    "wrn_28_4": ("wrn-28-2", 32, 29, 26, (1, 10, 19)),
    "vgg16_bn": ("vgg16-4", 32, 16, 16, ()),
    "ResNet50": ("resnet50-imagenet-4", 32, 54, 50, (1, 11, 24, 43)),
}


def layers(name: str) -> Any:
    arch, size, *_ = NETWORKS[name]
    return layers_of(resolve_architecture(arch).build(10), (3, size, size))


def write(folder: Path, network: str, kind: str, name: str, rates: list[float]) -> Path:
    path = folder / "CIFAR10.json"
    path.write_text(json.dumps({network: {kind: {name: rates}}}))
    return path


@pytest.mark.parametrize("network", NETWORKS)
def test_weight_lists_name_every_layer_shortcuts_before_their_block(network: str, tmp_path: Path) -> None:
    _, _, n, _, shortcuts = NETWORKS[network]
    found_layers = layers(network)
    assert len(found_layers) == n
    rates = [(i + 1) / 1000 for i in range(n)]
    strategy = read_heracles(write(tmp_path, network, "weight", "x", rates), f"{network}/weight/x", found_layers)
    assert strategy.structure == "irregular"
    by_rate = sorted(strategy.shares, key=strategy.shares.__getitem__)
    for i in shortcuts:
        assert "downsample" in by_rate[i] or "Shortcut" in by_rate[i]
    plain = [name for name in by_rate if "downsample" not in name and "Shortcut" not in name]
    executed = [layer.name for layer in found_layers if "downsample" not in layer.name and "Shortcut" not in layer.name]
    assert plain == executed


@pytest.mark.parametrize("network", NETWORKS)
def test_channel_lists_leave_shortcuts_to_the_first_convolution_of_their_block(network: str, tmp_path: Path) -> None:
    *_, n, _ = NETWORKS[network]
    found_layers = layers(network)
    rates = [1.0, *((i + 1) / 1000 for i in range(n - 1))]
    strategy = read_heracles(write(tmp_path, network, "channel", "x", rates), f"{network}/channel/x", found_layers)
    assert strategy.structure == "channel"
    shares = strategy.shares
    for layer in found_layers:
        assert shares[layer.name] == shares[layer.group]
    assert len(set(shares.values())) == n


def test_ids_begin_with_a_rate() -> None:
    assert [stated_rate(name) for name in ("010_0", "001_lamp", "0001_erk", "05_uni")] == [0.1, 0.01, 0.001, 0.5]
    assert stated_rate("original") is None


def test_budgets_are_recomputed_and_a_list_that_misses_is_said_to(tmp_path: Path) -> None:
    found_layers = layers("resnet18")
    total = sum(layer.weights for layer in found_layers)
    rates = [0.01] * 21
    strategy = read_heracles(
        write(tmp_path, "resnet18", "weight", "001_uni", rates), "resnet18/weight/001_uni", found_layers
    )
    assert "warning" not in strategy.found
    assert strategy.found["recomputed"] == pytest.approx(0.01, rel=0.02)
    uniform = strategy.found["recomputed"]
    rates[4] = 0.1
    strategy = read_heracles(
        write(tmp_path, "resnet18", "weight", "001_uni", rates), "resnet18/weight/001_uni", found_layers
    )
    kept = sum(max(1, round(layer.weights * strategy.shares[layer.name])) for layer in found_layers)
    assert strategy.found["recomputed"] == kept / total
    assert (
        strategy.found["warning"]
        == f"the list resnet18/weight/001_uni is said to keep {uniform:.4g} of the weights and keeps {kept / total:.4g}"
    )
    channel = read_heracles(
        write(tmp_path, "resnet18", "channel", "05_uni", [1.0] + [0.5] * 17), "resnet18/channel/05_uni", found_layers
    )
    assert channel.found["stated"] == pytest.approx(0.25, abs=0.01)
    assert channel.found["recomputed"] == pytest.approx(0.25, abs=0.01)


def test_a_list_in_order_of_execution_is_read_so(tmp_path: Path) -> None:
    """Small shortcuts with large rates, where they are executed: read the other way the list misses its budget."""
    found_layers = layers("resnet18")
    rates = [0.9 if "downsample" in layer.name else 0.005 for layer in found_layers]
    share = sum(r * layer.weights for r, layer in zip(rates, found_layers, strict=True)) / sum(
        layer.weights for layer in found_layers
    )
    name = f"{share * 1.01:.4f}".replace(".", "")
    strategy = read_heracles(
        write(tmp_path, "resnet18", "weight", name, rates), f"resnet18/weight/{name}", found_layers
    )
    assert "order of execution" in strategy.found["warning"]
    assert list(strategy.shares.values()) == rates


def test_mistakes_are_one_line(tmp_path: Path) -> None:
    found_layers = layers("vgg16_bn")
    path = write(tmp_path, "vgg16_bn", "weight", "010_uni", [0.1] * 15)
    with pytest.raises(InputError, match="expected 16 rates, got 15"):
        read_heracles(path, "vgg16_bn/weight/010_uni", found_layers)
    for selector in ("vgg16_bn/weight/010_0", "vgg16_bn", "", "a/b/c/d"):
        with pytest.raises(UsageError, match="expected one of vgg16_bn/weight/010_uni"):
            read_heracles(path, selector, found_layers)
    for content in ([1], {"net": [1]}, {"net": {"weight": {"x": [0.5, 1.5]}}}, {"net": {"weight": {"x": ["a"]}}}):
        with pytest.raises(InputError, match="holds no lists of rates"):
            lists_in(content, "file")
