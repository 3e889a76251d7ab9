"""`verify`: everything that is measured of an artefact on labelled images, and the verdict.

Images the artefact was selected, trained or calibrated on must not be among them: that is for the caller to hold.
"""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from atmc_tool.attacks.classifier import Classifier
from atmc_tool.errors import InputError
from atmc_tool.threat_model import ThreatModel
from evaluators.accuracy import Floats, Labels, accuracy, batched_logits, check_determinism, check_logits, images_digest
from evaluators.attack_plan import AttackSettings
from evaluators.diagnostics import (
    check_gradients,
    check_large_eps,
    check_recomputed,
    check_threat_model,
    check_white_box,
    check_white_box_strongest,
)
from evaluators.gate import Check, Verdict, at_least, check_judged, drop, judge, small_enough
from evaluators.parity import ExpectedWeights, parity
from evaluators.policy import Policy
from evaluators.robustness import Robustness, StageProgress, attack
from evaluators.spread import Spread
from evaluators.statistics import Proportion

ATTACK_CHECKS = ("white-box", "perturbations", "recomputed", "white-box-strongest", "gradients", "large-eps")
DETERMINISM_IMAGES = 64


@dataclass(frozen=True)
class Artefact:
    """The file that is verified, as the caller read it; `source`: digests of files it was made of, by name."""

    name: str
    bytes: int
    sha256: str
    source: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Verification:
    """A verdict with everything it rests on. `robust` is None where no white-box attack could run."""

    verdict: Verdict
    artefact: Artefact
    threat_model: ThreatModel
    settings: AttackSettings
    policy: Policy
    split: str
    images_sha256: str
    clean: Proportion | None
    robustness: Robustness | None
    recorded: Mapping[str, Any] | None

    @property
    def robust(self) -> Proportion | None:
        """Accuracy in the worst case per sample over all attacks."""
        return None if self.robustness is None else self.robustness.accuracy

    def to_json(self) -> dict[str, Any]:
        """Everything as plain values."""
        attacks = () if self.robustness is None else self.robustness.attacks
        return {
            "verdict": self.verdict.to_json(),
            "artefact": {**asdict(self.artefact), "source": dict(self.artefact.source)},
            "threat_model": {"norm": self.threat_model.norm, "eps": self.threat_model.text, "box": [0, 1]},
            "images": {"split": self.split, "sha256": self.images_sha256},
            "clean": None if self.clean is None else self.clean.to_json(),
            "robust": None if self.robust is None else self.robust.to_json(),
            "attacks": [result.to_json() for result in attacks],
            "settings": asdict(self.settings),
            "policy": self.policy.model_dump(mode="json"),
            "recorded": None if self.recorded is None else dict(self.recorded),
        }


def verify(
    make_classifier: Callable[[], Classifier],
    images: NDArray[np.uint8],
    labels: NDArray[np.integer[Any]],
    threat_model: ThreatModel,
    artefact: Artefact,
    *,
    image_shape: tuple[int, int, int] | None = None,
    settings: AttackSettings = AttackSettings(),  # noqa: B008 - frozen
    policy: Policy = Policy(),  # noqa: B008 - frozen
    expected: ExpectedWeights | None = None,
    decoded: Mapping[str, NDArray[Any]] | None = None,
    recorded: Mapping[str, Any] | None = None,
    split: str = "test",
    progress: StageProgress | None = None,
    spread: Spread | None = None,
) -> Verification:
    """Measure the classifier on images (n, C, H, W), uint8, or float in [0, 1], and judge it by the policy.

    make_classifier: a new session of the artefact; called twice
    image_shape:     (C, H, W) that the artefact takes, where it is known
    expected:        weights as they were compressed, `decoded` as the artefact decodes them; without both,
                     parity is listed as not applied
    recorded:        `metrics.compressed` of the manifest: accuracies and how they were measured
    progress:        called with (what is measured, done, total)
    spread:          several processes, each of which calls this alike; PGD's images are spread over them

    Raises:
        InputError: images or labels are not what they must be.
    """
    floats, targets = _floats(images, labels, image_shape), labels.astype(np.int64)
    classifier = make_classifier()
    digest = images_digest(images, targets)
    report = None if progress is None else lambda done, total: progress("clean accuracy", done, total)
    logits = batched_logits(classifier, floats, settings.batch_size, report)
    checks = [_check_statement(artefact, threat_model, settings, len(targets)), _check_parity(expected, decoded)]
    checks.append(check_logits(logits, len(targets)))
    clean, robustness = None, None
    if checks[-1].passed:
        if targets.max() >= logits.shape[1]:
            raise InputError(
                "labels are out of range", expected=f"0 to {logits.shape[1] - 1}", got=f"a label {int(targets.max())}"
            )
        clean = accuracy(logits, targets)
        checks.append(check_determinism(classifier, floats[:DETERMINISM_IMAGES]))
        robustness = attack(
            classifier, floats, targets, threat_model.eps, settings, progress, spread, threat_model.norm
        )
        checks += _attack_checks(classifier, make_classifier(), floats, targets, robustness, threat_model.eps, settings)
    else:
        checks += [Check(name, None, "the outputs are no logits") for name in ("determinism", *ATTACK_CHECKS)]
    conditions = _image_conditions(len(targets), split, digest, recorded)
    checks += _policy_checks(policy, artefact, clean, robustness, recorded, conditions, threat_model)
    checks.append(check_judged(checks))
    return Verification(
        verdict=judge(checks, len(targets)),
        artefact=artefact,
        threat_model=threat_model,
        settings=settings,
        policy=policy,
        split=split,
        images_sha256=digest,
        clean=clean,
        robustness=robustness,
        recorded=recorded,
    )


