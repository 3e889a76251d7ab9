"""What a training changes from step to step: the method's tensors, their optimiser, and all that goes with them."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from atmc_tool.averaging import Average
from atmc_tool.config import ScheduleConfig
from atmc_tool.data.loader import augment
from atmc_tool.methods.method import Method
from atmc_tool.objectives import loss_weight, needs_attack
from atmc_tool.training_attack import StepAttack, step_attack
from atmc_tool.training_step import Setup, loss_and_gradients


@dataclass
class Trainee:
    """`method` in training by `schedule`.

    guarded:      a single-step attack has failed: PGD from here on
    perturbation: of `free`: (N, C, H, W), one for each place in a batch
    """

    setup: Setup
    method: Method
    schedule: ScheduleConfig
    guarded: bool = False
    perturbation: Tensor | None = None

    def __post_init__(self) -> None:
        schedule = self.schedule
        self.optimizer = torch.optim.SGD(
            self.method.parameters(), lr=schedule.lr, momentum=schedule.momentum, weight_decay=schedule.weight_decay
        )
        self.average = Average(self.tensors() if schedule.average else [], schedule.average)

    def tensors(self) -> list[Tensor]:
        """What training changes: the method's parameters and the network's buffers of floats."""
        buffers = [buffer for buffer in self.setup.network.buffers() if buffer.is_floating_point()]
        return [*self.method.parameters(), *buffers]

    @property
    def replays(self) -> int:
        """Steps on one batch."""
        return self.setup.attack.steps if self.schedule.objective == "free" and not self.guarded else 1

    @property
    def learning_rate(self) -> float:
        """That of the last step."""
        rate: float = self.optimizer.param_groups[0]["lr"]
        return rate

    def attack(self, progress: float) -> StepAttack:
        """The attack at `progress` of the schedule."""
        setup = self.setup
        return step_attack(self.schedule.objective, setup.attack, progress, guarded=self.guarded, norm=setup.norm)

    def guard(self) -> None:
        """Take no attack of a single step any more."""
        self.guarded, self.perturbation = True, None

    def train_step(self, images: Tensor, labels: Tensor, step: int, progress: float, slowdown: float) -> Tensor:
        """Step number `step` (from 0), with `slowdown` times the method's learning rate; the batch's loss.

        Where the method itself changes what is trained, in `weights`, a new part of its schedule begins, and the
        running average starts anew.
        """
        setup, schedule, method = self.setup, self.schedule, self.method
        for group in self.optimizer.param_groups:
            group["lr"] = method.learning_rate(progress) * slowdown
        self.optimizer.zero_grad(set_to_none=True)  # before the passes, which take the most memory
        self._seed(step - step % self.replays)  # a batch is augmented alike in each of its replays
        images = augment(images, setup.data.augmentation, torch.default_generator)
        if self.replays > 1:
            self._seed(step)
        versions = [tensor._version for tensor in method.parameters()]
        weights = method.weights(progress)
        if versions != [tensor._version for tensor in method.parameters()]:
            self.average.restart()
        attack, eps = self.attack(progress), 0.0
        if setup.threat_model is not None and needs_attack(schedule):
            eps = setup.threat_model.eps * min(1.0, progress / schedule.eps_warmup if schedule.eps_warmup else 1.0)
            if attack.kind == "free" and self.perturbation is None:
                self.perturbation = torch.zeros_like(images)
        loss, gradients = loss_and_gradients(
            setup,
            weights,
            images,
            labels,
            eps=eps,
            weight=loss_weight(schedule),
            attack=attack,
            objective=schedule.objective,
            smoothing=schedule.label_smoothing,
            perturbation=self.perturbation,
        )
        trained = [name for name in gradients if weights[name].requires_grad]
        roots: list[Tensor] = [weights[name] for name in trained]
        along: list[Tensor | None] = [gradients[name] for name in trained]
        if (penalty := method.penalty(progress)) is not None:
            roots.append(penalty)
            along.append(None)
        torch.autograd.backward(roots, along)
        self.optimizer.step()
        method.after_step(progress, step + 1)
        self.average.update()
        return loss

    def _seed(self, step: int) -> None:
        torch.manual_seed(self.setup.seed * 1_000_003 + step)

    def finish(self) -> None:
        """The last step is done: the average is what is projected and shipped."""
        self.average.put()
        self.method.finish()

    def state(self) -> dict[str, Any]:
        """Everything that a resumed run needs and `load_state` takes back; the same to the bit on every rank."""
        return {
            "network": self.setup.network.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "method": self.method.state(),
            "average": self.average.state(),
            "guarded": self.guarded,
            "perturbation": self.perturbation,
        }

    def load_state(self, state: dict[str, Any]) -> None:
        """Go on from what `state` returned."""
        self.setup.network.load_state_dict(state["network"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.method.load_state(state["method"])
        self.average.load_state(state["average"])
        self.guarded, perturbation = state["guarded"], state["perturbation"]
        self.perturbation = None if perturbation is None else perturbation.to(self.setup.device)
