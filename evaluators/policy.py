"""What a released model must hold."""

import difflib
from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from atmc_tool.config_errors import explain
from atmc_tool.errors import UsageError
from atmc_tool.threat_model import Norm, parse_eps
from atmc_tool.units import parse_size
from evaluators.attack_plan import AttackName
from evaluators.gate import CHECKS, Grade


class Policy(BaseModel):
    """Conditions of the gate. With none of them set, parity, the checks of the attacks and `max_drop` still hold.

    min_clean, min_robust: accuracies that the lower end of the exact 95 % interval must reach
    max_drop:              largest fall of an accuracy below the number recorded at compression
    max_clean_loss:        non-inferiority margin: the upper 95 % bound of the fall below the baseline, image by image
    max_robust_loss:       the same of robust accuracy
    max_bytes:             largest size of the verified file; `20KB` too
    min_n:                 fewest images
    grade:                 `release`: no smoke test passes
    min_eps, norm:         the threat model that must have been tried at least; without a norm l-infinity
    attack:                the attack that must have run; `autoattack` is more than `standard`
    min_steps:             fewest steps of any white-box attack that ran
    min_restarts:          fewest starts of the first attack, PGD on the cross-entropy
    allow_black_box:       a file without gradients may pass, judged by transfer and the black-box attack alone
    required:              names of checks that must be applied and pass without a warning
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    min_clean: float | None = Field(None, ge=0, le=1)
    min_robust: float | None = Field(None, ge=0, le=1)
    max_drop: float = Field(0.02, ge=0, le=1)
    max_clean_loss: float | None = Field(None, ge=0, le=1)
    max_robust_loss: float | None = Field(None, ge=0, le=1)
    max_bytes: int | None = Field(None, ge=1)
    min_n: int | None = Field(None, ge=1)
    grade: Grade = "smoke"
    min_eps: str | None = None
    norm: Norm | None = None
    attack: AttackName = "standard"
    min_steps: int | None = Field(None, ge=1)
    min_restarts: int | None = Field(None, ge=1)
    allow_black_box: bool = False
    required: tuple[str, ...] = ()

    @field_validator("max_bytes", mode="before")
    @classmethod
    def _of_size(cls, size: object) -> object:
        if not isinstance(size, str):
            return size
        try:
            number, relative = parse_size(size)
        except UsageError as error:
            raise ValueError(str(error)) from error
        if relative:
            raise ValueError("expected bytes such as 20KB")
        return int(number)

    @field_validator("min_eps", mode="before")
    @classmethod
    def _as_written(cls, eps: object) -> object:
        text = str(eps) if isinstance(eps, int | float) and not isinstance(eps, bool) else eps
        try:
            if isinstance(text, str):
                parse_eps(text)
        except UsageError as error:
            raise ValueError(str(error)) from error
        return text

    @field_validator("required")
    @classmethod
    def _known(cls, required: tuple[str, ...]) -> tuple[str, ...]:
        for name in required:
            if name not in CHECKS:
                near = difflib.get_close_matches(name, CHECKS, n=1, cutoff=0.5)
                hint = f"did you mean {near[0]}?" if near else f"known: {', '.join(CHECKS)}"
                raise ValueError(f"unknown check {name!r}. Hint: {hint}")
        return required

    @property
    def requires_drop(self) -> bool:
        """`max_drop` was asked for, so that numbers which can't be compared fail the gate."""
        return "max_drop" in self.model_fields_set

    def to_json(self) -> dict[str, Any]:
        """The conditions that were asked for; `parse_policy` makes the same policy of them."""
        return self.model_dump(mode="json", exclude_unset=True)


def parse_policy(settings: Mapping[str, Any], where: str = "policy") -> Policy:
    """A policy from plain settings, such as the `policy` section of a configuration or of the file `where`.

    Raises:
        UsageError: an unknown condition or check, or a value out of range.
    """
    try:
        return Policy.model_validate(dict(settings))
    except ValidationError as error:
        raise UsageError(f"{where}: {explain(error, Policy)}") from error
