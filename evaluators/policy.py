"""What a released model must hold."""

from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from atmc_tool.config_errors import explain
from atmc_tool.errors import UsageError


class Policy(BaseModel):
    """Thresholds of the gate. With none of them set, parity, the checks of the attacks and `max_drop` still hold.

    min_clean, min_robust: accuracies that the lower end of the exact 95 % interval must reach
    max_drop:              largest fall of an accuracy below the number recorded at compression
    max_bytes:             largest size of the verified file
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    min_clean: float | None = Field(None, ge=0, le=1)
    min_robust: float | None = Field(None, ge=0, le=1)
    max_drop: float = Field(0.02, ge=0, le=1)
    max_bytes: int | None = Field(None, ge=1)

    @property
    def requires_drop(self) -> bool:
        """`max_drop` was asked for, so that numbers which can't be compared fail the gate."""
        return "max_drop" in self.model_fields_set

    def to_json(self) -> dict[str, Any]:
        """The thresholds that were asked for; `parse_policy` makes the same policy of them."""
        return self.model_dump(mode="json", exclude_unset=True)


def parse_policy(settings: Mapping[str, Any]) -> Policy:
    """A policy from plain settings, such as the `policy` section of a configuration or of a file.

    Raises:
        UsageError: an unknown threshold or a value out of range.
    """
    try:
        return Policy.model_validate(dict(settings))
    except ValidationError as error:
        raise UsageError(f"policy: {explain(error, Policy)}") from error
