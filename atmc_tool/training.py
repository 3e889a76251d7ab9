"""The training loop: data, attack, objective, optimiser, the method's hooks, metrics and checkpoints.

Every random choice of a step is drawn from a generator seeded by (seed, step), and the order of an epoch from (seed,
epoch), so a resumed run goes on to the same bits as one that was never interrupted, on the same machine.
"""

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from atmc_tool.checkpoint import drop_checkpoints, load_checkpoint, save_checkpoint
from atmc_tool.config import ScheduleConfig
from atmc_tool.data.loader import batches, training_images
from atmc_tool.errors import AtmcError, InputError, InterruptedRunError
from atmc_tool.methods.method import Method
from atmc_tool.metrics import METRICS, append_metrics, trim_metrics
from atmc_tool.objectives import needs_attack
from atmc_tool.stability import MAX_ROLLBACKS, Collapse, all_finite
from atmc_tool.synced_batch_norm import synced_batch_norm
from atmc_tool.trainee import Trainee
from atmc_tool.training_attack import StepAttack
from atmc_tool.training_step import Setup
from atmc_tool.validation import held_out, validate


@dataclass(frozen=True)
class Event:
    """Progress: a step or an epoch is done; or a warning, which is `text`.

    seconds: since the start of the run, over all its resumptions
    """

    kind: Literal["step", "epoch", "warning"]
    step: int
    steps: int
    epoch: int
    epochs: int
    seconds: float
    metrics: Mapping[str, float]
    text: str = ""


