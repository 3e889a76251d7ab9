"""Batch norm on two processes that hold a share each, against torch's on the whole batch."""

import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from conftest import ROOT
from torch import Tensor, nn
from torch.func import functional_call

from atmc_tool.distributed import Ranks
from atmc_tool.synced_batch_norm import synced_batch_norm

pytestmark = pytest.mark.xdist_group("ranks")
N = 7  # shares of 3 and 4
STEPS = 3  # so that running statistics add up


def convolution(**options: Any) -> nn.Module:
    return nn.Sequential(nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3, **options), nn.ReLU(), nn.BatchNorm2d(3, **options))


class Shared(nn.Module):
    """One batch norm, used twice."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(5)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(torch.tanh(self.norm(x)) * 2)  # type: ignore[no-any-return]


CASES: Mapping[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "2d": (convolution, (2, 6, 5)),
    "2d, bfloat16": (convolution, (2, 6, 5)),
    "no affine": (lambda: convolution(affine=False), (2, 6, 5)),
    "no running statistics": (lambda: convolution(track_running_stats=False), (2, 6, 5)),
    "cumulative": (lambda: convolution(momentum=None), (2, 6, 5)),
    "momentum and eps": (lambda: convolution(momentum=0.3, eps=0.1), (2, 6, 5)),
    "1d": (lambda: nn.BatchNorm1d(5), (5,)),
    "1d with length": (lambda: nn.BatchNorm1d(5), (5, 4)),
    "3d": (lambda: nn.BatchNorm3d(2), (2, 3, 4, 2)),
    "used twice": (Shared, (5,)),
    "far from zero": (lambda: nn.BatchNorm1d(5), (5,)),
}


def compute(name: str, ranks: Ranks) -> dict[str, Tensor]:
    """This rank's part of the output and of its gradient, the weights' gradients, and the state, of the last step."""
    make, shape = CASES[name]
    torch.manual_seed(0)
    module = make()
    keys = set(module.state_dict())
    for parameter in module.parameters():
        parameter.data.uniform_(-1, 1)
    share = ranks.share(N)
    result: dict[str, Tensor] = {}
    with synced_batch_norm(module, ranks):
        for _ in range(STEPS):
            x = torch.randn(N, *shape) + (
                3000 if name == "far from zero" else torch.arange(N).view(-1, *[1] * len(shape))
            )
            own = x[share].requires_grad_()
            weights = {key: parameter.detach().requires_grad_() for key, parameter in module.named_parameters()}
            with torch.autocast("cpu", torch.bfloat16, enabled=name.endswith("bfloat16")):
                y = functional_call(module, weights, (own,))
            along = torch.randn(N, *y.shape[1:])[share].to(y.dtype)
            gradients = torch.autograd.grad(y, [own, *weights.values()], along)
            ranks.add_up(gradients[1:])
            result = {"y": y.detach(), "dx": gradients[0], **dict(zip(weights, gradients[1:], strict=True))}
        assert set(module.state_dict()) == keys
        module.eval()
        result["evaluated"] = module(x[share]).detach()
    assert not any("forward" in vars(each) for each in module.modules())
    return {**result, **{f"state {key}": tensor for key, tensor in module.state_dict().items()}}


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, dict[str, Tensor]]]:
    """What each of two processes computes."""
    folder = tmp_path_factory.mktemp("synced")
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-W", "error", __file__, str(folder)]
    processes = [subprocess.Popen([*command, str(rank)], env=environment) for rank in range(2)]
    assert [process.wait(timeout=120) for process in processes] == [0, 0]
    return [torch.load(folder / f"{rank}.pt") for rank in range(2)]


@pytest.mark.parametrize("name", CASES)
def test_equals_batch_norm_of_the_whole_batch(name: str, shared: list[dict[str, dict[str, Tensor]]]) -> None:
    whole, (first, second) = compute(name, Ranks()), (rank[name] for rank in shared)
    tolerance = {"2d, bfloat16": 0.05, "far from zero": 2e-3}.get(name, 1e-5)
    assert set(whole) == set(first)
    for key, tensor in whole.items():
        if key in ("y", "dx") or (key == "evaluated" and name != "no running statistics"):
            torch.testing.assert_close(torch.cat([first[key], second[key]]), tensor, rtol=tolerance, atol=tolerance)
        elif key != "evaluated":
            torch.testing.assert_close(first[key], tensor, rtol=tolerance, atol=tolerance)
            assert torch.equal(first[key], second[key])
        assert first[key].dtype == tensor.dtype


def test_one_value_per_channel_is_refused_as_by_torch(shared: list[dict[str, dict[str, Tensor]]]) -> None:
    assert [str(rank["refused"]) for rank in shared] == ["Expected more than 1 value per channel when training"] * 2


def _refused(ranks: Ranks) -> str:
    module = nn.BatchNorm1d(3)
    try:
        with synced_batch_norm(module, ranks):
            module(torch.zeros(1 - ranks.rank, 3))
    except ValueError as error:
        return str(error)
    return ""


def main(folder: Path, rank: int) -> None:
    """Be one of two processes."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    ranks = Ranks(rank, 2)
    results: dict[str, Any] = {name: compute(name, ranks) for name in CASES}
    torch.save({**results, "refused": _refused(ranks)}, folder / f"{rank}.pt")
    dist.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
