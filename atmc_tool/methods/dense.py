"""Dense training: every parameter as it is, no constraint."""

from typing import Any

from torch import Tensor, nn

from atmc_tool.config import TrainConfig
from atmc_tool.methods.method import learning_rate


class Dense:
    """The parameters of `network`, trained in place."""

    def __init__(self, network: nn.Module, config: TrainConfig) -> None:
        self._network = network
        self._config = config

    def parameters(self) -> list[Tensor]:
        return list(self._network.parameters())

    def learning_rate(self, progress: float) -> float:
        return learning_rate(self._config, self._config.lr, progress)

    def weights(self, progress: float) -> dict[str, Tensor]:  # noqa: ARG002
        return dict(self._network.named_parameters())

    def penalty(self, progress: float) -> Tensor | None:  # noqa: ARG002
        return None

    def after_step(self, progress: float, step: int) -> None:
        pass

    def shipped(self, progress: float = 1.0) -> dict[str, Tensor]:  # noqa: ARG002
        return {name: p.detach() for name, p in self._network.named_parameters()}

    def finish(self) -> None:
        pass

    def metrics(self) -> dict[str, float]:
        return {}

    def state(self) -> dict[str, Any]:
        return {}

    def load_state(self, state: dict[str, Any]) -> None:
        pass
