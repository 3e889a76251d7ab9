"""Time of an adversarial training step: the floor, the ledger, and other loops; about four minutes on one core.

    python benchmarks/training.py [--rounds 3] [--networks lenet-relu resnet18-16 wrn-16-2] [--threads 1]

Everything is measured in one run, interleaved: each round runs a step of every competitor; ratios are medians of the
ratios within a round. A step of the quantising part is 4/5 a step without and 1/5 a step with an update of the
codebooks. With one thread the clock is processor time, so that other work on the machine does not count (what it takes
of caches and memory does); with more it is the wall's.
Writes benchmarks/results/training-cpu.json.
"""

import argparse
import json
import platform
import statistics
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import ledger
import numpy as np
import torch
from ledger import ORDER, Ledger, ceilings, demand
from networks import resnet18, wrn_16_2
from pipeline import processor
from reference_loops import LLOYD_TOLERANCE, PaperPort, plain_loop
from torch import Tensor, nn

from atmc_tool import training
from atmc_tool.budget import Budget, compressible, kept_for_share
from atmc_tool.compute import Compute, has_bfloat16
from atmc_tool.config import AttackConfig, CompressConfig, ScheduleConfig, TrainConfig
from atmc_tool.data import loader
from atmc_tool.data.data_set import Augmentation, DataSet
from atmc_tool.data.images import Images
from atmc_tool.methods.atmc import Atmc
from atmc_tool.methods.dense import Dense
from atmc_tool.methods.method import Method
from atmc_tool.models.lenet import lenet_relu
from atmc_tool.threat_model import ThreatModel
from atmc_tool.training_step import Setup

KEEP, BITS, INTERVAL, RHO, LR = 0.1, 8, 5, 0.1, 0.01
SPREAD = 0.05  # standard deviation of the weights
USER, PORT, FULL_PORT = "user's loop", "paper's port", "paper's port, 20 iterations"
STEPS_OF_SCHEDULE = 1000
CPU = torch.device("cpu")
FP32, AUTO = Compute(), Compute(torch.bfloat16 if has_bfloat16(CPU) else None)
DENSE = {"fp32": "engine, dense, fp32", "bf16": "engine, dense"}  # what a step of each precision is compared with
PRUNING, QUANTISING = 500, 800  # of the schedule's 1000 steps: the budget is met; codebooks are on
UPDATING = QUANTISING + INTERVAL - 1  # and are updated after this step
Step = Callable[[], None]


@dataclass(frozen=True)
class Case:
    """A network, the shape of its images, the batch size, and the attack."""

    build: Callable[[], nn.Module]
    shape: tuple[int, int, int]
    batch_size: int
    eps: float
    augmentation: Augmentation
    attack_steps: int = AttackConfig().steps


CASES = {
    "lenet-relu": Case(lenet_relu, (1, 28, 28), 128, 0.3, Augmentation()),
    "resnet18-16": Case(resnet18, (3, 32, 32), 64, 8 / 255, Augmentation(shift=4, flip=True)),
    "wrn-16-2": Case(wrn_16_2, (3, 32, 32), 64, 8 / 255, Augmentation(shift=4, flip=True)),
}


@dataclass(frozen=True)
class Competitor:
    """Kinds of steps with their shares of all steps, shares adding up to 1, and their precision.

    title: of its column in the ledger; empty: it is not the engine, or not looked into
    """

    kinds: tuple[tuple[Step, float], ...]
    compute: Compute = FP32
    title: str = ""

    @property
    def precision(self) -> str:
        """`fp32` or `bf16`."""
        return "bf16" if self.compute.dtype == torch.bfloat16 else "fp32"


def random_data(case: Case) -> DataSet:
    """Noise: the time of a step does not depend on what is in the images."""
    generator = np.random.default_rng(0)
    n = 2 * case.batch_size
    images = Images(generator.integers(0, 256, (n, *case.shape), np.uint8), generator.integers(0, 10, n))
    return DataSet("noise", images, images, images, 10, tuple("0123456789"), case.augmentation, "")


