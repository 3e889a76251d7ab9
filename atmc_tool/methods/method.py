"""What the training loop asks of a method: what is trained, what is constrained, and when."""

from math import cos, pi
from typing import Any, Protocol

from torch import Tensor

from atmc_tool.compressed import CompressedWeight
from atmc_tool.config import ScheduleConfig


class Method(Protocol):
    """A compression method as hooks of one training loop. `progress` runs from 0 to 1 over the whole schedule."""

    def parameters(self) -> list[Tensor]:
        """The tensors that the optimiser trains."""
        ...

    def learning_rate(self, progress: float) -> float:
        """The learning rate of the step at `progress`."""
        ...

    def weights(self, progress: float) -> dict[str, Tensor]:
        """Every parameter of the network by name, differentiable in `parameters()`; computed once a step."""
        ...

    def penalty(self, progress: float) -> Tensor | None:
        """A term to add to the loss of this step."""
        ...

    def after_step(self, progress: float, step: int) -> None:
        """Projections and dual updates after the optimiser's step number `step` (from 1)."""
        ...

    def shipped(self, progress: float) -> dict[str, Tensor]:
        """Detached parameters, and buffers where they differ from the network's, that would be shipped right now."""
        ...

    def finish(self) -> None:
        """The last step is done: project for good, so that what is shipped satisfies every constraint exactly."""
        ...

    def metrics(self) -> dict[str, float]:
        """Numbers for the log, such as kept entries and residuals; called once an epoch."""
        ...

    def state(self) -> dict[str, Any]:
        """Everything that a resumed run needs and `load_state` takes back: nested dicts of tensors and numbers.

        Its tensors are the same to the bit on every rank.
        """
        ...

    def load_state(self, state: dict[str, Any]) -> None:
        """Continue from what `state` returned."""
        ...


class CompressionMethod(Method, Protocol):
    """A method whose result goes into a file."""

    @property
    def kept(self) -> int:
        """Entries of all factors that the budget allows."""
        ...

    def compressed(self) -> dict[str, CompressedWeight]:
        """The compressed weights by name; call after `finish`."""
        ...


def learning_rate(schedule: ScheduleConfig, peak: float, position: float) -> float:
    """Learning rate at `position` in [0, 1] of a part of `schedule`: linear from peak/25 over the warm-up, then down.

    Down to zero by a cosine (Smith & Topin 2017, arXiv:1708.07120, with a linear rise), or, with milestones, to a tenth
    at each of them.
    """
    warmup = schedule.warmup
    if position < warmup:
        return peak * (1 / 25 + (24 / 25) * position / warmup)
    if schedule.milestones:
        return float(peak * 0.1 ** sum(position >= milestone for milestone in schedule.milestones))
    return peak * 0.5 * (1 + cos(pi * min(1.0, (position - warmup) / (1 - warmup))))
