"""The results of a comparison: its runs, and mean and standard deviation over the seeds."""

import csv
import io
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any


@dataclass(frozen=True)
class Outcome:
    """What a finished run has made; sizes in bytes, accuracies on `n` test images.

    kept, weights:   kept entries, weights of the compressed layers; equal for a dense network
    dense_bytes:     4 bytes for every element of the state dict
    nominal_bytes:   kept entries · bits + codebooks; of a dense network `dense_bytes`
    file_bytes:      of model.atmc; of a dense network `dense_bytes`
    attack … :       how robust accuracy was measured
    worst_case:      accuracy under all attacks on the exported file in onnxruntime; None where that was not asked for
    seconds:         of training, over all resumptions; None for a network that was given
    validation_robust: accuracy under PGD-10 on images held out from training, to choose by; None where not measured
    """

    kept: int
    weights: int
    dense_bytes: int
    nominal_bytes: int
    file_bytes: int
    clean_accuracy: float
    robust_accuracy: float
    attack: str
    norm: str
    eps: str
    attack_steps: int
    restarts: int
    n: int
    attack_seed: int
    seconds: float | None
    worst_case: float | None = None
    validation_robust: float | None = None

    @property
    def density(self) -> float:
        """Share of the weights that is kept."""
        return self.kept / self.weights


@dataclass(frozen=True)
class Run:
    """A run of a comparison, finished (with an outcome) or failed (with an error).

    label:            of its line in the figure; `dense` and `natural` are networks that compressions start from
    budget:           `keep 0.01`; None for these
    steps:            of training; this and the next two are None for a network that was given
    passes:           forward and backward passes of one image in it, those of attacks included
    passes_per_image: passes for each training image
    """

    name: str
    label: str
    method: str
    budget: str | None
    bits: int | str | None
    seed: int
    steps: int | None
    passes: int | None
    passes_per_image: float | None
    outcome: Outcome | None = None
    error: str | None = None

    def to_json(self) -> dict[str, Any]:
        """Everything as one flat object; what a failed run lacks is None."""
        own = {key: value for key, value in asdict(self).items() if key not in ("outcome", "error")}
        facts = dict.fromkeys(field.name for field in fields(Outcome)) if self.outcome is None else asdict(self.outcome)
        density = None if self.outcome is None else self.outcome.density
        return {
            **own,
            "state": "failed" if self.error else "finished",
            **facts,
            "density": density,
            "error": self.error,
        }


@dataclass(frozen=True)
class MeanSd:
    """Mean and sample standard deviation (over n − 1); None where there is one value."""

    mean: float
    sd: float | None

    @property
    def text(self) -> str:
        """`0.8431 ± 0.0120`."""
        return f"{self.mean:.4g}" if self.sd is None else f"{self.mean:.4g} ± {self.sd:.2g}"


@dataclass(frozen=True)
class Point:
    """The finished runs of a label and budget, which differ in their seeds alone: `values` has each of QUANTITIES."""

    label: str
    budget: str | None
    n: int
    values: Mapping[str, MeanSd]

    def to_json(self) -> dict[str, Any]:
        """Everything as plain values."""
        values = {name: asdict(spread) for name, spread in self.values.items()}
        return {"label": self.label, "budget": self.budget, "runs": self.n, **values}


QUANTITIES = (
    "density",
    "dense_bytes",
    "nominal_bytes",
    "file_bytes",
    "clean_accuracy",
    "robust_accuracy",
    "validation_robust",
    "worst_case",
    "steps",
    "passes_per_image",
    "seconds",
)


def mean_sd(values: Sequence[float]) -> MeanSd:
    """Mean and sample standard deviation of at least one value."""
    return MeanSd(statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else None)


def points(runs: Sequence[Run]) -> list[Point]:
    """The finished runs by label and budget, in the order of their first run; what a run lacks is left out."""
    groups: dict[tuple[str, str | None], list[dict[str, Any]]] = {}
    for run in runs:
        if run.outcome is not None:
            groups.setdefault((run.label, run.budget), []).append(run.to_json())
    found = []
    for (label, budget), facts in groups.items():
        columns = {name: [fact[name] for fact in facts] for name in QUANTITIES}
        values = {name: mean_sd(column) for name, column in columns.items() if None not in column}
        found.append(Point(label, budget, len(facts), values))
    return found


def to_csv(runs: Sequence[Run]) -> str:
    """A line for every run under a line of names; what is unknown is empty."""
    buffer = io.StringIO()
    lines = [run.to_json() for run in runs]
    writer = csv.DictWriter(buffer, list(lines[0]) if lines else [], lineterminator="\n")
    writer.writeheader()
    writer.writerows(lines)
    return buffer.getvalue()
