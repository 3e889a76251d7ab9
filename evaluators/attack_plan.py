"""Which attacks `verify` runs, one after the other."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

from atmc_tool.attacks.apgd import apgd
from atmc_tool.attacks.classifier import Array, Classifier, Loss
from atmc_tool.attacks.fab import fab
from atmc_tool.attacks.pgd import default_step_size, pgd
from atmc_tool.attacks.square import square
from atmc_tool.attacks.standing import SampleAttack
from atmc_tool.attacks.starts import start_noise
from atmc_tool.attacks.targets import likely_target, n_targets
from atmc_tool.errors import UsageError
from atmc_tool.threat_model import Norm

AttackName = Literal["standard", "autoattack"]
LIKELY_TARGETS = 3  # of APGD-T in the standard attack
SQUARE_QUERIES: Mapping[AttackName, int] = {"standard": 300, "autoattack": 5000}


@dataclass(frozen=True)
class AttackSettings:
    """How hard to attack.

    attack:          `standard`: PGD on two losses, APGD-T of as many steps towards the three likeliest classes on the
                     samples still standing, in l2 FAB-T too, for where gradients mislead PGD; Square; `autoattack`:
                     APGD-CE, APGD-T, FAB-T and Square, each on what is still standing (Croce & Hein 2020,
                     arXiv:2003.01690)
    steps, restarts: of PGD on the cross-entropy; PGD on the margin loss has one restart of as many steps
    step_size:       of PGD, in units of the image; None: 2.5·eps/steps
    auto_steps:      of FAB, in `standard` at least `steps`; in `autoattack` of APGD
    square_queries:  of the Square attack, per sample; 0 leaves it out; None: 300, with `autoattack` 5,000
    square_samples:  it attacks the first so many images, with `autoattack` all
    seed:            of starts and squares
    batch_size:      images per run of the classifier

    Raises:
        UsageError: a value out of range.
    """

    attack: AttackName = "standard"
    steps: int = 20
    restarts: int = 3
    step_size: float | None = None
    auto_steps: int = 100
    square_queries: int | None = None
    square_samples: int = 256
    seed: int = 0
    batch_size: int = 128

    def __post_init__(self) -> None:
        if self.attack not in SQUARE_QUERIES:
            raise UsageError("unknown attack", expected=" or ".join(SQUARE_QUERIES), got=repr(self.attack))
        lowest = {"steps": 1, "restarts": 1, "auto_steps": 1, "square_queries": 0, "square_samples": 1, "seed": 0}
        for name, value in asdict(self).items():
            if name in {**lowest, "batch_size": 1} and value is not None and value < lowest.get(name, 1):
                raise UsageError(f"{name} is out of range", expected=f"at least {lowest.get(name, 1)}", got=value)
        if self.step_size is not None and not self.step_size > 0:
            raise UsageError("step_size is out of range", expected="a positive number", got=self.step_size)

    @property
    def queries(self) -> int:
        """Of the Square attack."""
        return SQUARE_QUERIES[self.attack] if self.square_queries is None else self.square_queries


@dataclass(frozen=True)
class PlannedAttack:
    """An attack under a name of its own.

    attempts:  one for every start or target class; a sample that one fools is spared the next
    samples:   it attacks the first so many images; None: all
    standing:  it attacks only what all attacks before it have left
    """

    name: str
    parameters: Mapping[str, Any]
    attempts: Sequence[SampleAttack]
    white_box: bool = True
    samples: int | None = None
    standing: bool = False


def plan(classifier: Classifier, eps: float, norm: Norm, classes: int, settings: AttackSettings) -> list[PlannedAttack]:
    """The attacks of `settings.attack` on a classifier of so many classes, in their order; white-box ones first."""
    whole = _Maker(classifier, eps, norm, n_targets(classes), settings, settings.auto_steps)
    black_box = [whole.square()] if settings.queries else []
    if settings.attack == "standard":
        maker = _Maker(classifier, eps, norm, min(LIKELY_TARGETS, classes - 1), settings, settings.steps)
        longer = replace(whole, auto_steps=max(settings.auto_steps, settings.steps))
        targeted = [maker.apgd_t(), *([longer.fab_t()] if norm == "l2" else [])]
        planned = [maker.pgd("cross_entropy", settings.restarts), maker.pgd("margin", 1)]
        return [*planned, *(replace(attack, standing=True) for attack in targeted), *black_box]
    planned = [whole.apgd_ce(), whole.apgd_t(), whole.fab_t(), *black_box]
    return [replace(attack, standing=True) for attack in planned]


@dataclass(frozen=True)
class _Maker:
    """Makes attacks of one classifier under one threat model; `n_targets` and `auto_steps` are of APGD and FAB."""

    classifier: Classifier
    eps: float
    norm: Norm
    n_targets: int
    settings: AttackSettings
    auto_steps: int

    def pgd(self, loss: Loss, restarts: int) -> PlannedAttack:
        steps, eps = self.settings.steps, self.eps
        size = default_step_size(eps, steps) if self.settings.step_size is None else self.settings.step_size

        def attempt(restart: int) -> SampleAttack:
            return lambda x, y, indices: pgd(
                self.classifier,
                x,
                y,
                eps,
                steps=steps,
                step_size=size,
                noise=self._noise(x, restart, indices),
                loss=loss,
                norm=self.norm,
            )

        parameters = {"steps": steps, "step_size": size, "restarts": restarts, "start": "uniform in the ball"}
        attempts = [attempt(restart) for restart in range(restarts)]
        return PlannedAttack(f"pgd-{steps} {loss.replace('_', '-')}", self._stated("pgd", parameters, loss), attempts)

    def apgd_ce(self) -> PlannedAttack:
        parameters = {"steps": self.auto_steps, "restarts": 1, "start": "on the sphere"}
        stated = self._stated("apgd", parameters, "cross_entropy")
        return PlannedAttack("apgd-ce", stated, [lambda x, y, indices: self._apgd(x, y, indices, 0, "cross_entropy")])

    def apgd_t(self) -> PlannedAttack:
        def attempt(rank: int) -> SampleAttack:
            return lambda x, y, indices: self._apgd(x, y, indices, rank, "dlr", self._target(x, y, rank))

        parameters = {"steps": self.auto_steps, "targets": self.n_targets, "start": "on the sphere"}
        attempts = [attempt(rank) for rank in range(self.n_targets)]
        return PlannedAttack("apgd-t", self._stated("apgd", parameters, "dlr"), attempts)

    def fab_t(self) -> PlannedAttack:
        steps = self.auto_steps

        def attempt(rank: int) -> SampleAttack:
            return lambda x, y, _: fab(
                self.classifier, x, y, self.eps, steps=steps, targets=self._target(x, y, rank), norm=self.norm
            )

        stated = self._stated("fab", {"steps": steps, "targets": self.n_targets})
        return PlannedAttack("fab-t", stated, [attempt(rank) for rank in range(self.n_targets)])

    def square(self) -> PlannedAttack:
        queries, seed = self.settings.queries, self.settings.seed

        def attempt(x: Array, y: Array, indices: Sequence[int]) -> Array:
            return square(self.classifier, x, y, self.eps, queries=queries, seed=seed, indices=indices, norm=self.norm)[
                0
            ]

        samples = self.settings.square_samples if self.settings.attack == "standard" else None
        stated = self._stated("square", {"queries": queries})
        return PlannedAttack("square", stated, [attempt], white_box=False, samples=samples)

    def _apgd(
        self, x: Array, y: Array, indices: Sequence[int], start: int, loss: Loss, targets: Array | None = None
    ) -> Array:
        return apgd(
            self.classifier,
            x,
            y,
            self.eps,
            steps=self.auto_steps,
            noise=self._noise(x, start, indices),
            loss=loss,
            targets=targets,
            norm=self.norm,
        )

    def _noise(self, x: Array, restart: int, indices: Sequence[int]) -> Array:
        return start_noise(self.settings.seed, restart, indices, tuple(x.shape[1:]), self.norm)

    def _target(self, x: Array, y: Array, rank: int) -> Array:
        return likely_target(self.classifier.logits(x), y, rank)

    def _stated(self, attack: str, parameters: Mapping[str, Any], loss: Loss | None = None) -> dict[str, Any]:
        losses = {} if loss is None else {"loss": loss}
        return {
            "attack": attack,
            **losses,
            "norm": self.norm,
            "eps": self.eps,
            **parameters,
            "seed": self.settings.seed,
        }
