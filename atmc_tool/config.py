"""The configuration of a run as pydantic models; unknown keys are an error that names the nearest known one."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from atmc_tool.config_errors import explain
from atmc_tool.errors import UsageError
from atmc_tool.threat_model import ThreatModel, parse_threat_model
from atmc_tool.units import parse_size


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class ModelConfig(_Section):
    """The network. `mean` and `std` are per channel, for images in [0, 1]; None: what the file or registry says."""

    arch: str | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None


class DataConfig(_Section):
    """The data set. `validation` is the share split off the training set; `limit` caps images per part.

    `image_size` makes the images of a folder or zip square and of one size.
    """

    name: str | None = None
    dir: Path | None = None
    validation: float = Field(0.1, gt=0, lt=1)
    limit: int | None = Field(None, ge=20)
    image_size: int | None = Field(None, ge=8, le=4096)


class ThreatModelConfig(_Section):
    """What the adversary may do; None: what the model's file says."""

    eps: str | None = None
    norm: Literal["linf"] = "linf"

    @field_validator("eps", mode="before")
    @classmethod
    def _as_written(cls, eps: object) -> object:
        return str(eps) if isinstance(eps, int | float) and not isinstance(eps, bool) else eps

    def parse(self) -> ThreatModel | None:
        """The threat model, or None where none is stated."""
        return None if self.eps is None else parse_threat_model(self.eps, self.norm)


class AttackConfig(_Section):
    """PGD in training. `step_size` in units of the image; None: 2.5·eps/steps (Madry et al. 2018)."""

    steps: int = Field(7, ge=1)
    step_size: float | None = Field(None, gt=0)


class ScheduleConfig(_Section):
    """One training stage. SGD with momentum; learning rate: linear warm-up, then cosine to zero.

    epochs:           None: ten epochs or a thousand steps, whichever is more
    max_steps:        stop the schedule after so many steps (the whole schedule shrinks to them)
    time_limit:       seconds of wall-clock time, final evaluation included; the schedule shrinks to fit
    eps_warmup:       share of the schedule over which eps grows linearly from 0
    objective:        `mixed`: clean and adversarial cross-entropy; `trades`, `mart`: see objectives.py
    clean_weight:     of `mixed`: weight of the clean cross-entropy; the adversarial one gets the rest (ATMC: 1/2)
    beta:             of `trades` and `mart`: weight of the divergence between clean and adversarial predictions
    checkpoint_steps: a checkpoint every so many steps, and at the end of every epoch
    """

    epochs: int | None = Field(None, ge=1)
    max_steps: int | None = Field(None, ge=1)
    time_limit: float | None = Field(None, gt=0)
    batch_size: int = Field(128, ge=2)
    lr: float = Field(0.1, gt=0)
    momentum: float = Field(0.9, ge=0, lt=1)
    weight_decay: float = Field(1e-4, ge=0)
    warmup: float = Field(0.1, ge=0, lt=1)
    eps_warmup: float = Field(0.0, ge=0, le=1)
    objective: Literal["mixed", "trades", "mart"] = "mixed"
    clean_weight: float = Field(0.5, ge=0, le=1)
    beta: float = Field(6.0, ge=0)
    checkpoint_steps: int = Field(200, ge=1)


class TrainConfig(ScheduleConfig):
    """`atmc-tool train`: dense training. `average`: decay of a running average of the weights, 0 for none."""

    natural: bool = False
    average: float = Field(0.0, ge=0, lt=1)


# What the methods of arXiv:1902.03538 beside ATMC are: other defaults, which may be changed like any others.
BASELINES: dict[str, dict[str, Any]] = {
    "al0": {"projection": "hard", "path": 0.0, "bits": None, "quantize_share": 0.0},
    "ap": {"projection": "fixed", "bits": None, "quantize_share": 0.0},
    "nap": {"projection": "fixed", "bits": None, "quantize_share": 0.0, "natural": True},
    "alr": {"bits": None},
}


