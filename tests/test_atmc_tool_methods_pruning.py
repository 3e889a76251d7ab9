"""R-ADMM, HYDRA, rounds and structures: what is trained when, and what is exactly kept in the end."""

import itertools
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from torch import Tensor, nn

from atmc_tool.budget import Budget
from atmc_tool.compressed import CompressedWeight
from atmc_tool.config import CompressConfig
from atmc_tool.methods import compression_method
from atmc_tool.methods.atmc import Atmc
from atmc_tool.methods.parts import parts

IMAGE = (3, 8, 8)


class Network(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8)
        self.conv2, self.bn2 = nn.Conv2d(8, 12, 3), nn.BatchNorm2d(12)
        self.fc = nn.Linear(12, 10)
        for norm in (self.bn1, self.bn2):
            nn.init.uniform_(norm.weight, 0.5, 1.5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.bn1(self.conv1(x)).relu()
        return torch.as_tensor(self.fc(self.bn2(self.conv2(x)).relu().mean((2, 3))))


TOTAL = 8 * 27 + 12 * 72 + 120


def method(keep: float = 0.5, **settings: Any) -> tuple[Network, Atmc]:
    torch.manual_seed(0)
    network = Network()
    made = compression_method(network, CompressConfig.model_validate(settings), Budget(int(keep * TOTAL)), IMAGE)
    assert isinstance(made, Atmc)
    return network, made


def step(network: Network, made: Atmc, progress: float, number: int, lr: float = 0.1) -> dict[str, Tensor]:
    """A step of plain gradient descent on random images; the weights that the network ran with."""
    torch.manual_seed(number)
    for parameter in made.parameters():
        parameter.grad = None
    weights = made.weights(progress)
    logits = torch.func.functional_call(network, weights, (torch.randn(16, *IMAGE),))
    loss = nn.functional.cross_entropy(logits, torch.randint(10, (16,)))
    penalty = made.penalty(progress)
    torch.autograd.backward(loss if penalty is None else loss + penalty)
    with torch.no_grad():
        for parameter in made.parameters():
            if parameter.grad is not None:
                parameter -= lr * parameter.grad
    made.after_step(progress, number)
    return {name: weight.detach().clone() for name, weight in weights.items()}


def run(network: Network, made: Atmc, steps: int = 20) -> list[dict[str, Tensor]]:
    ran = [step(network, made, i / steps, i + 1) for i in range(steps)]
    made.finish()
    return ran


def nonzeros(made: Atmc) -> dict[str, np.ndarray]:
    return {name: weight.dense() != 0 for name, weight in made.compressed().items()}


def test_the_gradient_of_the_penalty_never_grows_by_the_history_of_the_dual() -> None:
    """The published code's dual kept its graph: after n updates its gradient was n + 1 times as large."""
    network, made = method(method="admm", search_rho=0.5, rho_growth=1.0, dual_updates=4, search_share=1.0)
    for number in range(1, 20):
        step(network, made, number / 20, number)
        state = made.state()["search"]
        assert not any(t.requires_grad for key in ("auxiliaries", "duals") for t in state[key])
        penalty = made.penalty(number / 20)
        assert penalty is not None
        flat = made.parameters()[:3]
        gradients = torch.autograd.grad(penalty, flat)
        for g, t, z, u in zip(gradients, flat, state["auxiliaries"], state["duals"], strict=True):
            torch.testing.assert_close(g, 0.5 * (t.detach() - z + u))
    assert state["updates"] == 4


def test_admm_by_an_obvious_loop() -> None:
    """z and u of every update beside NumPy; rho grows, and u, which is divided by it, shrinks."""
    network, made = method(method="admm", search_rho=0.2, rho_growth=1.5, dual_updates=3, search_share=1.0)
    counts = [round(0.5 * n) for n in (216, 864, 120)]
    z: list[np.ndarray] = []
    u = [np.zeros(1)] * 3
    updates = 0

    def project(arrays: list[np.ndarray]) -> list[np.ndarray]:
        result = []
        for array, count in zip(arrays, counts, strict=True):
            kept = np.argsort(-np.abs(array).ravel(), kind="stable")[:count]
            out = np.zeros(array.size, np.float32)
            out[kept] = array.ravel()[kept]
            result.append(out.reshape(array.shape))
        return result

    for number in range(1, 17):
        before = [t.detach().numpy().copy() for t in made.parameters()[:3]]
        progress = number / 17
        step(network, made, progress, number, lr=0.05)
        if not z:
            z = project(before)
        theta = [t.detach().numpy() for t in made.parameters()[:3]]
        if int(progress * 4) > updates:
            updates += 1
            u = [d / np.float32(1.5) for d in u]
            z = project([t + d for t, d in zip(theta, u, strict=True)])
            u = [d + t - p for d, t, p in zip(u, theta, z, strict=True)]
        state = made.state()["search"]
        assert state["updates"] == updates
        for ours, obvious in zip(state["auxiliaries"], z, strict=True):
            np.testing.assert_allclose(ours, obvious, atol=1e-6)
        for ours, obvious in zip(state["duals"], u, strict=True):
            np.testing.assert_allclose(ours, np.broadcast_to(obvious, ours.shape), atol=1e-6)
    assert made.metrics()["rho"] == pytest.approx(0.2 * 1.5**3)


def test_the_published_growth_of_rho_is_an_option() -> None:
    network, made = method(method="admm", rho_compounding=True, dual_updates=3, search_share=1.0)
    for number in range(1, 10):
        step(network, made, number / 10, number)
    assert made.metrics()["rho"] == pytest.approx(1e-3 * 1.3**3 * 4)


def test_admm_draws_the_weights_to_their_projection() -> None:
    def primal(rho: float) -> float:
        network, made = method(0.2, method="admm", search_rho=rho, search_share=1.0)
        for number in range(60):
            step(network, made, number / 60, number)
        return made.metrics()["primal_residual"]

    assert primal(2.0) < 0.3 * primal(1e-4)


@pytest.mark.parametrize("structure", ["irregular", "filter", "column", "channel", "bn-filter", "2:4"])
@pytest.mark.parametrize("name", ["admm", "hydra", "lwm", "atmc"])
def test_sparsity_is_exact_in_the_file(name: str, structure: str) -> None:
    if (name, structure) == ("hydra", "bn-filter"):
        with pytest.raises(ValidationError, match="bn-filter is ranked by batch norms"):
            method(method=name, structure=structure)
        return
    network, made = method(0.5, method=name, structure=structure)
    run(network, made)
    kept = nonzeros(made)
    conv1, conv2, fc = kept["conv1.weight"], kept["conv2.weight"], kept["fc.weight"]
    if structure == "irregular":
        assert sum(int(k.sum()) for k in kept.values()) == TOTAL // 2
        if name != "atmc":
            assert [int(k.sum()) for k in kept.values()] == [108, 432, 60]
    elif structure in ("filter", "bn-filter"):
        assert [int(k.any((1, 2, 3)).sum()) for k in (conv1, conv2)] == [4, 6]
        assert fc.all()
    elif structure == "column":
        assert [int(k.any(0).sum()) for k in (conv1, conv2)] == [14, 36]
    elif structure == "channel":
        assert conv1.all()
        assert conv2.any((0, 2, 3)).sum() == 4
    else:
        for mask in kept.values():
            for start in range(0, mask.shape[1], 4):
                assert (mask[:, start : start + 4].sum(1) <= 2).all()
    if structure == "bn-filter":  # the scales of what is gone are gone too, so its output is a constant
        for mask, norm in ((conv1, network.bn1), (conv2, network.bn2)):
            assert ((norm.weight.detach().numpy() != 0) == mask.any((1, 2, 3))).all()


def test_hydra_trains_scores_then_weights() -> None:
    network, made = method(0.3, method="hydra", search_share=0.5)
    start = {name: p.detach().clone() for name, p in network.named_parameters()}
    ran = [step(network, made, i / 10, i + 1, lr=20.0) for i in range(5)]
    for weights in ran:
        for name in ("conv1.weight", "conv2.weight", "fc.weight"):
            kept = weights[name] != 0
            assert torch.equal(weights[name], start[name] * kept)
            assert int(kept.sum()) == round(0.3 * kept.numel())
    first = ran[0]["conv2.weight"] != 0  # by magnitude
    assert torch.equal(first, start["conv2.weight"].abs() >= start["conv2.weight"].abs()[first].min())
    assert not torch.equal(ran[-1]["conv2.weight"] != 0, first)  # scores have chosen otherwise
    assert torch.equal(network.conv2.bias, start["conv2.bias"])
    assert not torch.equal(network.bn1.weight, start["bn1.weight"])
    later = [step(network, made, i / 10, i + 1) for i in range(5, 10)]
    masks = [weights["conv2.weight"] != 0 for weights in later]
    assert all(torch.equal(mask, masks[0]) for mask in masks)
    assert not torch.equal(later[0]["conv2.weight"], later[-1]["conv2.weight"])
    assert not torch.equal(network.conv2.bias, start["conv2.bias"])


def test_the_gradient_of_scores_goes_straight_through_the_mask() -> None:
    network, made = method(0.3, method="hydra")
    with torch.no_grad():
        for scores in made.parameters()[-3:]:
            scores.copy_(torch.randn(scores.shape, generator=torch.Generator().manual_seed(1)))
    images, labels = torch.randn(8, *IMAGE), torch.arange(8)
    weights = made.weights(0.0)
    loss = nn.functional.cross_entropy(torch.func.functional_call(network, weights, (images,)), labels)
    torch.autograd.backward(loss)
    dense = {name: p.detach() for name, p in network.named_parameters()}
    masked = {name: w.detach().clone().requires_grad_() for name, w in weights.items()}
    by_hand = nn.functional.cross_entropy(torch.func.functional_call(network, masked, (images,)), labels)
    torch.autograd.backward(by_hand)
    for name, scores in zip(("conv1.weight", "conv2.weight", "fc.weight"), made.parameters()[-3:], strict=True):
        gradient = masked[name].grad
        assert gradient is not None
        expected = scores.detach().sign() * (gradient * dense[name]).flatten(1)
        torch.testing.assert_close(scores.grad, expected)
    assert all(p.grad is None for p in made.parameters()[:3])


@pytest.mark.parametrize("name", ["admm", "atmc", "lwm"])
def test_rounds_get_smaller_and_keep_the_zeros(name: str) -> None:
    network, made = method(0.25, method=name, rounds=2, bits=None, quantize_share=0.0, search_share=0.5, path=0.0)
    ran = run(network, made, 40)
    kept = [sum(int((w != 0).sum()) for n, w in weights.items() if w.dim() > 1) for weights in ran]
    assert kept[19] == pytest.approx(TOTAL / 2, abs=2)
    assert kept[-1] == TOTAL // 4
    for earlier, later in ((ran[19], weights) for weights in ran[20:]):
        for key in ("conv1.weight", "conv2.weight", "fc.weight"):
            assert not (later[key] != 0)[earlier[key] == 0].any()


@pytest.mark.parametrize("progress", [(0.0,), (0.0, 0.5), (0.0, 0.3), (0.1, 0.6, 0.7)])
@pytest.mark.parametrize("settings", [{"method": "admm"}, {"search_share": 0.5}, {"method": "lwm"}, {"bits": None}])
def test_a_run_that_ends_between_two_parts_meets_the_budget(
    settings: dict[str, Any], progress: tuple[float, ...]
) -> None:
    """Few steps, or a limit of time that ends a run, may leave the last round out."""
    network, made = method(0.25, rounds=2, **settings)
    for number, at in enumerate(progress):
        step(network, made, at, number + 1)
    made.finish()
    assert sum(int(kept.sum()) for kept in nonzeros(made).values()) <= TOTAL // 4 + 1


def test_a_round_without_retraining_searches_anew() -> None:
    network, made = method(0.25, method="admm", rounds=2, search_share=1.0, dual_updates=3)
    updates = []
    for number in range(16):
        step(network, made, number / 16, number + 1)
        updates.append(made.state()["search"]["updates"])
    assert updates[:8] == updates[8:] == [0, 0, 1, 1, 2, 2, 3, 3]
    assert sum(int((t != 0).sum()) for t in made.parameters()[:3]) <= TOTAL // 2 + 2  # what the first one found
    made.finish()
    assert sum(int(kept.sum()) for kept in nonzeros(made).values()) == pytest.approx(TOTAL // 4, abs=1)


def test_shares_of_layers_hold_under_a_size() -> None:
    """Also where the size in the end allows more than it was thought to at first."""

    def measure(weights: Mapping[str, CompressedWeight]) -> int:
        return sum(f.kept for weight in weights.values() for f in weight.factors.values())

    torch.manual_seed(0)
    network = Network()
    config = CompressConfig.model_validate(
        {"method": "lwm", "structure": "filter", "size": "600B", "layers": {"conv1.weight": 0.25}}
    )
    made = compression_method(network, config, Budget(TOTAL // 4, 600, measure), IMAGE)
    assert isinstance(made, Atmc)
    run(network, made)
    kept = nonzeros(made)
    assert int(kept["conv1.weight"].any((1, 2, 3)).sum()) == 2
    assert 600 - 72 < measure(made.compressed()) <= 600


def test_zeros_of_filters_that_stay_leave_their_batch_norm_alone() -> None:
    torch.manual_seed(0)
    network = Network()
    with torch.no_grad():
        network.conv2.weight[:, 0, 0, 0] = 0
    config = CompressConfig.model_validate({"method": "admm", "structure": "bn-filter", "keep_zeros": True})
    made = compression_method(network, config, Budget(TOTAL // 2), IMAGE)
    assert isinstance(made, Atmc)
    run(network, made)
    assert int((network.bn2.weight != 0).sum()) == 6
    kept = nonzeros(made)["conv2.weight"]
    assert kept.any((1, 2, 3)).sum() == 6
    assert not kept[:, 0, 0, 0].any()


def test_zeros_of_the_given_network_stay() -> None:
    torch.manual_seed(0)
    network = Network()
    with torch.no_grad():
        network.conv2.weight[:5] = 0
    config = CompressConfig.model_validate({"method": "admm", "structure": "column", "keep_zeros": True})
    made = compression_method(network, config, Budget(TOTAL // 2), IMAGE)
    assert isinstance(made, Atmc)
    run(network, made)
    kept = nonzeros(made)["conv2.weight"]
    assert not kept[:5].any()
    assert kept.any(0).sum() == 36


def test_parts_fill_the_schedule() -> None:
    for settings in (
        {},
        {"method": "admm", "rounds": 3, "bits": 4},
        {"method": "hydra"},
        {"method": "lwm", "rounds": 2},
        {"method": "al0"},
    ):
        found = parts(CompressConfig.model_validate(settings))
        assert found[0].start == 0
        assert found[-1].end == 1
        assert all(a.end == b.start for a, b in itertools.pairwise(found))
        assert found[-1].budget == 1


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"structure": "row"}, "structure is one of"),
        ({"structure": "filter", "scope": "global"}, "budget per layer"),
        ({"structure": "filter", "factors": "uvc"}, "single entries"),
        ({"layers": {"conv1.weight": 0.5}}, "scope: layer"),
        ({"factors": "uvc", "keep_zeros": True}, "about weights"),
        ({"method": "alr", "structure": "filter"}, "alr prunes no entries"),
        ({"method": "alr", "keep_zeros": True}, "alr prunes no entries"),
        ({"method": "alr", "bits": 8}, "bits: null"),
        ({"method": "dense", "keep": 0.1}, "dense keeps every weight"),
        ({"method": "dense", "size": "20KB"}, "dense keeps every weight"),
    ],
)
def test_what_does_not_fit_is_said(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        CompressConfig.model_validate(settings)


def nominal(weights: Mapping[str, CompressedWeight]) -> int:
    return -(-sum(f.nominal_bits for weight in weights.values() for f in weight.factors.values()) // 8)


@pytest.mark.parametrize("name", ["atmc", "admm", "ap"])
def test_bits_are_shared_out_under_a_nominal_size(name: str) -> None:
    torch.manual_seed(0)
    network = Network()
    config = CompressConfig.model_validate({"method": name, "bits": "auto", "nominal_size": "300B", "path": 0.1})
    made = compression_method(network, config, Budget(TOTAL // 2, 300, nominal), IMAGE)
    assert isinstance(made, Atmc)
    run(network, made)
    weights = made.compressed()
    assert 255 <= nominal(weights) <= 300
    bits = [factor.bits for weight in weights.values() for factor in weight.factors.values()]
    assert all(stored <= chosen for stored, chosen in zip(bits, made.state()["quantizer"]["bits"], strict=True))


def test_bits_are_shared_out_under_a_real_size() -> None:
    def measure(weights: Mapping[str, CompressedWeight]) -> int:
        return 50 + sum(2 * f.kept + 4 * f.bits for weight in weights.values() for f in weight.factors.values())

    torch.manual_seed(0)
    network = Network()
    config = CompressConfig.model_validate({"bits": "auto", "size": "600B"})
    made = compression_method(network, config, Budget(TOTAL // 2, 600, measure), IMAGE)
    assert isinstance(made, Atmc)
    run(network, made)
    assert 580 <= measure(made.compressed()) <= 600


@pytest.mark.parametrize("structure", ["filter", "column", "2:4"])
@pytest.mark.parametrize("name", ["atmc", "hydra"])
def test_bits_are_shared_out_within_a_structure(name: str, structure: str) -> None:
    torch.manual_seed(0)
    network = Network()
    settings = {"method": name, "structure": structure, "bits": "auto", "nominal_size": "500B", "search_share": 1.0}
    made = compression_method(network, CompressConfig.model_validate(settings), Budget(TOTAL // 3, 500, nominal), IMAGE)
    assert isinstance(made, Atmc)
    run(network, made)
    assert 400 <= nominal(made.compressed()) <= 500
    kept = nonzeros(made)["conv2.weight"]
    if structure == "filter":
        assert 0 < kept.any((1, 2, 3)).sum() <= 10
    elif structure == "column":
        assert 0 < kept.any(0).sum() <= 60
    else:
        assert all((kept[:, start : start + 4].sum(1) <= 2).all() for start in (0, 4))
