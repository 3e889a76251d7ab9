"""What a search is asked to do."""

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from atmc_tool.config_errors import explain
from atmc_tool.errors import UsageError
from atmc_tool.search.evaluation import Scoring

SEARCHES = ("random", "ddpg", "tpe", "cmaes", "nsga2")


class SearchSettings(BaseModel):
    """Everything that decides what a search finds in a network, but for the network and its data.

    keep:        share of what `measure` counts
    evaluations: strategies that are proposed; one that was proposed before costs no evaluation
    batch:       proposals at once: what can run side by side. The algorithm learns after each batch
    lower, upper: of a layer's rate; None: a fifth and fifty times (at most 1) of the uniform rate that meets the budget
    halving:     the evaluations of a batch start with a share of the images and the fine-tuning; the best of so many
                 go on with so many times more, up to all (successive halving); None: all at once
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    algorithm: Literal[
        "uniform", "erk", "lamp", "global", "sensitivity", "random", "ddpg", "tpe", "cmaes", "nsga2", "harp"
    ]
    keep: float = Field(gt=0, le=1)
    structure: Literal["irregular", "filter", "column", "channel"] = "irregular"
    measure: Literal["weights", "shrunk", "bytes", "flops"] = "weights"
    evaluations: int = Field(100, ge=1)
    batch: int = Field(4, ge=1)
    seed: int = Field(0, ge=0, lt=2**31)
    lower: float | None = Field(None, gt=0, le=1)
    upper: float | None = Field(None, gt=0, le=1)
    halving: int | None = Field(None, ge=2)
    scoring: Scoring = Scoring()

    @model_validator(mode="after")
    def _bounds(self) -> "SearchSettings":
        if self.lower is not None and self.upper is not None and self.lower > self.upper:
            raise ValueError("lower is above upper")
        return self

    @model_validator(mode="after")
    def _halves(self) -> "SearchSettings":
        if self.halving is not None and self.algorithm not in SEARCHES:
            raise ValueError(f"halving is for {', '.join(SEARCHES)}: {self.algorithm} proposes one strategy")
        if self.halving is not None and self.halving > self.batch:
            raise ValueError(f"halving {self.halving} would go on with none of {self.batch}: raise batch, or lower it")
        return self


def build_settings(values: Mapping[str, Any]) -> SearchSettings:
    """The validated settings.

    Raises:
        UsageError: an unknown key or a value out of range, as one line.
    """
    try:
        return SearchSettings.model_validate(values)
    except ValidationError as error:
        raise UsageError(explain(error, SearchSettings)) from error
