"""Layers of low rank run as two small ones: the same logits, and only where that is less work."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from atmc_tool.compressed import CompressedModel, CompressedWeight, sparsify
from atmc_tool.errors import InputError
from exporters.factored_execution import factor_execution, layer_operations, operations
from exporters.onnx_file import build_onnx
from exporters.onnx_skeleton import trace_skeleton


def low_rank(weight: Tensor, rank: int, seed: int, *, with_c: bool = False) -> CompressedWeight:
    """A weight of rank `rank` as U and V in the form of the file, the shape and scale of `weight`."""
    rng = np.random.default_rng(seed)
    m, n = len(weight), weight[0].numel()
    scale = 1 / np.sqrt(n)
    chosen = rng.permutation(min(m, n))[:rank]
    if m <= n:  # W = (I + U) V, V with `rank` rows
        main, side = np.zeros((m, n), np.float32), np.zeros((m, m), np.float32)
        main[chosen] = scale * rng.normal(size=(rank, n))
        side[:, chosen] = rng.normal(size=(m, rank)) / np.sqrt(rank)
        parts = {"U": side, "V": main}
    else:
        main, side = np.zeros((m, n), np.float32), np.zeros((n, n), np.float32)
        main[:, chosen] = rng.normal(size=(m, rank)) / np.sqrt(rank)
        side[chosen] = scale * rng.normal(size=(rank, n))
        parts = {"U": main, "V": side}
    if with_c:
        parts["C"] = np.eye(m, n, dtype=np.float32)
    factors = {name: sparsify(part.astype(np.float32), quantized=False) for name, part in parts.items()}
    return CompressedWeight(tuple(weight.shape), factors)


def compressed(network: nn.Module, image: Sequence[int], ranks: dict[str, int], c_in: str = "") -> CompressedModel:
    state = network.state_dict()
    weights = {
        name: low_rank(state[name], rank, seed, with_c=name == c_in) for seed, (name, rank) in enumerate(ranks.items())
    }
    rest = {name: tensor.numpy() for name, tensor in state.items() if name not in weights}
    n_classes = network.eval()(torch.zeros(2, *image)).shape[1]
    return CompressedModel(weights, rest, trace_skeleton(network, image, n_classes, [0.0], [1.0]), {})


def logits(model: CompressedModel, images: NDArray[np.float32]) -> NDArray[np.float32]:
    session = ort.InferenceSession(build_onnx(model, "0" * 64), providers=["CPUExecutionProvider"])
    (result,) = session.run(None, {"input": images})
    return np.asarray(result)


class Shared(nn.Module):
    """Two uses of one convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(64, 64, 3, padding=1, bias=False)
        self.out = nn.Linear(64, 3)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.out(self.conv(self.conv(x)).mean((2, 3)))
        return out


def convolutions() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(3, 64, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(64, 64, 3, stride=2, padding=1, bias=False),
        nn.BatchNorm2d(64),
        nn.ReLU(),
        nn.Conv2d(64, 96, 3, padding=2, dilation=2),
        nn.ReLU(),
        nn.Conv2d(96, 96, 3, padding=1, groups=2),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(96, 256),
        nn.ReLU(),
        nn.Linear(256, 256),
        nn.ReLU(),
        nn.Linear(256, 10),
    )


RANKS = {"2.weight": 8, "5.weight": 16, "12.weight": 24}


def test_logits_stay_and_what_pays_is_two_layers() -> None:
    torch.manual_seed(0)
    model = compressed(convolutions(), (3, 12, 12), {**RANKS, "7.weight": 4, "14.weight": 9, "10.weight": 90})
    small, factored = factor_execution(model)
    assert factored is not None
    assert factored.ranks == RANKS  # groups, and ranks that are nearly full, stay
    assert small.weights["2.weight.first"].shape == (8, 64, 3, 3)
    assert small.weights["2.weight.second"].shape == (64, 8, 1, 1)
    assert small.weights["12.weight.first"].shape == (24, 256)
    assert small.manifest["factored"] == RANKS
    images = np.random.default_rng(0).random((5, 3, 12, 12), np.float32)
    expected, found = logits(model, images), logits(small, images)
    assert np.abs(expected).max() > 0.01
    assert np.abs(expected - found).max() <= 1e-5 * max(1, np.abs(expected).max())