def endless(data: DataSet, batch_size: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Batches as the engine draws them."""
    images, labels = loader.device_images(data.train, "cpu")
    epoch = 0
    while True:
        yield from loader.batches(images, labels, batch_size, epoch=epoch, seed=0)
        epoch += 1


def engine_loop(
    case: Case, network: nn.Module, method: Method, schedule: ScheduleConfig, compute: Compute
) -> training._Loop:
    """The engine's loop before its first step."""
    threat_model = ThreatModel(case.eps, str(case.eps))
    attack = AttackConfig(steps=case.attack_steps)
    setup = Setup(network, (0.0,), (1.0,), CPU, random_data(case), threat_model, attack, 0, compute)
    return training._Loop(setup, method, schedule, Path(), "", False, None, lambda _: None, lambda: False)


def engine_step(loop: training._Loop, at: int) -> Step:
    """The engine's own step number `at` of its schedule, over and over."""
    feed = endless(loop.setup.data, loop.schedule.batch_size)

    def step() -> None:
        loop.step = at
        loop._train_step(*ledger.draw(feed))

    return step


def schedules(case: Case) -> tuple[TrainConfig, CompressConfig, CompressConfig]:
    """Of a dense training, of ATMC by default and of ATMC as published."""
    common = {"max_steps": STEPS_OF_SCHEDULE, "epochs": STEPS_OF_SCHEDULE, "batch_size": case.batch_size, "lr": LR}
    atmc = {**common, "bits": BITS, "rho": RHO, "codebook_interval": INTERVAL}
    return (
        TrainConfig.model_validate(common),
        CompressConfig.model_validate(atmc),
        CompressConfig.model_validate({**atmc, "factors": "uvc", "projection": "hard"}),
    )


def initial(case: Case) -> nn.Module:
    """The network, with the same weights every time: of one spread, so that each layer keeps its share of them.

    As they are initialised, hardly any of a late layer's weights are among the largest of all; trained ones are.
    """
    torch.manual_seed(0)
    network = case.build()
    with torch.no_grad():
        for weight in compressible(network)[0].values():
            weight.mul_(SPREAD / weight.std())
    return network


def fed(case: Case, step: Callable[[Tensor, Tensor], None]) -> Step:
    """`step` with batches of its own."""
    feed = endless(random_data(case), case.batch_size)
    return lambda: step(*ledger.draw(feed))


def users_step(case: Case) -> Step:
    """The loop that a user would write."""
    network = initial(case)
    optimizer = torch.optim.SGD(network.parameters(), LR, momentum=0.9, weight_decay=1e-4)
    return fed(case, plain_loop(network, optimizer, case.eps, case.attack_steps))


def dense_step(case: Case, compute: Compute) -> Step:
    """The engine's step on the dense network."""
    network, schedule = initial(case), schedules(case)[0]
    return engine_step(engine_loop(case, network, Dense(network, schedule), schedule, compute), PRUNING)


def atmc_loop(case: Case, schedule: CompressConfig, compute: Compute) -> training._Loop:
    """The engine's loop on ATMC."""
    network = initial(case)
    total = sum(weight.numel() for weight in compressible(network)[0].values())
    method = Atmc(network, schedule, Budget(kept_for_share(KEEP, total, 1)))
    return engine_loop(case, network, method, schedule, compute)


def competitors(case: Case) -> dict[str, Competitor]:
    """All that is compared, each on a network of its own with the same weights and on the same data."""
    without, of_interval = 1 - 1 / INTERVAL, 1 / INTERVAL

    def port(tolerance: float) -> Competitor:
        own = PaperPort(initial(case), KEEP, BITS, RHO, LR, case.eps, case.attack_steps, tolerance)
        return Competitor(
            (
                (fed(case, lambda x, y: own.step(x, y, codebooks=False)), without),
                (fed(case, lambda x, y: own.step(x, y, codebooks=True)), of_interval),
            )
        )

    result = {
        USER: Competitor(((users_step(case), 1.0),)),
        PORT: port(LLOYD_TOLERANCE),
        FULL_PORT: port(0.0),
        DENSE["fp32"]: Competitor(((dense_step(case, FP32), 1.0),)),
        DENSE["bf16"]: Competitor(((dense_step(case, AUTO), 1.0),), AUTO, "dense"),
    }
    _, default, published = schedules(case)
    for name, short, schedule in (("ATMC", "", default), ("ATMC as published", "pub. ", published)):
        step = engine_step(atmc_loop(case, schedule, AUTO), PRUNING)
        result[f"{name}, pruning"] = Competitor(((step, 1.0),), AUTO, f"{short}pruning")
        loop = atmc_loop(case, schedule, AUTO)
        kinds = ((engine_step(loop, QUANTISING), without), (engine_step(loop, UPDATING), of_interval))
        result[f"{name}, quantising"] = Competitor(kinds, AUTO, f"{short}quant.")
    return result


def measure(case: Case, rounds: int, clock: Callable[[], float]) -> dict[str, dict[str, Any]]:
    """Name → {"rounds": seconds of a step by round, "seconds": their median, "ledger": stage → seconds}."""
    field = competitors(case)
    times: dict[tuple[str, int], list[float]] = defaultdict(list)
    stages: dict[tuple[str, int], list[dict[str, float]]] = defaultdict(list)
    for competitor in field.values():
        competitor.kinds[0][0]()  # warm-up: threads, caches, the first codebooks
    with Ledger(clock) as stage_clock:
        for number in range(rounds):
            for name, competitor in field.items():
                for kind, (step, _) in enumerate(competitor.kinds):
                    stage_clock.take()
                    start = clock()
                    step()
                    times[name, kind].append(clock() - start)
                    stages[name, kind].append(stage_clock.take())
            print(f"round {number + 1} of {rounds}", file=sys.stderr)

    result: dict[str, dict[str, Any]] = {}
    for name, competitor in field.items():
        kinds = list(enumerate(competitor.kinds))
        by_round = [sum(share * times[name, kind][number] for kind, (_, share) in kinds) for number in range(rounds)]
        facts = {"precision": competitor.precision, "title": competitor.title}
        result[name] = {**facts, "seconds": statistics.median(by_round), "rounds": by_round}
        if competitor.title:
            parts = dict.fromkeys((*ORDER, "rest"), 0.0)
            for kind, (_, share) in kinds:
                taken = times[name, kind]
                median = statistics.median_low(taken)
                of_median = stages[name, kind][taken.index(median)]
                for stage, seconds in {**of_median, "rest": median - sum(of_median.values())}.items():
                    parts[stage] += share * seconds
            result[name]["ledger"] = parts
    return result


def floor(needs: dict[str, int], limits: dict[str, float]) -> dict[str, float]:
    """Seconds below which the step can't go: its operations at the rate of a product, or the bytes of its products."""
    copying = needs["matrix_bytes"] / limits["copy_gbs"] / 1e9
    return {
        "fp32": max(needs["flop"] / limits["fp32_gflops"] / 1e9, copying),
        "bf16": max(needs["flop"] / limits["bf16_gflops"] / 1e9, copying / 2),
    }


def ratio(times: list[float], others: list[float]) -> float:
    """Median over the rounds of the ratio within a round, so that what slows a whole round down cancels out."""
    return statistics.median(a / b for a, b in zip(times, others, strict=True))


def show(name: str, case: Case, result: dict[str, Any]) -> None:
    """The tables of a network."""
    needs, low, steps = result["demand"], result["floor_seconds"], result["steps"]
    print(
        f"\n{name}, batch {case.batch_size}, PGD-{AttackConfig().steps}: {needs['flop'] / 1e9:.1f} GFLOP, "
        f"{needs['matrix_bytes'] / 1e9:.2f} GB through products, {needs['bytes'] / 1e9:.2f} GB through all operators; "
        f"floor {low['fp32'] * 1e3:.0f} ms fp32, {low['bf16'] * 1e3:.0f} ms bf16"
    )
    others = [steps[name]["rounds"] for name in (USER, PORT, FULL_PORT)]
    columns = ("ms", "lowest", "highest", "× floor", "÷ dense", "user's ÷", "port's ÷", "20 it. ÷")
    print(f"{'':30}{'':>6}" + "".join(f"{column:>10}" for column in columns))
    for key, line in steps.items():
        own, precision = line["rounds"], line["precision"]
        dense = steps[DENSE[precision]]["rounds"]
        times = [1e3 * line["seconds"], 1e3 * min(own), 1e3 * max(own)]
        ratios = [line["seconds"] / low[precision], ratio(own, dense), *(ratio(other, own) for other in others)]
        print(f"{key:30}{precision:>6}" + "".join(f"{t:10.0f}" for t in times) + "".join(f"{r:10.2f}" for r in ratios))
    looked_into = [line for line in steps.values() if "ledger" in line]
    print(f"\n{'% of the step':24}" + "".join(f"{line['title']:>14}" for line in looked_into))
    for stage in (*ORDER, "rest"):
        shares = [100 * line["ledger"][stage] / sum(line["ledger"].values()) for line in looked_into]
        print(f"{stage:24}" + "".join(f"{share:14.1f}" for share in shares))


def main() -> None:
    """Measure, print the tables and write the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--networks", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    clock = time.process_time if arguments.threads == 1 else time.perf_counter
    limits = ceilings(clock)
    print(", ".join(f"{name} {value:.1f}" for name, value in limits.items()))
    networks: dict[str, Any] = {}
    for name in arguments.networks:
        case = CASES[name]
        needs = demand(dense_step(case, FP32))
        steps = measure(case, arguments.rounds, clock)
        networks[name] = {"demand": needs, "floor_seconds": floor(needs, limits), "steps": steps}
        show(name, case, networks[name])
    result = {
        "command": f"python benchmarks/training.py {' '.join(sys.argv[1:])}".strip(),
        "machine": processor(),
        "threads": arguments.threads,
        "clock": clock.__name__,
        "rounds": arguments.rounds,
        "settings": {"keep": KEEP, "bits": BITS, "codebook_interval": INTERVAL, "spread": SPREAD},
        "python": platform.python_version(),
        "versions": {package: version(package) for package in ("torch", "numpy")},
        "ceilings": limits,
        "networks": networks,
    }
    path = Path(__file__).parent / "results" / "training-cpu.json"
    path.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
