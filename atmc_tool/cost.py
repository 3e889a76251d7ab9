"""What a training costs, in passes through the network: the same count for every method and every machine."""

from dataclasses import dataclass

from atmc_tool.config import AttackConfig, ScheduleConfig
from atmc_tool.training import planned_steps


@dataclass(frozen=True)
class Cost:
    """The cost of a training.

    steps:  updates of the weights
    passes: forward and backward passes of one image through the network: those of the attack, whose gradient is that of
            the input, and those of the training, whose gradient is that of the weights
    images: images of the training set
    """

    steps: int
    passes: int
    images: int

    @property
    def per_image(self) -> float:
        """Passes for each image of the training set: passes / images."""
        return self.passes / self.images


def training_cost(schedule: ScheduleConfig, attack: AttackConfig, n_images: int, *, attacked: bool) -> Cost:
    """steps · batch · passes of an image in one step, as planned.

    An image takes 1 pass in a natural step, else attack.steps passes of the attack and those of the loss: 1 where only
    adversarial images are trained on (`mixed` with clean_weight 0), 2 where clean ones are too (`mixed`, `trades`,
    `mart`). Not counted: forward passes without a gradient, validation, the measurement at the end, and steps that a
    training repeats after it diverged.

    attacked: the training has a threat model
    """
    _, steps = planned_steps(schedule, n_images)
    passes = _passes(schedule, attack) if attacked else 1
    return Cost(steps, steps * min(schedule.batch_size, n_images) * passes, n_images)


def _passes(schedule: ScheduleConfig, attack: AttackConfig) -> int:
    """Passes of one image in a step against an adversary."""
    if schedule.objective == "mixed" and schedule.clean_weight == 1:
        return 1
    return attack.steps + (1 if schedule.objective == "mixed" and schedule.clean_weight == 0 else 2)
