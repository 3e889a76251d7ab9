"""Whether a file gives the same answers on every execution provider that it ships for."""

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from atmc_tool.attacks.classifier import Classifier
from evaluators.accuracy import NUMERICAL_TOLERANCE, Floats, batched_logits
from evaluators.classifier import OrtClassifier
from evaluators.gate import Check

ALONE = "one provider: nothing to compare"


def other_providers(first: OrtClassifier, further: Iterable[OrtClassifier]) -> dict[str, OrtClassifier]:
    """Provider → session on it, of those that really run on another one than `first`; one of each."""
    return {each.provider: each for each in further if each.provider != first.provider}


def check_providers(
    classifier: Classifier,
    others: Mapping[str, Classifier],
    images: Floats,
    adversarial: Floats | None,
    batch_size: int,
) -> Check:
    """Logits of the `others`, by name, are the classifier's up to rounding, and no prediction off the boundary flips.

    images, adversarial: float32 (n, C, H, W), as they were scored

    Rounding is 1e-3 of the largest logit; an image is on the boundary where its two largest logits are no further
    apart than that.
    """
    if not others:
        return Check("providers", None, ALONE)
    sets = {"images": images} if adversarial is None else {"images": images, "adversarial images": adversarial}
    evidence: dict[str, Any] = {}
    problems, largest = [], 0.0
    for what, scored in sets.items():
        expected = batched_logits(classifier, scored, batch_size)
        tolerance = NUMERICAL_TOLERANCE * max(1.0, float(np.abs(expected).max()))
        second, largest_logit = np.partition(expected, -2, axis=1)[:, -2:].T
        off = largest_logit - second > tolerance
        for name, other in others.items():
            found = batched_logits(other, scored, batch_size)
            difference = float(np.abs(found - expected).max())
            flips = int((off & (found.argmax(1) != expected.argmax(1))).sum())
            evidence.setdefault(name, {})[what] = {"difference": difference, "flips": flips, "tolerance": tolerance}
            largest = max(largest, difference)
            if flips or not difference <= tolerance:  # so that NaN differs
                problems.append(f"{name} flips {flips} of {len(scored)} {what}, logits differ by {difference:.2g}")
    if problems:
        return Check("providers", False, "; ".join(problems), evidence)
    text = f"{', '.join(others)}: no prediction of {len(images)} images flips, logits differ by at most {largest:.1g}"
    return Check("providers", True, text, evidence)