class CompressConfig(ScheduleConfig):
    """`atmc-tool compress`: ATMC (arXiv:1902.03538) under a budget, or one of the methods it is compared with.

    method:            `atmc`; `al0`, `ap`, `nap`: see `BASELINES`; `alr`: low-rank weights, singular values pooled
    natural:           train without attacks
    keep:              kept entries of all factors / weights of the compressed layers
    size:              bytes of model.atmc instead: `20KB`, `1.5MiB`, or `20x` smaller than the dense weights
    bits:              codebook of 2^bits values per factor; None: values stay float32
    factors:           `none`: W itself is compressed; `uvc`: W = U V + C, all three under the one budget
    projection:        `latent`: dense latent weights, top-k in the forward pass, straight-through gradient;
                       `hard`: the weights are projected after every step, as published;
                       `fixed`: they are projected once, before the first step
    path:              share of the pruning stage over which the budget falls (cubically) from dense to `keep`
    quantize_share:    share of the schedule spent with the codebook penalty
    quantize_lr:       learning rate of that part
    rho:               ADMM penalty
    codebook_interval: steps between updates of codebooks and duals
    """

    method: Literal["atmc", "al0", "ap", "nap", "alr"] = "atmc"
    natural: bool = False
    lr: float = Field(0.05, gt=0)
    keep: float | None = Field(None, gt=0, le=1)
    size: str | None = None
    bits: int | None = Field(4, ge=1, le=8)
    factors: Literal["none", "uvc"] = "none"
    projection: Literal["latent", "hard", "fixed"] = "latent"
    path: float = Field(0.4, ge=0, lt=1)
    quantize_share: float = Field(0.25, ge=0, lt=1)
    quantize_lr: float = Field(0.01, gt=0)
    rho: float = Field(0.1, gt=0)
    codebook_interval: int = Field(5, ge=1)

    @model_validator(mode="before")
    @classmethod
    def _of_method(cls, values: Any) -> Any:
        method = values.get("method") if isinstance(values, dict) else None
        return {**BASELINES[method], **values} if method in BASELINES else values

    @model_validator(mode="after")
    def _fits_method(self) -> "CompressConfig":
        if self.bits is not None and not self.quantize_share:
            raise ValueError("codebooks (bits) need a part of the schedule: quantize_share above 0")
        if self.method == "alr" and (self.bits is not None or self.factors != "none"):
            raise ValueError("alr has no codebooks and no U V C: leave bits and factors out")
        return self

    @model_validator(mode="after")
    def _one_budget(self) -> "CompressConfig":
        if self.keep is not None and self.size is not None:
            raise ValueError("give either keep or size, not both")
        if self.size is not None:
            parse_size(self.size)
        return self


class ComputeConfig(_Section):
    """How training computes; measurements and files are in float32 whatever it says.

    precision:   of convolutions and products; `auto`: bfloat16 where the processor has it, else float32
    micro_batch: images that go through the network at once, gradients adding up to the batch's; None: all that fit
    compile:     run the network through torch.compile
    """

    precision: Literal["auto", "fp32", "bf16"] = "auto"
    micro_batch: int | None = Field(None, ge=2)
    compile: bool = False


class EvaluationConfig(_Section):
    """The final measurement and `verify`: PGD with `steps` steps, worst of `restarts` starts, on `n` test images."""

    steps: int = Field(20, ge=1)
    restarts: int = Field(3, ge=1)
    n: int = Field(1000, ge=1)
    square_queries: int = Field(300, ge=0)


class Config(_Section):
    """Everything that decides a run; the resolved one is written beside its results."""

    run: Path = Path("atmc-run")
    seed: int = Field(0, ge=0, lt=2**31)
    device: str = "auto"
    model: ModelConfig = ModelConfig()
    data: DataConfig = DataConfig()
    threat_model: ThreatModelConfig = ThreatModelConfig()
    attack: AttackConfig = AttackConfig()
    train: TrainConfig = TrainConfig()
    compress: CompressConfig = CompressConfig()
    compute: ComputeConfig = ComputeConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    policy: dict[str, Any] = Field(default_factory=dict)
    trackers: tuple[Literal["tensorboard", "mlflow"], ...] = ()

    @field_validator("trackers", mode="before")
    @classmethod
    def _one_is_a_list(cls, trackers: object) -> object:
        return (trackers,) if isinstance(trackers, str) else trackers


def build_config(settings: Mapping[str, Any]) -> Config:
    """The validated configuration.

    Raises:
        UsageError: an unknown key (with the nearest known one) or a value out of range, as one line.
    """
    try:
        config = Config.model_validate(settings)
        config.threat_model.parse()
    except ValidationError as error:
        raise UsageError(explain(error, Config)) from error
    return config


def to_yaml(config: Config) -> str:
    """The configuration as YAML that `build_config` reads back to the same value."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False)
