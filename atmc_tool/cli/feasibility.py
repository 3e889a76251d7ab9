"""What a budget means for a network before any training: entries and bytes, in all and per layer."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from numpy.typing import NDArray

from atmc_tool.budget import Budget, compressible, kept_for_bytes, kept_for_share
from atmc_tool.class_balance import class_counts, is_unbalanced
from atmc_tool.cli.measurement import SEED
from atmc_tool.cli.start import Start
from atmc_tool.cli.subject import arrays
from atmc_tool.compressed import CompressedModel, CompressedWeight
from atmc_tool.data import test_labels
from atmc_tool.half_precision import half_rest
from atmc_tool.methods import compression_method, least_kept
from atmc_tool.selection import layer_rate
from atmc_tool.structure_names import STRUCTURES
from atmc_tool.tied import own_state
from atmc_tool.units import parse_size
from exporters.atmc_file import describe, encode_model, encoded_bytes

# The numbers measured at the end are not known yet; these take as many bytes as any, and then some.
METRICS_LIKE = {
    "clean_accuracy": 0.9786534198723415,
    "n": 10000,
    "split": "test",
    "images_sha256": "5b7f0e3a" * 8,
    "robust_accuracy": 0.8412398756120934,
    "norm": "linf",
    "attack": "pgd",
    "steps": 100,
    "restarts": 10,
    "seed": 0,
}
BALANCED_LIKE = {"balanced_clean_accuracy": 0.9683741520934871, "balanced_robust_accuracy": 0.8317265498120643}
RESERVED_BYTES = 64


@dataclass(frozen=True)
class Feasibility:
    """The budget of a compression.

    total:   weights of all compressed layers
    minimum: entries that must be kept at least
    """

    start: Start
    budget: Budget
    total: int
    minimum: int

    def exceeded_by(self, weights: Mapping[str, CompressedWeight], rest: Mapping[str, NDArray[Any]]) -> bool:
        """Whether the file of these weights and the rest is larger than a limit in bytes of the file."""
        if self.start.config.compress.size is None:
            return False
        assert self.budget.limit is not None
        return encoded_bytes(_assemble(self.start, weights, rest)) + RESERVED_BYTES > self.budget.limit

    def table(self) -> dict[str, Any]:
        """Facts of the smallest, the asked for and the largest model: entries, nominal and real bytes, per layer."""
        sizes = {"smallest": self.minimum, "asked for": self.budget.kept, "largest": self.total}
        if all(layer_rate(name, self.start.config.compress.layers) for name in compressible(self.start.network)[0]):
            sizes = {"asked for": self.budget.kept}  # a strategy leaves nothing open
        facts = {name: self._described(kept) for name, kept in sizes.items()}
        return {
            "compressed_weights": self.total,
            "sizes": {
                name: {**self._sizes(fact), "layers": {layer["name"]: layer["kept"] for layer in fact["layers"]}}
                for name, fact in facts.items()
            },
            "layers": {layer["name"]: layer["shape"] for layer in facts["asked for"]["layers"]},
            "not_compressed": compressible(self.start.network)[1],
            "kept_whole": kept_whole(facts["asked for"], self.start.config.compress.structure),
        }

    def asked(self) -> dict[str, Any]:
        """Of the model that was asked for: entries `kept`, `share`, `nominal_bytes`, `file_bytes`."""
        return self._sizes(self._described(self.budget.kept))

    def _described(self, kept: int) -> dict[str, Any]:
        return describe(encode_model(_assemble(self.start, self._sketch(kept))))

    def _sizes(self, fact: Mapping[str, Any]) -> dict[str, Any]:
        totals = fact["totals"]
        return {
            "kept": totals["kept"],
            "share": totals["kept"] / self.total,
            "nominal_bytes": -(-totals["nominal_bits"] // 8),
            "file_bytes": totals["file_bytes"],
        }

    def _sketch(self, kept: int) -> Mapping[str, CompressedWeight]:
        return sketch(self.start, kept)


def kept_whole(described: Mapping[str, Any], structure: str) -> list[str]:
    """Names of the layers that a structure of units leaves as they are, of a file as `describe` describes it."""
    by_units = structure in STRUCTURES[1:]
    return [layer["name"] for layer in described["layers"] if by_units and layer["density"] == 1]


def check_feasible(start: Start) -> Feasibility:
    """The budget that the configuration asks for.

    Raises:
        InfeasibleBudgetError: it can't be met; names the smallest that can.
    """
    chosen, _ = compressible(start.network)
    config = start.config.compress
    total, minimum = sum(weight.numel() for weight in chosen.values()), least_kept(start.network, config)
    size = config.size or config.nominal_size
    if size is None:
        assert config.keep is not None
        return Feasibility(start, Budget(kept_for_share(config.keep, total, minimum)), total, minimum)
    number, relative = parse_size(size)
    dense = 4 * sum(tensor.numel() for tensor in own_state(start.network).values())
    limit = int(dense / number if relative else number)

    def size_of(weights: Mapping[str, CompressedWeight]) -> int:
        if config.size is None:
            return -(-sum(f.nominal_bits for weight in weights.values() for f in weight.factors.values()) // 8)
        return encoded_bytes(_assemble(start, weights)) + RESERVED_BYTES

    kept = kept_for_bytes(lambda k: size_of(sketch(start, k)), limit, minimum, total)
    return Feasibility(start, Budget(kept, limit, size_of), total, minimum)


def sketch(start: Start, kept: int) -> Mapping[str, CompressedWeight]:
    """The weights as they are, projected at once on `kept` entries and codebooks, without training."""
    method = compression_method(start.network, start.config.compress, Budget(kept), start.card.image_shape)
    method.finish()
    return method.compressed()


def _assemble(
    start: Start, weights: Mapping[str, CompressedWeight], rest: Mapping[str, NDArray[Any]] | None = None
) -> CompressedModel:
    """A model of the size that it will have; everything but `weights` as it is in the network right now, or `rest`."""
    if rest is None:
        rest = {name: array for name, array in arrays(own_state(start.network)).items() if name not in weights}
        rest = half_rest(rest) if start.config.compress.bits is not None else rest
    labels = test_labels(start.data.test, start.config.evaluation.n, SEED)
    balanced = BALANCED_LIKE if is_unbalanced(class_counts(labels)) else {}
    measured = {**METRICS_LIKE, **balanced, "eps": start.threat_model.text}
    return CompressedModel(weights, rest, start.skeleton, start.manifest({"dense": measured, "compressed": measured}))
