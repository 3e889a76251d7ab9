"""What a compression starts from: the network in a file, its data and threat model, checked before any training."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx
import torch
from torch import Tensor, nn

from atmc_tool.cli.data_source import load_configured
from atmc_tool.cli.render import note
from atmc_tool.cli.settings import portable, resolve
from atmc_tool.cli.strategies import with_strategy
from atmc_tool.cli.subject import check_fit, per_channel, versions
from atmc_tool.cli.train import stated_architecture
from atmc_tool.config import Config, build_config
from atmc_tool.data import DataSet
from atmc_tool.errors import AtmcError, UsageError
from atmc_tool.model_card import ModelCard
from atmc_tool.models import Architecture
from atmc_tool.models.reading import choose_architecture, fitted_network, read_model
from atmc_tool.settings import merge
from atmc_tool.structure_names import parse_n_of_m
from atmc_tool.threat_model import ThreatModel
from atmc_tool.tied import tied
from evaluators.onnx_gradient import differentiate
from evaluators.policy import parse_policy
from exporters.onnx_skeleton import trace_skeleton

DEFAULT_KEEP = 0.05


@dataclass(frozen=True)
class Start:
    """A trained network and everything that its compression needs to know.

    config:   with nothing left open: network, data, threat model and budget are stated
    network:  on the CPU, with the weights of the file
    skeleton: its graph, so that it is known to export
    card:     of the network; without metrics
    digest:   of the model's file
    """

    config: Config
    network: nn.Module
    data: DataSet
    threat_model: ThreatModel
    skeleton: bytes
    card: ModelCard
    digest: str

    def manifest(self, metrics: Mapping[str, Any]) -> dict[str, Any]:
        """The manifest of the compressed network."""
        config = {key: value for key, value in portable(self.config).items() if key != "train"}
        others = tied(self.network)
        return {
            "card": self.card.model_dump(mode="json"),
            "config": config,
            "versions": versions(),
            "digests": {"model": self.digest, "data": self.data.digest},
            "policy": config["policy"],
            "metrics": dict(metrics),
            **({"tied": others} if others else {}),
        }


def read_start(
    path: Path,
    recorded: Mapping[str, Any],
    trust_pickle: bool,
    resolve: Callable[[Mapping[str, Any]], Config] = resolve,
    skeleton: bytes | None = None,
    data: DataSet | None = None,
) -> Start:
    """Read the network in `path`. What the user does not state is what `recorded` (of a resumed run) or the file says.

    resolve:  what files say → the configuration; by default that of the running command
    skeleton: of the same network with other weights, where it was traced before
    data:     what the configuration names, where it was read before

    Raises:
        UsageError: something is stated nowhere, or a value can't be.
        InputError: the file or the data are damaged, or do not fit each other.
        AtmcError: the network can't be exported.
    """
    file = read_model(path, trust_pickle)
    config = resolve(merge(_card_settings(file.card), recorded))
    parse_policy(config.policy)  # a mistake in it is said now, not after the training
    architecture = choose_architecture(file, config.model.arch)
    threat_model = _threat_model(config, f"{path} states none")
    torch.manual_seed(config.seed)
    network = fitted_network(architecture, file.state)
    data = data or load_configured(config)
    shape = architecture.image_shape or (file.card.image_shape if file.card else None)
    check_fit(network, architecture.name, data, shape)
    known = None if file.module is not None else architecture.name  # a pickled module brings its own
    return _start(config, architecture, network, data, threat_model, known, file.digest, skeleton)


def untrained_start(config: Config) -> Start:
    """What the compression of a network starts from that `config` would train: its weights as they are initialised.

    Raises: as `read_start`.
    """
    parse_policy(config.policy)
    threat_model = _threat_model(config, "")
    data = load_configured(config)
    architecture = stated_architecture(config, data)
    torch.manual_seed(config.seed)
    network = architecture.build(data.n_classes)
    check_fit(network, architecture.name, data, architecture.image_shape)
    return _start(config, architecture, network, data, threat_model, architecture.name, "")


def _threat_model(config: Config, hint: str) -> ThreatModel:
    threat_model = config.threat_model.parse()
    if threat_model is None:
        raise UsageError("which threat model?", expected="--eps such as 8/255 or 0.1", hint=hint)
    return threat_model


def _start(
    config: Config,
    architecture: Architecture,
    network: nn.Module,
    data: DataSet,
    threat_model: ThreatModel,
    known: str | None,
    digest: str,
    skeleton: bytes | None = None,
) -> Start:
    """The start with `config` complete; `known` is the network's name where the configuration states none."""
    config = with_strategy(config, network, data.image_shape)
    channels = data.image_shape[0]
    mean = per_channel("model.mean", config.model.mean or architecture.mean, channels)
    std = per_channel("model.std", config.model.std or architecture.std, channels)
    pattern = parse_n_of_m(config.compress.structure)
    keep = pattern[0] / pattern[1] if pattern else DEFAULT_KEEP
    stated = config.compress.keep or config.compress.size or config.compress.nominal_size
    if config.compress.bits == "auto" and not stated:
        raise UsageError(
            "bits: auto shares out a size", expected="--size such as 20KB, or --set compress.nominal_size="
        )
    budget = {} if stated else {"keep": keep}
    return Start(
        config=build_config(
            merge(
                config.model_dump(),
                {
                    "model": {"arch": config.model.arch or known, "mean": mean, "std": std},
                    "data": {"name": data.name},
                    "compress": budget,
                },
            )
        ),
        network=network,
        data=data,
        threat_model=threat_model,
        skeleton=skeleton or trace_skeleton(network, data.image_shape, data.n_classes, mean, std),
        card=ModelCard(
            arch=architecture.name,
            image_shape=data.image_shape,
            n_classes=data.n_classes,
            class_names=data.class_names,
            mean=mean,
            std=std,
            data=data.name,
            eps=threat_model.text,
            norm=threat_model.norm,
            seed=config.seed,
        ),
        digest=digest,
    )


def warn_of_missing_rules(skeleton: bytes) -> None:
    """Say before the training where `verify` will not be able to attack the exported network by its own gradient."""
    try:
        differentiate(onnx.load_model_from_string(skeleton))
    except AtmcError as error:
        note(f"warning: verify will fail on this network, for it can't attack it by its gradient: {error}")


def _card_settings(card: ModelCard | None) -> dict[str, Any]:
    """What a file says of itself, as configuration; all but its network, which `choose_architecture` handles."""
    if card is None:
        return {}
    return {
        "seed": card.seed,
        "model": {"mean": card.mean, "std": card.std},
        "data": {"name": card.data},
        "threat_model": {"eps": card.eps, "norm": card.norm},
    }


def copied(state: Mapping[str, Tensor], device: torch.device) -> dict[str, Tensor]:
    """Tensors of their own on `device`."""
    return {name: tensor.detach().to(device, copy=True) for name, tensor in state.items()}