def planned_steps(schedule: ScheduleConfig, n_images: int) -> tuple[int, int]:
    """(steps of an epoch, steps of the whole schedule)."""
    per_epoch = max(1, n_images // schedule.batch_size)
    steps = schedule.epochs * per_epoch if schedule.epochs else max(10 * per_epoch, 1000)
    return per_epoch, min(steps, schedule.max_steps or steps)


def train(
    setup: Setup,
    method: Method,
    schedule: ScheduleConfig,
    folder: Path,
    *,
    digest: str,
    select: bool,
    resume: bool,
    time_limit: float | None = None,
    report: Callable[[Event], None],
    stop: Callable[[], bool],
) -> None:
    """Run `method` through `schedule`; afterwards `method` and `setup.network` hold what is to be shipped.

    Checkpoints go to `folder/checkpoints`, a line of metrics per epoch to `folder/metrics.jsonl`. A step costs
    attack.steps × (forward + input gradient) + 2 forwards and backwards, and one materialisation of the weights.
    `free` trains attack.steps times on each batch; every time is a step of the schedule.

    A loss or weights that are no longer finite are found at the end of the epoch. The run then goes back to the end of
    the last epoch that was sound, with half the learning rate. So it does where an attack of a single step has led to
    catastrophic overfitting, and goes on with PGD.

    With several ranks every one calls this alike. Only the first reads and writes in `folder`; `report` is called on
    all.

    Args:
        digest: of everything that must be equal for a checkpoint to be resumed.
        select: ship the epoch with the best validation accuracy (robust, or clean in natural training) instead of
            the last one.
        time_limit: seconds of wall-clock time for the training alone; the schedule shrinks to fit. None: no limit.
        stop: asked after every step; True saves a checkpoint and raises.

    Raises:
        InterruptedRunError: `stop` said so; the state is saved.
        InputError: there is no checkpoint to resume, or it is of another configuration.
        AtmcError: it diverged, also after every rollback; or the ranks' states are no longer equal.
    """
    with synced_batch_norm(setup.network, setup.ranks):
        _Loop(setup, method, schedule, folder, digest, select, time_limit, report, stop).run(resume=resume)


@dataclass
class _Loop:
    """The state of one run of `train`, whose arguments these are."""

    setup: Setup
    method: Method
    schedule: ScheduleConfig
    folder: Path
    digest: str
    select: bool
    time_limit: float | None
    report: Callable[[Event], None]
    stop: Callable[[], bool]
    step: int = 0
    seconds: float = 0.0
    best: dict[str, Any] | None = None
    sound: int = 0  # the step of the last checkpoint at an epoch's end, where all was finite
    rollbacks: int = 0  # of both kinds; each but that to PGD halves the learning rate
    collapse: Collapse = field(default_factory=Collapse)

    def __post_init__(self) -> None:
        setup, schedule = self.setup, self.schedule
        self.images, self.labels = training_images(setup.data.train, setup.device)
        self.validation = held_out(setup.data, setup.device)
        self.per_epoch, self.steps = planned_steps(schedule, len(self.images))
        self.trainee = Trainee(setup, self.method, schedule)
        self.loss_sum = torch.zeros((), device=setup.device)

    def run(self, *, resume: bool) -> None:
        setup = self.setup
        if resume:
            self._load()
        else:
            if self._single_step() is not None:  # robustness of the start may be gone after the first epoch
                self.collapse.observe(self._validate(dict(setup.network.named_parameters())))
            self._save()
        started = time.monotonic() - self.seconds
        while not self._done():
            epoch = self.step // self.per_epoch
            for images, labels in self._feed():
                try:
                    self._train_step(images, labels)
                except (RuntimeError, ValueError, IndexError):  # a method may choke on NaN before the epoch ends
                    if self._finite():
                        raise
                    self._roll_back(epoch)
                    break
                self.seconds = time.monotonic() - started
                self._report("step", {})
                stop, self.seconds = setup.ranks.agree(self.stop(), self.seconds)
                ends_epoch = self.step % self.per_epoch == 0 or self._done()
                if ends_epoch and not self._finite():
                    self._roll_back(epoch)
                    break
                if ends_epoch:
                    if not self._end_epoch(epoch):
                        break
                    _, self.seconds = setup.ranks.agree(False, time.monotonic() - started)
                if ends_epoch or self.step % self.schedule.checkpoint_steps == 0:
                    self._save()
                if stop:
                    self._save()
                    raise InterruptedRunError("interrupted", hint="the state is saved; go on with --resume")
                if ends_epoch:
                    break
        self._finish()

    def progress(self) -> float:
        """Share of the schedule that is done, by steps or by time, whichever is further."""
        done = self.step / self.steps
        if self.time_limit is not None:
            done = max(done, self.seconds / self.time_limit)
        return min(1.0, done)

    def _done(self) -> bool:
        return self.progress() >= 1

    def _feed(self) -> Iterator[tuple[Tensor, Tensor]]:
        """The batches of the coming steps, without end; each as often as it is replayed."""
        replays = self.trainee.replays
        number, done = divmod(self.step, replays)
        while True:
            epoch, first = divmod(number, self.per_epoch)
            where = {"epoch": epoch, "seed": self.setup.seed, "start_batch": first}
            for batch in batches(self.images, self.labels, self.schedule.batch_size, **where):
                for _ in range(replays - done):
                    yield batch
                number, done = number + 1, 0

    def _train_step(self, images: Tensor, labels: Tensor) -> None:
        slowdown = 0.5 ** (self.rollbacks - self.trainee.guarded)
        loss = self.trainee.train_step(images, labels, self.step, self.progress(), slowdown)
        self.step += 1
        self.loss_sum += loss

    def _end_epoch(self, epoch: int) -> bool:
        """Validate; False where it went back, for the training's single-step attack has failed."""
        steps = (self.step - 1) % self.per_epoch + 1
        setup, trainee = self.setup, self.trainee
        if not setup.ranks.equal(trainee.state()):
            raise AtmcError("the processes of this run have come apart", hint="go on with --resume")
        with trainee.average.in_place():
            shipped = self.method.shipped(self.progress())
            accuracy = self._validate(shipped)
            warning = self.collapse.observe(accuracy)
            failed = warning is not None and self._single_step() is not None
            if self.select and not failed:
                self._keep_best(accuracy, {**setup.network.state_dict(), **shipped})
        if warning is not None and failed:
            self._guard(epoch, warning)
            return False
        metrics = {"loss": float(self.loss_sum) / steps, **accuracy, **self.method.metrics()}
        metrics["learning_rate"] = trainee.learning_rate
        self.loss_sum.zero_()
        self.sound = self.step
        self._write_metrics(epoch, metrics)
        self._report("epoch", metrics)
        if warning is not None:
            warning += "; more steps of the training attack help (--set attack.steps=)"
            self._write_metrics(epoch, {"warning": warning})
            self._report("warning", {}, warning)
        return True

    def _single_step(self) -> StepAttack | None:
        """What stands on validation images for the training's attack, where that has one step."""
        return self.trainee.attack(self.progress()).of_validation() if needs_attack(self.schedule) else None

    def _validate(self, weights: Mapping[str, Tensor]) -> dict[str, float]:
        return validate(self.setup, weights, *self.validation, self.schedule.batch_size, self._single_step())

    def _keep_best(self, accuracy: Mapping[str, float], state: Mapping[str, Tensor]) -> None:
        score = accuracy.get("validation_robust", accuracy["validation_clean"])
        if self.best is None or score >= self.best["score"]:
            self.best = {"score": score, "state": {name: t.detach().clone() for name, t in state.items()}}

    def _write_metrics(self, epoch: int, facts: Mapping[str, Any]) -> None:
        if not self.setup.ranks.first:
            return
        where = {"epoch": epoch + 1, "step": self.step, "steps": self.steps, "seconds": round(self.seconds, 3)}
        append_metrics(self.folder / METRICS, {**where, **facts})

    def _finite(self) -> bool:
        return all_finite([self.loss_sum, *self.trainee.tensors()])

    def _roll_back(self, epoch: int) -> None:
        """Go back to the last sound epoch's end with half the learning rate."""
        what = f"training diverged in epoch {epoch + 1}"
        if self.rollbacks - self.trainee.guarded == MAX_ROLLBACKS:
            raise AtmcError(
                f"{what}, also with 1/{2**MAX_ROLLBACKS} of the learning rate",
                hint="lower the learning rate (--set train.lr= or compress.lr=) or raise eps_warmup",
            )
        self._go_back(what)
        rate = f"1/{2 ** (self.rollbacks - self.trainee.guarded)} of the learning rate"
        self._begin_again(epoch, f"{what}: back to step {self.step} with {rate}")

    def _guard(self, epoch: int, what: str) -> None:
        """Go back to the last sound epoch's end, and on with PGD; at most once in a run."""
        self._go_back(what)
        self.trainee.guard()
        self.collapse = Collapse()
        steps = self.trainee.attack(self.progress()).steps
        self._begin_again(epoch, f"{what}: back to step {self.step}, from there on with PGD-{steps}")

    def _go_back(self, what: str) -> None:
        """To the state at the last sound epoch's end.

        Killed at any point until `_begin_again` has saved, a resumed run goes wrong again and comes here again.
        """
        folder, seconds = self.folder / "checkpoints", self.seconds
        if self.setup.ranks.first:
            drop_checkpoints(folder, self.sound)
        state = self.setup.ranks.from_first(lambda: load_checkpoint(folder))
        if state is None:
            raise AtmcError(f"{what}, and the checkpoint to go back to is gone", hint="start again with --overwrite")
        self._restore(state)
        self.seconds = seconds
        self.rollbacks += 1

    def _begin_again(self, epoch: int, warning: str) -> None:
        self._write_metrics(epoch, {"rollback": self.rollbacks, "warning": warning})
        self._save()
        self._report("warning", {}, warning)

    def _finish(self) -> None:
        if self.best is not None:
            self.setup.network.load_state_dict(self.best["state"])
        else:
            self.trainee.finish()
        self.setup.network.eval()

    def _report(self, kind: Literal["step", "epoch", "warning"], metrics: Mapping[str, float], text: str = "") -> None:
        epochs = -(-self.steps // self.per_epoch)
        epoch = -(-self.step // self.per_epoch)
        self.report(Event(kind, self.step, self.steps, epoch, epochs, self.seconds, metrics, text))

    def _save(self) -> None:
        if not self.setup.ranks.first:
            return
        state = {
            "digest": self.digest,
            "step": self.step,
            "seconds": self.seconds,
            "loss_sum": self.loss_sum,
            **self.trainee.state(),
            "best": self.best,
            "sound": self.sound,
            "rollbacks": self.rollbacks,
            "collapse": asdict(self.collapse),
        }
        save_checkpoint(self.folder / "checkpoints", self.step, state, keep=self.sound)

    def _load(self) -> None:
        folder = self.folder / "checkpoints"
        state = self.setup.ranks.from_first(lambda: load_checkpoint(folder))
        if state is None:
            raise InputError(f"nothing to resume in {self.folder}", expected="a checkpoint", hint="leave --resume out")
        if state["digest"] != self.digest:
            raise InputError(
                f"the checkpoint in {folder} is of another configuration, model or data set",
                hint="resume with the options of the first call, or start again with --overwrite",
            )
        self._restore(state)
        if self.setup.ranks.first:
            trim_metrics(self.folder / METRICS, self.step, self.rollbacks)

    def _restore(self, state: dict[str, Any]) -> None:
        self.step, self.seconds, self.best = state["step"], state["seconds"], state["best"]
        self.sound, self.rollbacks, self.collapse = state["sound"], state["rollbacks"], Collapse(**state["collapse"])
        self.loss_sum.fill_(float(state["loss_sum"]))
        self.trainee.load_state(state)
