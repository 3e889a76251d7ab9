"""What a training costs, in passes through the network: the same count for every method and every machine."""

from dataclasses import dataclass

from atmc_tool.config import AttackConfig, ScheduleConfig
from atmc_tool.objectives import needs_attack
from atmc_tool.training import planned_steps
from atmc_tool.training_attack import step_attack


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
    """The sum over steps of batch · passes of an image, as planned.

    An image takes 1 pass in a step without an attack, else the passes of the attack (attack.steps of PGD, 1 of a single
    step, 0 in `free`, whose attack shares the pass of the training) and those of the loss: 2 where clean images are
    trained on too (`mixed` with clean_weight above 0, `trades`, `mart`), else 1. Not counted: forward passes without a
    gradient, validation, the measurement at the end, and what a training does in other ways than planned, for it
    diverged or overfitted to a single step.

    attacked: the training has a threat model
    """
    _, steps = planned_steps(schedule, n_images)
    each = steps
    if attacked and needs_attack(schedule):
        each = sum(_passes(schedule, attack, step / steps) for step in range(steps))
    return Cost(steps, min(schedule.batch_size, n_images) * each, n_images)


def _passes(schedule: ScheduleConfig, config: AttackConfig, progress: float) -> int:
    """Passes of one image in a step against an adversary."""
    attack = step_attack(schedule.objective, config, progress, guarded=False)
    of_attack = {"pgd": attack.steps, "free": 0}.get(attack.kind, 1)
    with_clean = schedule.objective in ("trades", "mart") or (schedule.objective == "mixed" and schedule.clean_weight)
    return of_attack + (2 if with_clean else 1)
