"""What makes a method: defaults of its own, on the one engine of pruning and quantising."""

from collections.abc import Mapping, Sequence
from typing import Any

# What the methods beside ATMC are: other defaults, which may be changed like any others. First those of
# arXiv:1902.03538.
BASELINES: dict[str, dict[str, Any]] = {
    "al0": {"projection": "hard", "path": 0.0, "factors": "none", "bits": None, "quantize_share": 0.0},
    "ap": {"projection": "fixed", "factors": "none", "bits": None, "quantize_share": 0.0},
    "nap": {"projection": "fixed", "factors": "none", "bits": None, "quantize_share": 0.0, "objective": "natural"},
    "alr": {"factors": "none", "bits": None},
    "dense": {"keep": 1.0, "projection": "fixed", "factors": "none", "bits": None, "quantize_share": 0.0},
    # of arXiv:1903.12561
    "admm": {
        "projection": "admm",
        "scope": "layer",
        "search_share": 0.5,
        "path": 0.0,
        "factors": "none",
        "bits": None,
        "quantize_share": 0.0,
    },
    # of arXiv:2002.10509
    "hydra": {
        "projection": "scores",
        "scope": "layer",
        "search_share": 0.2,
        "path": 0.0,
        "factors": "none",
        "bits": None,
        "quantize_share": 0.0,
    },
    # of arXiv:2412.14714: HYDRA's scores, and a rate for every layer
    "harp": {
        "projection": "rates",
        "scope": "layer",
        "search_share": 0.2,
        "path": 0.0,
        "factors": "none",
        "bits": None,
        "quantize_share": 0.0,
    },
    # what HYDRA is compared with: the least weight magnitude of every layer
    "lwm": {"projection": "fixed", "scope": "layer", "factors": "none", "bits": None, "quantize_share": 0.0},
}


def leave_to_method(layers: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """`layers` of settings where an earlier one does not say what makes the method that a later one names.

    So a preset's codebooks do not turn Al0 into something else; what stands beside or after the name still wins.
    """
    result: list[dict[str, Any]] = []
    for i, layer in enumerate(layers):
        sections = [later.get("compress") for later in layers[i + 1 :]]
        named = [section["method"] for section in sections if isinstance(section, Mapping) and "method" in section]
        own = layer.get("compress")
        if not named or not isinstance(own, Mapping) or not isinstance(named[-1], str):
            result.append(dict(layer))
            continue
        keys = BASELINES.get(named[-1], {})
        result.append({**layer, "compress": {key: value for key, value in own.items() if key not in keys}})
    return result