def _floats(images: NDArray[Any], labels: NDArray[Any], image_shape: tuple[int, int, int] | None) -> Floats:
    """float32 images in [0, 1] of checked images and labels."""
    shape = "(n, C, H, W)" if image_shape is None else f"(n, {', '.join(map(str, image_shape))})"
    if images.ndim != 4 or len(images) == 0 or (image_shape is not None and images.shape[1:] != image_shape):
        raise InputError("images have the wrong shape", expected=f"{shape}, n ≥ 1", got=images.shape)
    if labels.shape != (len(images),) or labels.dtype.kind not in "iu":
        raise InputError(
            "labels do not fit the images",
            expected=f"{len(images)} integers",
            got=f"{labels.dtype} of shape {labels.shape}",
        )
    if labels.min() < 0:
        raise InputError("labels are out of range", expected="0 or more", got=int(labels.min()))
    if images.dtype == np.uint8:
        return images.astype(np.float32) / np.float32(255)
    if images.dtype.kind != "f":
        raise InputError("images have the wrong type", expected="uint8, or floats in [0, 1]", got=images.dtype)
    if np.isnan(images).any():
        raise InputError("images hold NaN", expected="numbers in [0, 1]", got=f"{int(np.isnan(images).sum())} NaN")
    if images.min() < 0 or images.max() > 1:
        raise InputError("images are out of range", expected="[0, 1]", got=f"[{images.min():g}, {images.max():g}]")
    return images.astype(np.float32)


def _check_statement(artefact: Artefact, threat_model: ThreatModel, settings: AttackSettings, n: int) -> Check:
    """What a robustness claim must state is stated: threat model, attacks, number of images, the file's digest."""
    evidence = {"threat_model": asdict(threat_model), "attacks": asdict(settings), "n": n, **asdict(artefact)}
    if len(artefact.sha256) != 64 or artefact.bytes <= 0:
        return Check("statement", False, f"the digest or size of {artefact.name} is missing", evidence)
    reason = f"{threat_model}, box [0, 1], n {n}, seed {settings.seed}, {artefact.name} {artefact.sha256[:12]}"
    return Check("statement", True, reason, evidence)


def _check_parity(expected: ExpectedWeights | None, decoded: Mapping[str, NDArray[Any]] | None) -> Check:
    if expected is None or decoded is None:
        missing = "the compressed model is not there" if expected is None else "no decoded weights are given"
        return Check("weight-parity", None, missing)
    return parity(expected, decoded)


def _attack_checks(
    classifier: Classifier,
    fresh: Classifier,
    images: Floats,
    labels: Labels,
    measured: Robustness,
    eps: float,
    settings: AttackSettings,
) -> list[Check]:
    """One check per name in `ATTACK_CHECKS`, in that order."""
    if measured.white_box:
        by_gradient = [
            check_gradients(classifier, images, labels, settings.batch_size),
            check_large_eps(classifier, images, labels, settings),
        ]
    else:
        by_gradient = [Check(name, None, "the classifier gives no gradient") for name in ("gradients", "large-eps")]
    return [
        check_white_box(measured),
        check_threat_model(measured, eps),
        check_recomputed(fresh, labels, measured, settings.batch_size),
        check_white_box_strongest(measured),
        *by_gradient,
    ]


def _policy_checks(
    policy: Policy,
    artefact: Artefact,
    clean: Proportion | None,
    robustness: Robustness | None,
    recorded: Mapping[str, Any] | None,
    images: Mapping[str, Any],
    threat_model: ThreatModel,
) -> list[Check]:
    """Thresholds on accuracies and size, and drops below the recorded numbers: of clean accuracy, and of PGD alone,
    for PGD on the cross-entropy is what was recorded."""
    robust = None if robustness is None else robustness.accuracy
    pgd = robustness.white_box[0] if robustness is not None and robustness.white_box else None
    attack_conditions = {"norm": threat_model.norm, "eps": threat_model.text, "attack": "pgd"}
    if pgd is not None:
        attack_conditions |= {name: pgd.parameters[name] for name in ("attack", "steps", "restarts")}
    required = policy.requires_drop
    return [
        at_least("min-clean", clean, policy.min_clean, "the outputs are no logits"),
        at_least("min-robust", robust, policy.min_robust, "no white-box attack ran"),
        drop("clean-drop", clean, images, recorded, "clean_accuracy", policy.max_drop, required),
        drop(
            "robust-drop",
            None if pgd is None else pgd.accuracy,
            {**images, **attack_conditions},
            recorded,
            "robust_accuracy",
            policy.max_drop,
            required,
        ),
        small_enough("max-bytes", artefact.bytes, policy.max_bytes),
    ]


def _image_conditions(n: int, split: str, digest: str, recorded: Mapping[str, Any] | None) -> dict[str, Any]:
    """How clean accuracy was measured; the digest of the images counts where it was recorded."""
    conditions: dict[str, Any] = {"n": n, "split": split}
    if recorded is not None and "images_sha256" in recorded:
        conditions["images_sha256"] = digest
    return conditions
