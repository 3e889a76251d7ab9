"""What a file of ours knows about its network, so that the next command need not be told again."""

from typing import Any

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from atmc_tool.errors import UsageError
from atmc_tool.threat_model import Norm, ThreatModel, parse_threat_model


class ModelCard(BaseModel):
    """Facts that travel with a network from `train` to `verify`; plain JSON in every file.

    arch:        registry name, `pkg.mod:callable` or `file.py:callable`
    image_shape: (channels, height, width) of one input image
    mean, std:   per-channel normalisation, applied inside the network to images in [0, 1]
    data:        name or path of the data set the network was trained on
    eps, norm:   threat model as its author wrote it
    metrics:     measured numbers, each under a name that says what it is
    """

    model_config = ConfigDict(extra="ignore", frozen=True)

    arch: str
    image_shape: tuple[int, int, int]
    n_classes: int = Field(ge=2)
    class_names: tuple[str, ...] = ()
    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)
    data: str | None = None
    eps: str | None = None
    norm: Norm = "linf"
    seed: int = 0
    metrics: dict[str, Any] = Field(default_factory=dict)

    @field_validator("std")
    @classmethod
    def _positive(cls, std: tuple[float, ...]) -> tuple[float, ...]:
        if any(s <= 0 for s in std):
            raise ValueError("every standard deviation must be positive")
        return std

    @model_validator(mode="after")
    def _parses(self) -> "ModelCard":
        try:
            self.threat_model()
        except UsageError as error:
            raise ValueError(str(error)) from error
        return self

    @model_validator(mode="after")
    def _per_channel(self) -> "ModelCard":
        if {len(self.mean), len(self.std)} - {1, self.image_shape[0]}:
            raise ValueError("mean and std must have one value, or one per channel")
        return self

    def threat_model(self) -> ThreatModel | None:
        """The stated threat model, or None where the network was trained without one."""
        return None if self.eps is None else parse_threat_model(self.eps, self.norm)
