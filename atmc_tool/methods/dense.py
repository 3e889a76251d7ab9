"""Dense training: every parameter as it is, no constraint; optionally a running average of the weights."""

from typing import Any

import torch
from torch import Tensor, nn

from atmc_tool.config import TrainConfig
from atmc_tool.methods.method import one_cycle


class Dense:
    """The parameters of `network`, trained in place; ships them, or their exponential average."""

    def __init__(self, network: nn.Module, config: TrainConfig) -> None:
        self._network = network
        self._config = config
        self._average = {name: t.detach().clone() for name, t in self._floats().items()} if config.average else {}

    def _floats(self) -> dict[str, Tensor]:
        return {name: tensor for name, tensor in self._network.state_dict().items() if tensor.is_floating_point()}

    def parameters(self) -> list[Tensor]:
        return list(self._network.parameters())

    def learning_rate(self, progress: float) -> float:
        return one_cycle(self._config.lr, self._config.warmup, progress)

    def weights(self, progress: float) -> dict[str, Tensor]:  # noqa: ARG002
        return dict(self._network.named_parameters())

    def penalty(self, progress: float) -> Tensor | None:  # noqa: ARG002
        return None

    @torch.no_grad()
    def after_step(self, progress: float, step: int) -> None:  # noqa: ARG002
        if self._average:
            # the start is forgotten at the rate at which the average grows old
            weight = max(1 - self._config.average, 1 / (step + 1))
            torch._foreach_lerp_(list(self._average.values()), list(self._floats().values()), weight)

    def shipped(self, progress: float = 1.0) -> dict[str, Tensor]:  # noqa: ARG002
        return self._average or {name: p.detach() for name, p in self._network.named_parameters()}

    def finish(self) -> None:
        if self._average:
            self._network.load_state_dict(self._average, strict=False)

    def metrics(self) -> dict[str, float]:
        return {}

    def state(self) -> dict[str, Any]:
        return {"average": self._average}

    def load_state(self, state: dict[str, Any]) -> None:
        for name, tensor in state["average"].items():
            self._average[name].copy_(tensor)
