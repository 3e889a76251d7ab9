"""The configuration of a run as pydantic models; unknown keys are an error that names the nearest known one."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from atmc_tool.baselines import BASELINES
from atmc_tool.config_errors import explain
from atmc_tool.errors import UsageError
from atmc_tool.search.strategy import LayerRate
from atmc_tool.structure_names import STRUCTURES, parse_n_of_m
from atmc_tool.threat_model import Norm, ThreatModel, parse_threat_model
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
    norm: Norm = "linf"

    @field_validator("eps", mode="before")
    @classmethod
    def _as_written(cls, eps: object) -> object:
        return str(eps) if isinstance(eps, int | float) and not isinstance(eps, bool) else eps

    def parse(self) -> ThreatModel | None:
        """The threat model, or None where none is stated."""
        return None if self.eps is None else parse_threat_model(self.eps, self.norm)


class AttackConfig(_Section):
    """The attack in training: PGD, unless the objective is one with an attack of its own.

    steps:       of PGD; of `free` the replays of each batch
    step_size:   of PGD, in units of the image; None: 2.5·eps/steps (Madry et al. 2018)
    loss:        what the attack raises
    train_mode:  the attack's passes run in training mode: they move batch norm's statistics, and dropout is on
    fgsm_warmup: share of the schedule, at its start, in which FGSM-RS stands for PGD
    """

    steps: int = Field(7, ge=1)
    step_size: float | None = Field(None, gt=0)
    loss: Literal["cross_entropy", "margin"] = "cross_entropy"
    train_mode: bool = False
    fgsm_warmup: float = Field(0.0, ge=0, le=1)


ObjectiveName = Literal["natural", "mixed", "pgd-at", "trades", "mart", "free", "fgsm-rs", "n-fgsm"]


class ScheduleConfig(_Section):
    """One training stage. SGD with momentum; learning rate: linear warm-up, then cosine to zero.

    milestones:       shares of the schedule (of each of its parts) at which the learning rate falls to a tenth, in
                      place of the cosine
    epochs:           None: ten epochs or a thousand steps, whichever is more
    max_steps:        stop the schedule after so many steps (the whole schedule shrinks to them)
    time_limit:       seconds of wall-clock time, final evaluation included; the schedule shrinks to fit
    eps_warmup:       share of the schedule over which eps grows linearly from 0
    objective:        what is minimised: see objectives.py; and by which attack: see training_attack.py
    clean_weight:     of `mixed`: weight of the clean cross-entropy; the adversarial one gets the rest (ATMC: 1/2)
    beta:             of `trades` and `mart`: weight of the divergence between clean and adversarial predictions
    label_smoothing:  of the cross-entropies: share of the target that all classes get alike
    average:          decay of a running average of what is trained, which then ships; 0: none
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
    milestones: tuple[Annotated[float, Field(gt=0, lt=1)], ...] = ()
    eps_warmup: float = Field(0.0, ge=0, le=1)
    objective: ObjectiveName = "mixed"
    clean_weight: float = Field(0.5, ge=0, le=1)
    beta: float = Field(6.0, ge=0)
    label_smoothing: float = Field(0.0, ge=0, lt=1)
    average: float = Field(0.0, ge=0, lt=1)
    checkpoint_steps: int = Field(200, ge=1)

    @property
    def natural(self) -> bool:
        """Whether it trains without attacks."""
        return self.objective == "natural"

    @model_validator(mode="after")
    def _smooths_cross_entropies(self) -> "ScheduleConfig":
        if self.label_smoothing and self.objective == "mart":
            raise ValueError("label_smoothing is not defined for mart, which has no plain cross-entropy")
        return self


class TrainConfig(ScheduleConfig):
    """`atmc-tool train`: dense training."""


