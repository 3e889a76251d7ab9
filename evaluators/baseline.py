"""The network that an artefact is compared with, image by image: attacked now, or as an earlier report found it."""

import base64
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from atmc_tool.attacks.classifier import Classifier, correct
from atmc_tool.errors import InputError
from atmc_tool.threat_model import ThreatModel
from evaluators.accuracy import Floats, Labels, batched_logits, share
from evaluators.attack_plan import AttackSettings
from evaluators.gate import Check, no_worse
from evaluators.paired import Paired, pair
from evaluators.robustness import Robustness, StageProgress, attack
from evaluators.spread import Spread

Outcomes = NDArray[np.bool_]


@dataclass(frozen=True)
class BaselineFile:
    """A file to compare with: a network that is attacked now, or the report of an earlier verification."""

    name: str
    sha256: str
    classifier: Classifier | None = None
    report: Mapping[str, Any] | None = None


@dataclass(frozen=True)
class Baseline:
    """Which images the baseline gets right, clean and in the worst case over all attacks, bool (n,).

    problem: why the one or the other is None: it can't be compared
    """

    name: str
    sha256: str
    clean: Outcomes | None
    robust: Outcomes | None
    problem: str = ""

    def compared(self, clean: Outcomes | None, robust: Outcomes | None) -> tuple[Paired | None, Paired | None]:
        """Clean and robust outcomes of the artefact against the baseline's, where both are there."""
        return (
            None if self.clean is None or clean is None else pair(self.clean, clean),
            None if self.robust is None or robust is None else pair(self.robust, robust),
        )

    def to_json(self, labels: Labels, clean: Outcomes | None, robust: Outcomes | None) -> dict[str, Any]:
        """Its accuracies, and the paired comparison with the artefact's outcomes."""
        paired = self.compared(clean, robust)
        return {
            "name": self.name,
            "sha256": self.sha256,
            "problem": self.problem,
            "clean": None if self.clean is None else share(self.clean, labels).to_json(),
            "robust": None if self.robust is None else share(self.robust, labels).to_json(),
            "clean_paired": None if paired[0] is None else paired[0].to_json(),
            "robust_paired": None if paired[1] is None else paired[1].to_json(),
        }


def attacked_baseline(
    file: BaselineFile,
    classifier: Classifier,
    images: Floats,
    labels: Labels,
    threat_model: ThreatModel,
    settings: AttackSettings,
    progress: StageProgress | None,
    spread: Spread | None,
) -> Baseline:
    """The classifier on the same images under the same attacks as the artefact.

    Raises:
        InputError: it has other classes or other images than the artefact's.
    """
    logits = batched_logits(classifier, images, settings.batch_size)
    if labels.max() >= logits.shape[1]:
        raise InputError(
            f"the baseline {file.name} has too few classes", expected=int(labels.max()) + 1, got=logits.shape[1]
        )
    own = None if progress is None else lambda stage, done, total: progress(f"baseline: {stage}", done, total)
    eps, norm = threat_model.eps, threat_model.norm
    measured: Robustness = attack(classifier, images, labels, eps, settings, own, spread, norm)
    robust = None if measured.no_gradient else measured.robust
    return Baseline(file.name, file.sha256, correct(logits, labels), robust, measured.no_gradient)


def recorded_baseline(file: BaselineFile, report: Mapping[str, Any], here: Mapping[str, Any]) -> Baseline:
    """The outcomes in a report; robust ones only where the attacks were the same, none where the images were others.

    here: what the report on the artefact says of images, threat model, settings, attacks and outcomes

    Raises:
        InputError: the report's outcomes are damaged.
    """
    outcomes = report.get("outcomes")
    if not isinstance(outcomes, Mapping) or outcomes.get("clean") is None:
        return Baseline(file.name, file.sha256, None, None, f"{file.name} has no outcomes of single images")
    then, now = _conditions(report), _conditions(here)
    differing = [name for name in now if then[name] != now[name]]
    what = f"{file.name} was measured with other {', '.join(name.replace('_', ' ') for name in differing)}"
    if "images" in differing:
        return Baseline(file.name, file.sha256, None, None, what)
    n = here["outcomes"]["n"]
    if outcomes.get("n") != n:
        raise InputError(f"the outcomes in {file.name} are damaged", expected=f"{n} images", got=outcomes.get("n"))
    clean, robust = (unpacked(outcomes.get(name), n, file.name) for name in ("clean", "robust"))
    if differing:
        return Baseline(file.name, file.sha256, clean, None, what)
    return Baseline(file.name, file.sha256, clean, robust, "" if robust is not None else "no white-box attack ran")


def _conditions(report: Mapping[str, Any]) -> dict[str, Any]:
    """What must be equal, as plain JSON."""
    attacks = report.get("attacks")
    named = [
        {"name": attack.get("name"), "parameters": _chosen(attack.get("parameters"))}
        for attack in (attacks if isinstance(attacks, list) else [])
        if isinstance(attack, Mapping)
    ]
    facts = {**{name: report.get(name) for name in ("images", "threat_model", "settings")}, "attacks": named}
    plain: dict[str, Any] = json.loads(json.dumps(facts))
    return plain


def _chosen(parameters: Any) -> Any:
    """The parameters but for `attacked`: how many images an attack was left is what was found, not how."""
    if not isinstance(parameters, Mapping):
        return parameters
    return {name: value for name, value in parameters.items() if name != "attacked"}


def loss_checks(
    baseline: Baseline | None,
    clean: Outcomes | None,
    robust: Outcomes | None,
    max_clean_loss: float | None,
    max_robust_loss: float | None,
) -> list[Check]:
    """Clean and robust accuracy are not worse than the baseline's by more than the margins, with 95 % confidence."""
    missing = "no baseline is given"
    clean_paired, robust_paired = None, None
    if baseline is not None:
        missing = baseline.problem or "the artefact was not measured"
        clean_paired, robust_paired = baseline.compared(clean, robust)
    return [
        no_worse("clean-loss", clean_paired, max_clean_loss, missing),
        no_worse("robust-loss", robust_paired, max_robust_loss, missing),
    ]


def packed(outcomes: Outcomes | None) -> str | None:
    """Bits (n,), the first one highest in the first byte, as base64."""
    return None if outcomes is None else base64.b64encode(np.packbits(outcomes).tobytes()).decode()


def unpacked(text: object, n: int, where: str) -> Outcomes | None:
    """What `packed` was given.

    Raises:
        InputError: not so many bits in base64.
    """
    if text is None:
        return None
    try:
        content = base64.b64decode(text, validate=True) if isinstance(text, str) else b""
    except ValueError:
        content = b""
    if len(content) != -(-n // 8):
        raise InputError(f"the outcomes in {where} are damaged", expected=f"{n} bits in base64", got=str(text)[:40])
    return np.unpackbits(np.frombuffer(content, np.uint8), count=n).astype(np.bool_)
