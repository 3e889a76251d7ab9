"""Trainings that one process can do alone and several can share, started by torchrun: ranks_worker.py FOLDER."""

import sys
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn

from atmc_tool.budget import Budget
from atmc_tool.cli.launch import joined
from atmc_tool.compute import Compute
from atmc_tool.config import AttackConfig, CompressConfig, ScheduleConfig, TrainConfig
from atmc_tool.data import DataSet, load_data
from atmc_tool.distributed import Ranks
from atmc_tool.errors import AtmcError
from atmc_tool.methods.atmc import Atmc
from atmc_tool.methods.dense import Dense
from atmc_tool.methods.method import Method
from atmc_tool.threat_model import parse_threat_model
from atmc_tool.training import train
from atmc_tool.training_step import Setup

ODD = 65  # images of a batch: no share is as large as the other
SHORT = {"max_steps": 24, "batch_size": ODD, "checkpoint_steps": 10}
HARD = CompressConfig(**SHORT, projection="hard", factors="uvc")
DIVERGING = CompressConfig(**SHORT, quantize_lr=500.0)
KEPT = 500


def network(*, batch_norm: bool) -> nn.Module:
    """Logits of digits."""
    torch.manual_seed(0)
    return nn.Sequential(
        *(nn.Conv2d(1, 8, 3, bias=False), nn.BatchNorm2d(8) if batch_norm else nn.Identity(), nn.ReLU()),
        *(nn.Conv2d(8, 16, 3, bias=False), nn.BatchNorm2d(16) if batch_norm else nn.Identity(), nn.ReLU()),
        *(nn.MaxPool2d(2), nn.Flatten(), nn.Linear(64, 10)),
    )


class Drifting(Dense):
    """Dense training in which the ranks come apart by one rounding step of one weight."""

    rank = 0

    def after_step(self, progress: float, step: int) -> None:
        super().after_step(progress, step)
        if self.rank and step == 3:
            weight = self.parameters()[0].data.view(-1)
            weight[5] = torch.nextafter(weight[5], torch.tensor(torch.inf))


def run(name: str, data: DataSet, ranks: Ranks, folder: Path, micro_batch: int | None = None) -> dict[str, Tensor]:
    """The tensors that training `name` would ship."""
    net = network(batch_norm=name not in ("in parts", "plain"))  # which would see other parts
    compute, schedule = Compute(micro_batch=micro_batch), ScheduleConfig(**SHORT)
    method: Method
    if name in ("dense", "in parts"):
        compute = replace(compute, micro_batch=20) if name == "in parts" else compute
        schedule = TrainConfig(**SHORT, average=0.5)
        method = Dense(net, schedule)
    elif name == "free":
        schedule = TrainConfig(**SHORT, objective="free")
        method = Dense(net, schedule)
    elif name == "drifting":
        method = Drifting(net, TrainConfig(**SHORT))
        method.rank = ranks.rank
    else:
        schedule = {"hard": HARD, "diverging": DIVERGING}.get(name, CompressConfig(**SHORT))
        assert isinstance(schedule, CompressConfig)
        method = Atmc(net, schedule, Budget(KEPT))
    threat_model = parse_threat_model("0.1")
    cpu = torch.device("cpu")
    setup = Setup(net, (0.5,), (0.5,), cpu, data, threat_model, AttackConfig(steps=2), 3, compute, ranks)
    arguments = {"digest": "d", "select": name == "dense", "resume": False}
    train(setup, method, schedule, folder / name, report=lambda _: None, stop=lambda: False, **arguments)  # type: ignore[arg-type]
    return {**net.state_dict(), **(net.state_dict() if name == "dense" else method.shipped(1.0))}


def main() -> None:
    """Do every training; rank R leaves its results in FOLDER/rankR.pt."""
    folder = Path(sys.argv[1])
    data = load_data("digits")
    with joined() as ranks:
        results: dict[str, object] = {
            name: run(name, data, ranks, folder)
            for name in ("dense", "free", "in parts", "latent", "plain", "hard", "diverging")
        }
        try:
            run("drifting", data, ranks, folder)
        except AtmcError as error:
            results["drifting"] = str(error)

        def fail(rank: int) -> int:
            if ranks.rank == rank:
                raise AtmcError(f"rank {rank} can't")
            return ranks.rank

        said = []
        for function, rank in ((ranks.together, 1), (ranks.from_first, 0)):
            try:
                function(lambda rank=rank: fail(rank))  # type: ignore[misc]
            except AtmcError as error:
                said.append(str(error))
        results["said"] = said
        results["from_first"] = ranks.from_first(lambda: ranks.rank)
        results["together"] = ranks.together(lambda: ranks.rank)
        results["agree"] = ranks.agree(ranks.rank == 1, 10.0 + ranks.rank)
        torch.save(results, folder / f"rank{ranks.rank}.pt")


if __name__ == "__main__":
    main()
