"""The parts of a compression's schedule: searching for what to keep, retraining it, quantising it."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from atmc_tool.config import CompressConfig

SEARCHING = (
    "latent",
    "hard",
    "admm",
    "scores",
    "rates",
)  # projections that need a part of their own to find what to keep


@dataclass(frozen=True)
class Part:
    """From `start` to `end` of the schedule's progress, with its own cycle of the learning rate up to `peak`.

    budget: the share of the way, in logarithms, from all entries to the budget: below 1 in all rounds but the last
    """

    kind: Literal["search", "retrain", "quantize"]
    start: float
    end: float
    peak: float
    budget: float = 1.0

    def position(self, progress: float) -> float:
        """Where `progress` is within the part, in [0, 1]."""
        return min(1.0, max(0.0, (progress - self.start) / (self.end - self.start)))


def parts(config: CompressConfig) -> list[Part]:
    """The parts in their order, from 0 to 1.

    Each round searches, then retrains what was found: `search_share` of it goes to the search. `fixed` has nothing to
    search. Codebooks take the last `quantize_share`.
    """
    pruning = 1 - config.quantize_share
    result: list[Part] = []
    for i in range(config.rounds):
        start, end = pruning * i / config.rounds, pruning * (i + 1) / config.rounds
        share = config.search_share if config.projection in SEARCHING else 0.0
        middle = start + share * (end - start)
        budget = (i + 1) / config.rounds
        if share:
            result.append(Part("search", start, middle, config.search_lr or config.lr, budget))
        if share < 1:
            result.append(Part("retrain", middle, end, config.lr, budget))
    if config.quantize_share:
        result.append(Part("quantize", pruning, 1.0, config.quantize_lr))
    return result


def part_at(all_parts: Sequence[Part], progress: float) -> int:
    """Index of the part that `progress` falls into."""
    return next((i for i, part in enumerate(all_parts) if progress < part.end), len(all_parts) - 1)