class CompressConfig(ScheduleConfig):
    """`atmc-tool compress`: ATMC (arXiv:1902.03538) under a budget, or one of the methods it is compared with.

    method:            `atmc`; `alr`: low-rank weights, singular values pooled; all others: see `BASELINES`
    keep:              kept entries of all factors / weights of the compressed layers
    size:              bytes of model.atmc instead: `20KB`, `1.5MiB`, or `20x` smaller than the dense weights
    nominal_size:      the same of the nominal size: kept entries · bits, and codebooks of 32 bits a value
    bits:              codebook of 2^bits values per factor; None: values stay float32; `auto`: chosen for each factor
                       under a size
    factors:           `none`: W itself is compressed; `uvc`: W = U V + C, all three under the one budget; `uv`: no C
    start:             of factors: `published`: one is W, the other 0; `svd`: the halves of the singular value
                       decomposition
    projection:        `latent`: dense latent weights, top-k in the forward pass, straight-through gradient;
                       `hard`: the weights are projected after every step, as published;
                       `fixed`: they are projected once, before the first step;
                       `admm`: they are drawn towards their projection (R-ADMM);
                       `scores`: scores are trained that say which to keep, the weights are not (HYDRA);
                       `rates`: with them a rate for every layer that says how much (HARP)
    structure:         what is kept or dropped together: `irregular`, `filter`, `column`, `channel`, `bn-filter`, or
                       `2:4`, at most 2 of 4 neighbouring input channels
    scope:             `global`: one budget for the network; `layer`: the same share of every layer
    strategy:          file that says what every layer keeps, instead of a budget; becomes `layers` when a run begins
    layers:            pattern of weight names → share they keep, or {keep, bits, rank}, with the scope `layer`
    keep_zeros:        weights that are zero in the given network stay zero
    search_share:      share of the pruning part that goes to the search; in the rest what was found is retrained
    search_lr:         learning rate of the search; None: `lr`
    rounds:            so many searches and retrainings one after the other, each with a smaller budget
    dual_updates:      of `admm`: updates of the dual variable in a search
    search_rho:        of `admm`: penalty
    rho_growth:        of `admm`: its growth at every such update
    rho_compounding:   of `admm`: let it grow as in the code that was published, by n + 1 after n updates as well
    budget_weight:     of `rates`: weight of what exceeds the budget; grows until that is met
    path:              share of the search over which the budget falls (cubically) from dense to `keep`
    quantize_share:    share of the schedule spent with the codebook penalty
    quantize_lr:       learning rate of that part
    rho:               ADMM penalty
    codebook_interval: steps between updates of codebooks and duals
    """

    method: Literal["atmc", "al0", "ap", "nap", "alr", "admm", "hydra", "harp", "lwm", "dense"] = "atmc"
    lr: float = Field(0.05, gt=0)
    keep: float | None = Field(None, gt=0, le=1)
    size: str | None = None
    nominal_size: str | None = None
    bits: Annotated[int, Field(ge=1, le=8)] | Literal["auto"] | None = 4
    factors: Literal["none", "uv", "uvc"] = "none"
    start: Literal["published", "svd"] = "published"
    projection: Literal["latent", "hard", "fixed", "admm", "scores", "rates"] = "latent"
    structure: str = "irregular"
    scope: Literal["global", "layer"] = "global"
    strategy: str | None = None
    layers: dict[str, Annotated[float, Field(gt=0, le=1)] | LayerRate] = Field(default_factory=dict)
    keep_zeros: bool = False
    search_share: float = Field(1.0, gt=0, le=1)
    search_lr: float | None = Field(None, gt=0)
    rounds: int = Field(1, ge=1)
    dual_updates: int = Field(9, ge=1)
    search_rho: float = Field(1e-3, gt=0)
    rho_growth: float = Field(1.3, ge=1)
    rho_compounding: bool = False
    budget_weight: float = Field(0.01, gt=0)
    path: float = Field(0.4, ge=0, lt=1)
    quantize_share: float = Field(0.25, ge=0, lt=1)
    quantize_lr: float = Field(0.01, gt=0)
    rho: float = Field(0.1, gt=0)
    codebook_interval: int = Field(5, ge=1)

    @model_validator(mode="before")
    @classmethod
    def _of_method(cls, values: Any) -> Any:
        method = values.get("method") if isinstance(values, dict) else None
        defaults = dict(BASELINES.get(method, {})) if isinstance(method, str) else {}
        if defaults and values.get("bits") is not None:
            defaults.pop("quantize_share", None)  # codebooks were asked for: they get their part
        if isinstance(values, dict) and values.get("structure", "irregular") in STRUCTURES[1:]:
            defaults["scope"] = "layer"
        return {**defaults, **values} if defaults else values

    @model_validator(mode="after")
    def _fits_method(self) -> "CompressConfig":
        if self.bits is not None and not self.quantize_share:
            raise ValueError("codebooks (bits) need a part of the schedule: quantize_share above 0")
        if self.method == "alr" and (self.bits is not None or self.factors != "none"):
            raise ValueError("alr has no codebooks and no U V C: leave bits and factors out (bits: null)")
        if self.method == "alr" and (self.structure != "irregular" or self.scope != "global" or self.keep_zeros):
            raise ValueError("alr prunes no entries: leave structure, scope and keep_zeros out")
        if self.method == "dense" and (self.keep != 1 or self.size or self.nominal_size or self.strategy):
            raise ValueError("dense keeps every weight: leave keep, size and strategy out, or take another method")
        return self

    @model_validator(mode="after")
    def _fits_layers(self) -> "CompressConfig":
        if self.layers and self.strategy is not None:
            raise ValueError("give layers or strategy, not both")
        rates = [rate if isinstance(rate, LayerRate) else LayerRate(keep=rate) for rate in self.layers.values()]
        if self.method == "alr" and any(rate.rank is None for rate in rates):
            raise ValueError("alr prunes no entries: layers takes ranks, {keep: 0.1, rank: 3}")
        if self.method != "alr" and any(rate.rank is not None for rate in rates):
            raise ValueError("a rank in layers is for alr")
        if any(rate.bits is not None for rate in rates) and self.bits in (None, "auto"):
            raise ValueError("bits in layers need a number in bits, for the layers that state none")
        if self.layers and self.scope == "global" and self.method != "alr":
            raise ValueError("shares of layers need scope: layer")
        return self

    @model_validator(mode="after")
    def _fits_structure(self) -> "CompressConfig":
        pattern = parse_n_of_m(self.structure)
        if pattern is None and self.structure not in STRUCTURES:
            raise ValueError(f"structure is one of {', '.join(STRUCTURES)}, or N:M such as 2:4")
        if pattern is not None and self.keep is not None and self.keep > pattern[0] / pattern[1]:
            raise ValueError(
                f"{self.structure} keeps at most {pattern[0] / pattern[1]:.4g}: leave keep out, or lower it"
            )
        if pattern is None and self.structure != "irregular" and self.scope == "global":
            raise ValueError(f"{self.structure} has a budget per layer: leave scope out, or say layer")
        if self.factors != "none" and (self.structure != "irregular" or self.scope == "layer"):
            raise ValueError("factors U V C have one budget of single entries: no structure, no scope layer")
        if self.factors != "none" and self.keep_zeros:
            raise ValueError("keep_zeros is about weights, not about factors U V C")
        if self.projection == "rates" and self.scope == "global":
            raise ValueError("rates finds a share for every layer: leave scope out, or say layer")
        if self.structure == "bn-filter" and self.projection in ("scores", "rates"):
            raise ValueError("bn-filter is ranked by batch norms, scores rank weights: take filter")
        return self

    @model_validator(mode="after")
    def _one_budget(self) -> "CompressConfig":
        if sum(budget is not None for budget in (self.keep, self.size, self.nominal_size, self.strategy)) > 1:
            raise ValueError("give one of keep, size, nominal_size and strategy")
        for size in (self.size, self.nominal_size):
            if size is not None:
                parse_size(size)
        if self.bits == "auto" and self.keep is not None:
            raise ValueError("bits: auto shares out a size: give size or nominal_size instead of keep")
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
    """The final measurement and `verify`: PGD with `steps` steps, worst of `restarts` starts, on `n` test images.

    attack:         of `verify`: `standard`, `autoattack`, or `comparison`: standard, and what papers report
    square_queries: None: 300, with `autoattack` 5,000
    """

    attack: Literal["standard", "autoattack", "comparison"] = "standard"
    steps: int = Field(20, ge=1)
    restarts: int = Field(3, ge=1)
    n: int = Field(1000, ge=1)
    square_queries: int | None = Field(None, ge=0)


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

    @model_validator(mode="after")
    def _norm_of_attack(self) -> "Config":
        for name, section in (("train", self.train), ("compress", self.compress)):
            if self.threat_model.norm != "linf" and section.objective in ("free", "fgsm-rs", "n-fgsm"):
                raise ValueError(f"{name}.objective {section.objective} is an attack in linf: threat_model.norm")
        if self.threat_model.norm != "linf" and self.attack.fgsm_warmup:
            raise ValueError("attack.fgsm_warmup is an attack in linf: threat_model.norm")
        return self

    @model_validator(mode="after")
    def _loss_of_attack(self) -> "Config":
        for name, section in (("train", self.train), ("compress", self.compress)):
            if self.attack.loss != "cross_entropy" and section.objective in ("trades", "free"):
                raise ValueError(f"{name}.objective {section.objective} has an attack loss of its own: attack.loss")
        return self


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
