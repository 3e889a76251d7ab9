"""One evaluation of a search as a trial: plain values in, an outcome out, in whatever process it runs."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from atmc_tool.cli.subject import arrays
from atmc_tool.codebooks import lloyd
from atmc_tool.compressed import CompressedModel, CompressedWeight, sparsify
from atmc_tool.config import Config, build_config
from atmc_tool.data import DataSet, load_data
from atmc_tool.devices import select_device
from atmc_tool.distributed import Ranks
from atmc_tool.half_precision import half_rest
from atmc_tool.models.reading import choose_architecture, fitted_network, read_model
from atmc_tool.search.evaluation import Evaluator, Outcome, Scoring
from atmc_tool.search.layers import layers_of
from atmc_tool.search.strategy import Strategy
from atmc_tool.tied import own_state
from atmc_tool.training_step import Setup
from exporters.atmc_file import encoded_bytes

Bytes = Callable[[Mapping[str, Tensor]], int]


@dataclass(frozen=True)
class Task:
    """What every evaluation of a search shares, as plain values.

    config:   of the run, complete, as YAML's plain values; scoring: see `Scoring`
    skeleton: the network's graph, where bytes are measured; else empty
    """

    model: Path
    trust_pickle: bool
    config: Mapping[str, Any]
    scoring: Mapping[str, Any]
    skeleton: bytes


@dataclass(frozen=True)
class Request:
    """A strategy to evaluate, as plain values; see `Evaluator.evaluate`."""

    strategy: Mapping[str, Any]
    fidelity: float = 1.0
    part: int = 0


_MADE: list[tuple[Task, Evaluator]] = []  # by this process, the last one


def evaluate(task: Task, request: Request) -> Outcome:
    """The outcome of `request` for `task`. A process reads network and data once.

    Raises:
        InputError, UsageError: they are not there, or not what they were.
    """
    strategy = Strategy.model_validate(request.strategy)
    return evaluator_of(task).evaluate(strategy, request.fidelity, request.part)


def evaluator_of(task: Task) -> Evaluator:
    """The evaluator of `task`, made where this process has none."""
    for known, evaluator in _MADE:
        if known == task:
            return evaluator
    config = build_config(task.config)
    file = read_model(task.model, task.trust_pickle)
    network = fitted_network(choose_architecture(file, config.model.arch), file.state)
    wanted = config.data
    assert wanted.name is not None
    data = load_data(
        wanted.name,
        data_dir=wanted.dir,
        seed=config.seed,
        validation=wanted.validation,
        limit=wanted.limit,
        image_size=wanted.image_size,
    )
    return prepare(task, network, data)


def prepare(task: Task, network: nn.Module, data: DataSet) -> Evaluator:
    """The evaluator of `task` for network and data that were read before."""
    config = build_config(task.config)
    assert config.model.mean is not None
    assert config.model.std is not None
    device = select_device(config.device, Ranks())
    setup = Setup(
        network.to(device),
        config.model.mean,
        config.model.std,
        device,
        data,
        config.threat_model.parse(),
        config.attack,
        config.seed,
    )
    layers = tuple(layers_of(network, data.image_shape))
    size_of = file_size(network, task.skeleton, config) if task.skeleton else None
    evaluator = Evaluator(setup, layers, Scoring.model_validate(task.scoring), size_of)
    _MADE[:] = [(task, evaluator)]
    return evaluator


def file_size(network: nn.Module, skeleton: bytes, config: Config) -> Bytes:
    """Masked weights → bytes of a model.atmc that holds them, with codebooks of `compress.bits`, and all else of it.

    An estimate: training moves the weights, and the facts that a file states are not known yet.
    """
    bits = 32 if config.compress.bits is None else 4 if config.compress.bits == "auto" else config.compress.bits
    rest = half_rest(arrays(own_state(network))) if bits < 32 else arrays(own_state(network))

    def size_of(weights: Mapping[str, Tensor]) -> int:
        compressed = {name: _compressed(weight, bits) for name, weight in weights.items()}
        others = {name: array for name, array in rest.items() if name not in weights}
        return encoded_bytes(CompressedModel(compressed, others, skeleton, {}))

    return size_of


def _compressed(weight: Tensor, bits: int) -> CompressedWeight:
    """`weight` with its values at the centres of a codebook of 2^bits, where bits are below 32."""
    matrix = weight.detach().cpu().reshape(len(weight), -1)
    if bits < 32:
        kept = matrix[matrix != 0]
        centres = lloyd(kept, 1 << bits).float()
        centres = centres[centres != 0]
        nearest = torch.bucketize(kept, (centres[1:] + centres[:-1]) / 2)
        matrix = matrix.masked_scatter(matrix != 0, centres[nearest])
    empty = CompressedWeight(tuple(weight.shape), {})
    tensor = sparsify(matrix.numpy().astype(np.float32), quantized=bits <= 8)
    return CompressedWeight(tuple(weight.shape), {empty.main: tensor})
