"""What a strategy is worth: the accuracies of a trained network that is pruned by it, on images held out from training.

The weights stay as they were trained: the largest units of every layer are kept, the statistics of batch norm are
measured again on training images, then clean accuracy and accuracy under PGD are measured. Test images are never seen.
"""

import copy
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from itertools import count, islice
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from atmc_tool.attacks.classifier import correct
from atmc_tool.attacks.pgd import default_step_size, pgd
from atmc_tool.attacks.starts import start_noise
from atmc_tool.data.data_set import limited_indices
from atmc_tool.data.loader import batches, device_images, to_floats
from atmc_tool.data.order import stratified_order
from atmc_tool.search.layers import Layer, cost_of, kept_units
from atmc_tool.search.strategy import Strategy
from atmc_tool.selection import Selection
from atmc_tool.tied import own_state
from atmc_tool.torch_classifier import TorchClassifier
from atmc_tool.training_attack import step_attack
from atmc_tool.training_step import Setup, loss_and_gradients

Bytes = Callable[[Mapping[str, Tensor]], int]
LEAST_IMAGES = 10


class Scoring(BaseModel):
    """How a strategy is scored: reward = clean accuracy + beta · accuracy under PGD.

    images:       held out from training, of every class alike
    calibration:  training images that batch norm's statistics are measured on
    attack_steps: of PGD, from one random start (Heracles: 10)
    steps:        of fine-tuning the weights that are kept, before they are measured; 0: none
    lr, momentum: of SGD in these steps
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    beta: float = Field(1.0, ge=0)
    images: int = Field(500, ge=10)
    calibration: int = Field(500, ge=10)
    attack_steps: int = Field(10, ge=1)
    steps: int = Field(0, ge=0)
    lr: float = Field(0.01, gt=0)
    momentum: float = Field(0.9, ge=0, lt=1)
    batch_size: int = Field(128, ge=2)


@dataclass(frozen=True)
class Outcome:
    """What became of a strategy.

    clean, robust: accuracies, in [0, 1]
    weights, flops, shrunk: what is kept, see `layers.cost_of`; bytes: of the file, where they are measured
    fidelity: share of the images and of the fine-tuning that it was given
    """

    clean: float
    robust: float
    reward: float
    weights: int
    flops: int
    shrunk: int
    bytes: int | None
    fidelity: float
    seconds: float

    def to_json(self) -> dict[str, Any]:
        """As plain values."""
        return asdict(self)


class Evaluator:
    """Scores strategies for one network; `setup` is what it is, and stays as it is.

    size_of: masked weights by name → bytes of a file with them; None: not measured

    Nothing is left of one evaluation in the next: the same strategy gives the same outcome, but for its seconds.
    """

    def __init__(self, setup: Setup, layers: tuple[Layer, ...], scoring: Scoring, size_of: Bytes | None = None) -> None:
        self._network = copy.deepcopy(setup.network).to(setup.device).eval()
        self._state = {name: tensor.clone() for name, tensor in self._network.state_dict().items()}
        self._setup, self._layers, self._scoring, self._size_of = setup, layers, scoring, size_of
        data = setup.data
        self._held_out = [
            device_images(data.validation.take(chosen), setup.device)
            for chosen in held_out_parts(data.validation.labels, scoring.images)
        ]
        calibration = data.train.take(limited_indices(data.train.labels, scoring.calibration, seed=0))
        self._calibration = device_images(calibration, setup.device)[0]

    def evaluate(self, strategy: Strategy, fidelity: float = 1.0, part: int = 0) -> Outcome:
        """The outcome of `strategy`, by a share `fidelity` of the images and of the fine-tuning steps.

        part: of the held-out images: 0 those that strategies are chosen by, 1 others, to check the choice on
        """
        started = time.monotonic()
        keep, structure = strategy.shares, strategy.structure
        kept = [kept_units(layer, structure, keep[layer.name]) for layer in self._layers]
        with self._own_network() as network, torch.random.fork_rng(self._devices()):
            masks = unit_masks(dict(network.named_parameters()), structure, keep)
            with torch.no_grad():
                for name, mask in masks.items():
                    network.get_parameter(name).mul_(mask)
            self._fine_tune(network, masks, round(fidelity * self._scoring.steps))
            self._recalibrate(network)
            clean, robust = self._accuracies(network, *self._held_out[part], fidelity)
            masked = {name: network.get_parameter(name).detach() for name in masks}
            size = None if self._size_of is None else self._size_of(masked)
        return Outcome(
            clean=clean,
            robust=robust,
            reward=clean + self._scoring.beta * robust,
            weights=cost_of(self._layers, structure, "weights")(kept),
            flops=cost_of(self._layers, structure, "flops")(kept),
            shrunk=cost_of(self._layers, structure, "shrunk")(kept),
            bytes=size,
            fidelity=fidelity,
            seconds=time.monotonic() - started,
        )

    @contextmanager
    def _own_network(self) -> Iterator[nn.Module]:
        """The network as it was given, on one thread: how many there are must not decide a result."""
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        self._network.load_state_dict(self._state)
        try:
            yield self._network
        finally:
            torch.set_num_threads(threads)

    def _devices(self) -> list[torch.device]:
        return [self._setup.device] if self._setup.device.type == "cuda" else []

    def _classifier(self, network: nn.Module) -> TorchClassifier:
        return TorchClassifier(network, own_state(network), self._setup.mean, self._setup.std)

    @torch.no_grad()
    def _recalibrate(self, network: nn.Module) -> None:
        """Statistics of batch norm as means over batches of training images; all else runs in evaluation mode."""
        norms = [module for module in network.modules() if isinstance(module, _BatchNorm)]
        norms = [norm for norm in norms if norm.track_running_stats]
        if not norms:
            return
        network.eval()
        momenta = [norm.momentum for norm in norms]
        for norm in norms:
            norm.reset_running_stats()
            norm.train()
            norm.momentum = None  # a cumulative mean
        classifier = self._classifier(network)
        for part in torch.split(self._calibration, self._scoring.batch_size):
            if len(part) > 1:  # of a single image there is no variance
                classifier.logits(to_floats(part))
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
        network.eval()

    @torch.no_grad()
    def _accuracies(self, network: nn.Module, images: Tensor, labels: Tensor, fidelity: float) -> tuple[float, float]:
        """Clean accuracy and accuracy under PGD; the start of an image is its own, whatever the batch.

        images: uint8 (n, C, H, W), of which a share `fidelity` is taken, of every class alike; labels (n,)
        """
        setup, right = self._setup, torch.zeros(2)
        classifier = self._classifier(network.eval())
        n = min(len(labels), max(LEAST_IMAGES, round(fidelity * len(labels))))
        chosen = torch.from_numpy(limited_indices(labels.cpu().numpy(), n, seed=0))
        for part in torch.split(chosen, self._scoring.batch_size):
            clean, answers = to_floats(images[part]), labels[part]
            fed = [clean, clean]
            if setup.threat_model is not None:
                eps, steps = setup.threat_model.eps, self._scoring.attack_steps
                noise = torch.from_numpy(start_noise(0, 0, part.tolist(), tuple(clean.shape[1:]), setup.norm))
                fed[1] = pgd(
                    classifier,
                    clean,
                    answers,
                    eps,
                    steps=steps,
                    step_size=default_step_size(eps, steps),
                    noise=noise.to(clean.device),
                    norm=setup.norm,
                )
            right += torch.stack([correct(classifier.logits(batch), answers).sum() for batch in fed]).cpu()
        natural, robust = (int(number) / n for number in right.tolist())
        return natural, robust

    def _fine_tune(self, network: nn.Module, masks: Mapping[str, Tensor], steps: int) -> None:
        """`steps` of SGD on what is kept and on the parameters beside it, half clean, half under attack."""
        if not steps:
            return
        setup, scoring = self._setup, self._scoring
        images, labels = device_images(setup.data.train, setup.device)
        torch.manual_seed(setup.seed)
        weights = dict(network.named_parameters())
        velocity: dict[str, Tensor] = {}
        attack = step_attack("mixed", setup.attack, 0.0, guarded=False, norm=setup.norm)
        own = replace(setup, network=network)
        feed = (batch for epoch in count() for batch in batches(images, labels, scoring.batch_size, epoch, setup.seed))
        for x, y in islice(feed, steps):
            eps = setup.threat_model.eps if setup.threat_model else 0.0
            _, gradients = loss_and_gradients(own, weights, x, y, eps=eps, weight=0.5, attack=attack)
            with torch.no_grad():
                for name, gradient in gradients.items():
                    step = gradient * masks[name] if name in masks else gradient
                    velocity[name] = scoring.momentum * velocity[name] + step if name in velocity else step.clone()
                    weights[name].sub_(velocity[name], alpha=scoring.lr)


def unit_masks(weights: Mapping[str, Tensor], structure: str, keep: Mapping[str, float]) -> dict[str, Tensor]:
    """Masks, of the weights' shapes, of the largest units of every layer named in `keep`, at least one of each."""
    chosen = {name: weights[name].detach() for name in keep}
    total = sum(weight.numel() for weight in chosen.values())
    shapes = [weight.shape for weight in chosen.values()]
    selection = Selection(structure, "layer", shapes, [keep[name] for name in chosen], total, total)
    masks = selection.masks([weight.reshape(len(weight), -1) for weight in chosen.values()], total)
    return {name: mask.reshape(chosen[name].shape) for name, mask in zip(chosen, masks, strict=True)}


def held_out_parts(labels: NDArray[np.int64], n: int) -> list[NDArray[np.int64]]:
    """Indices of two parts of the held-out images, of every class alike: the first n, and as many as there are after.

    The second has at most n, and may be empty.
    """
    both = stratified_order(labels, 0)[: 2 * n]
    return [np.sort(both[:n]), np.sort(both[n:])]