def test_one_dimension_and_weights_taller_than_wide() -> None:
    class Signals(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv1d(64, 640, 3, padding=1)
            self.out = nn.Linear(640, 4)

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.out(torch.relu(self.conv(x.flatten(2))).mean(2))
            return out

    model = compressed(Signals(), (64, 4, 4), {"conv.weight": 16})
    assert model.weights["conv.weight"].main == "U"
    small, factored = factor_execution(model)
    assert factored is not None
    assert factored.ranks == {"conv.weight": 16}
    images = np.random.default_rng(1).random((3, 64, 4, 4), np.float32)
    assert np.abs(logits(model, images) - logits(small, images)).max() <= 1e-5


@pytest.mark.parametrize(
    ("network", "ranks", "c_in"),
    [
        (Shared(), {"conv.weight": 4}, ""),
        (nn.Sequential(nn.Conv2d(64, 64, 3), nn.Flatten(), nn.Linear(256, 3)), {"0.weight": 4}, "0.weight"),
        (nn.Sequential(nn.Conv2d(64, 64, 3), nn.Flatten(), nn.Linear(256, 3)), {"0.weight": 60}, ""),
        (nn.Sequential(nn.Conv2d(64, 16, 3), nn.Flatten(), nn.Linear(64, 3)), {"0.weight": 4}, ""),
    ],
    ids=["used twice", "with C", "of high rank", "of few filters"],
)
def test_what_does_not_fit_or_pay_stays(network: nn.Module, ranks: dict[str, int], c_in: str) -> None:
    model = compressed(network, (64, 4, 4), ranks, c_in)
    same, factored = factor_execution(model)
    assert factored is None
    assert same is model


def test_layers_behind_what_onnx_knows_nothing_of_are_split_too() -> None:
    """It infers no shape behind a group normalisation."""
    network = nn.Sequential(
        nn.Conv2d(64, 64, 3, padding=1),
        nn.GroupNorm(4, 64),
        nn.Conv2d(64, 64, 3, padding=1),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(64, 3),
    )
    model = compressed(network, (64, 6, 6), {"0.weight": 4, "2.weight": 4})
    small, factored = factor_execution(model)
    assert factored is not None
    assert set(factored.ranks) == {"0.weight", "2.weight"}
    assert factored.times > 1
    images = np.random.default_rng(2).random((2, 64, 6, 6), np.float32)
    assert np.abs(logits(model, images) - logits(small, images)).max() <= 1e-5


def test_a_damaged_graph_is_named() -> None:
    model = compressed(nn.Sequential(nn.Flatten(), nn.Linear(4, 3)), (1, 2, 2), {})
    with pytest.raises(InputError, match="graph in the model is damaged"):
        factor_execution(replace(model, skeleton=b"\xff\xff\xff"))


def test_the_same_network_gives_the_same_bytes() -> None:
    models = [compressed(convolutions_of_seed(3), (3, 12, 12), RANKS) for _ in range(2)]
    first, second = (build_onnx(factor_execution(model)[0], "0" * 64) for model in models)
    assert first == second
    onnx.checker.check_model(onnx.load_model_from_string(first), full_check=True)


def convolutions_of_seed(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return convolutions()


def test_the_prediction_counts_operations_by_blocks() -> None:
    """Against the sums written out: 100 positions of the convolution, one of the linear layer."""
    network = nn.Sequential(nn.Conv2d(3, 20, 3), nn.Flatten(), nn.Linear(2000, 10))
    model = compressed(network, (3, 12, 12), {})
    expected = 100 * (32 * 27 + 30 * 32) + (16 * 2000 + 30 * 16)
    assert operations(onnx.load_model_from_string(model.skeleton)) == expected
    assert layer_operations(20, 27) == 32 * 27 + 30 * 32
    deep, factored = factor_execution(compressed(convolutions_of_seed(0), (3, 12, 12), RANKS))
    assert factored is not None
    whole = operations(onnx.load_model_from_string(compressed(convolutions_of_seed(0), (3, 12, 12), RANKS).skeleton))
    assert factored.times == pytest.approx(whole / operations(onnx.load_model_from_string(deep.skeleton)))
