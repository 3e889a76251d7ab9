"""`verify`: everything that is measured of an artefact on labelled images, and the verdict.

Images the artefact was selected, trained or calibrated on must not be among them: that is for the caller to hold.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from atmc_tool.attacks.classifier import Classifier, correct
from atmc_tool.errors import InputError
from atmc_tool.threat_model import ThreatModel
from evaluators.accuracy import Floats, Labels, batched_logits, check_determinism, check_logits, images_digest, share
from evaluators.attack_comparison import ComparisonRow, compare_attacks
from evaluators.attack_plan import AttackSettings
from evaluators.attack_strength import CurvePoint, check_curve, eps_curve
from evaluators.baseline import Baseline, BaselineFile, attacked_baseline, loss_checks, packed, recorded_baseline
from evaluators.diagnostics import ATTACK_CHECKS, attack_checks
from evaluators.gate import Check, Verdict, check_judged, judge
from evaluators.normalisation import check_normalisation
from evaluators.parity import ExpectedWeights, parity
from evaluators.policy import Policy
from evaluators.policy_checks import check_attack_budget, check_sample_size, image_conditions, threshold_checks
from evaluators.robustness import Robustness, StageProgress, attack
from evaluators.spread import Spread
from evaluators.statistics import Proportion

DETERMINISM_IMAGES = 64
Outcomes = NDArray[np.bool_]


@dataclass(frozen=True)
class Artefact:
    """The file that is verified, as the caller read it; `source`: digests of files it was made of, by name."""

    name: str
    bytes: int
    sha256: str
    source: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Verification:
    """A verdict with everything it rests on.

    labels:     int64 (n,)
    right:      bool (n,), classified correctly without an attack; None where the outputs are no logits
    robustness: None where they are no logits
    curve:      accuracy against eps; empty where there is no gradient
    recorded:   `metrics.compressed` of the manifest
    comparison: what papers report, if it was asked for; no check looks at it
    """

    verdict: Verdict
    artefact: Artefact
    threat_model: ThreatModel
    settings: AttackSettings
    policy: Policy
    split: str
    images_sha256: str
    labels: Labels
    right: Outcomes | None
    robustness: Robustness | None
    curve: tuple[CurvePoint, ...] = ()
    baseline: Baseline | None = None
    recorded: Mapping[str, Any] | None = None
    comparison: tuple[ComparisonRow, ...] = ()

    @property
    def clean(self) -> Proportion | None:
        """Accuracy without an attack."""
        return None if self.right is None else share(self.right, self.labels)

    @property
    def standing(self) -> Outcomes | None:
        """bool (n,), right in the worst case over all attacks; None where no white-box attack could run."""
        return None if self.robustness is None else self.robustness.robust

    @property
    def robust(self) -> Proportion | None:
        """Accuracy in the worst case per sample over all attacks; where the policy allows it, over those without the
        file's gradient."""
        if self.robustness is None:
            return None
        return self.robustness.accuracy or (self.robustness.without_gradient if self.policy.allow_black_box else None)

    def with_checks(self, *more: Check) -> "Verification":
        """The same with further checks; one of a known name replaces the other."""
        given = {check.name: check for check in more}
        kept = [check for check in self.verdict.checks if check.name not in (*given, "required")]
        return replace(self, verdict=judge([*kept, *given.values()], len(self.labels), self.policy.required))

    def to_json(self, class_names: Sequence[str] = ()) -> dict[str, Any]:
        """Everything as plain values."""
        facts = self._measured()
        facts["classes"] = self._classes(class_names)
        facts["outcomes"] = {"n": len(self.labels), "clean": packed(self.right), "robust": packed(self.standing)}
        baseline = self.baseline
        facts["baseline"] = None if baseline is None else baseline.to_json(self.labels, self.right, self.standing)
        return {"verdict": self.verdict.to_json(), **facts}

    def _measured(self) -> dict[str, Any]:
        attacks = () if self.robustness is None else self.robustness.attacks
        return {
            "artefact": {**asdict(self.artefact), "source": dict(self.artefact.source)},
            "threat_model": {"norm": self.threat_model.norm, "eps": self.threat_model.text, "box": [0, 1]},
            "images": {"split": self.split, "sha256": self.images_sha256},
            "clean": None if self.clean is None else self.clean.to_json(),
            "robust": None if self.robust is None else self.robust.to_json(),
            "attacks": [result.to_json() for result in attacks],
            "comparison": [row.to_json() for row in self.comparison],
            "eps_curve": [point.to_json() for point in self.curve],
            "settings": asdict(self.settings),
            "policy": self.policy.model_dump(mode="json"),
            "recorded": None if self.recorded is None else dict(self.recorded),
        }

    def _classes(self, names: Sequence[str]) -> list[dict[str, Any]]:
        """Accuracy class by class, of those that have images."""
        rows = []
        for label in np.unique(self.labels).tolist():
            of_class = self.labels == label
            clean, robust = (None if o is None else float(o[of_class].mean()) for o in (self.right, self.standing))
            name = names[label] if label < len(names) else str(label)
            rows.append({"name": name, "n": int(of_class.sum()), "clean": clean, "robust": robust})
        return rows


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
    baseline: BaselineFile | None = None,
    comparison: bool = False,
    split: str = "test",
    progress: StageProgress | None = None,
    spread: Spread | None = None,
    surrogate: Classifier | None = None,
) -> Verification:
    """Measure the classifier on images (n, C, H, W), uint8, or float in [0, 1], and judge it by the policy.

    make_classifier: a new session of the artefact; called twice
    image_shape:     (C, H, W) that the artefact takes, where it is known
    expected:        weights as they were compressed, `decoded` as the artefact decodes them; without both,
                     parity is listed as not applied
    recorded:        `metrics.compressed` of the manifest: accuracies and how they were measured
    baseline:        what the artefact is compared with, image by image
    comparison:      run the attacks that papers report, too, for comparison only, where the classifier has gradients
    progress:        called with (what is measured, done, total)
    spread:          several processes, each of which calls this alike; PGD's images are spread over them
    surrogate:       another classifier, by whose gradient is attacked where the artefact has none

    Raises:
        InputError: images or labels are not what they must be.
    """
    floats, targets = _floats(images, labels, image_shape), labels.astype(np.int64)
    n = len(targets)
    classifier = make_classifier()
    digest = images_digest(images, targets)
    report = None if progress is None else lambda done, total: progress("clean accuracy", done, total)
    logits = batched_logits(classifier, floats, settings.batch_size, report)
    checks = [_check_statement(artefact, threat_model, settings, n), _check_parity(expected, decoded)]
    checks += [check_sample_size(policy, n), check_logits(logits, n)]
    measured = Verification(
        verdict=judge([], n),
        artefact=artefact,
        threat_model=threat_model,
        settings=settings,
        policy=policy,
        split=split,
        images_sha256=digest,
        labels=targets,
        right=None,
        robustness=None,
        recorded=recorded,
    )
    if checks[-1].passed:
        if targets.max() >= logits.shape[1]:
            raise InputError(
                "labels are out of range", expected=f"0 to {logits.shape[1] - 1}", got=f"a label {int(targets.max())}"
            )
        right = correct(logits, targets)
        checks.append(check_normalisation(classifier, floats, targets, settings.batch_size))
        checks.append(check_determinism(classifier, floats[:DETERMINISM_IMAGES]))
        eps, norm = threat_model.eps, threat_model.norm
        robustness = attack(classifier, floats, targets, eps, settings, progress, spread, norm, surrogate)
        given = (floats, targets, threat_model, robustness, settings)
        checks += attack_checks(classifier, make_classifier(), *given, policy.allow_black_box, progress)
        curve: tuple[CurvePoint, ...] = ()
        if not robustness.no_gradient:
            curve = eps_curve(classifier, floats, targets, right, threat_model, robustness, settings, progress)
        checks.append(check_curve(curve))
        measured = replace(measured, right=right, robustness=robustness, curve=curve)
        if comparison and not robustness.no_gradient:
            rows = compare_attacks(classifier, floats, targets, threat_model, settings, progress, spread)
            measured = replace(measured, comparison=rows)
    else:
        names = ("normalisation", "determinism", *ATTACK_CHECKS, "eps-curve")
        checks += [Check(name, None, "the outputs are no logits") for name in names]
    if baseline is not None:
        measured = replace(measured, baseline=_baseline(baseline, measured, floats, progress, spread))
    checks.append(check_attack_budget(policy, threat_model, settings, measured.robustness))
    conditions = image_conditions(n, split, digest, recorded)
    accuracies = (measured.clean, measured.robust, measured.robustness)
    checks += threshold_checks(policy, artefact.bytes, *accuracies, recorded, conditions, threat_model)
    margins = (policy.max_clean_loss, policy.max_robust_loss)
    checks += loss_checks(measured.baseline, measured.right, measured.standing, *margins)
    return measured.with_checks(*checks, check_judged(checks))


def _baseline(
    file: BaselineFile,
    measured: Verification,
    images: Floats,
    progress: StageProgress | None,
    spread: Spread | None,
) -> Baseline:
    """The baseline on the same images."""
    if file.classifier is None:
        return recorded_baseline(file, file.report or {}, measured.to_json())
    return attacked_baseline(
        file, file.classifier, images, measured.labels, measured.threat_model, measured.settings, progress, spread
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
