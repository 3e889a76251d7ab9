import json
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from numpy_classifiers import BatchNormalised, BlackBox, HalfWay, Masked, Mlp, Noisy, Softmax, digits, fit

from atmc_tool.attacks.classifier import Classifier
from atmc_tool.errors import InputError
from atmc_tool.threat_model import parse_threat_model
from evaluators.attack_plan import AttackSettings
from evaluators.parity import ExpectedWeights
from evaluators.policy import parse_policy
from evaluators.verification import Artefact, Verification, verify

ARTEFACT = Artefact("model.onnx", 20_000, "ab" * 32, {"model.atmc": "cd" * 32})
SETTINGS = AttackSettings(steps=20, restarts=2, square_queries=200, square_samples=200)
EPS = "0.03"


def run(make: Callable[[], Classifier] = fit, eps: str = EPS, n: int = 300, **arguments: object) -> Verification:
    images, labels = digits()
    held_out = slice(1200, 1200 + n)
    arguments = {"settings": SETTINGS, "policy": parse_policy({"min_robust": 0.01}), **arguments}
    return verify(make, images[held_out], labels[held_out], parse_threat_model(eps), ARTEFACT, **arguments)


def status(verification: Verification) -> dict[str, str]:
    return {check.name: check.status for check in verification.verdict.checks}


@pytest.fixture(scope="module")
def honest() -> Verification:
    return run()


def test_an_honest_classifier_passes(honest: Verification) -> None:
    assert honest.verdict.passed
    assert honest.verdict.grade == "smoke"
    assert not honest.verdict.failed
    assert honest.robust.value < honest.clean.value - 0.05
    assert run(n=512).verdict.grade == "release"


def test_what_no_threshold_judges_is_no_pass() -> None:
    """A network without any robustness passed where neither a threshold nor a recorded number was there."""
    unjudged = run(eps="0.9", n=50, policy=parse_policy({}))
    assert unjudged.robust.value < 0.2
    assert not unjudged.verdict.passed
    assert [check.name for check in unjudged.verdict.failed] == ["robustness-judged"]


PLANTED_FAULTS = {
    "logits times 1000": (lambda: fit(scale=10_000), "gradients"),
    "input rounded to 9 levels": (
        lambda: Masked(fit(), on_input=lambda x: np.rint(x * 8) / np.float32(8)),
        "large-eps",
    ),
    "logits floored to quarters": (lambda: Masked(fit(), on_output=lambda z: np.floor(z * 4) / 4), "gradients"),
    "input noise": (lambda: fit(Noisy), "determinism"),
    "softmax as output": (lambda: fit(Softmax), "logits"),
    "batch norm in training mode": (lambda: fit(BatchNormalised), "determinism"),
    "no gradient": (lambda: fit(BlackBox), "white-box"),
    "a gradient of one loss": (lambda: fit(HalfWay), "white-box"),
}


@pytest.mark.parametrize("fault", PLANTED_FAULTS)
def test_the_gate_fails_every_planted_fault(fault: str) -> None:
    make, expected = PLANTED_FAULTS[fault]
    result = run(make)
    assert not result.verdict.passed
    assert status(result)[expected] == "failed"
    json.dumps(result.to_json(), allow_nan=False)


def test_the_rounded_input_is_found_three_times() -> None:
    result = status(run(PLANTED_FAULTS["input rounded to 9 levels"][0]))
    assert [result[name] for name in ("gradients", "large-eps", "white-box-strongest")] == ["failed"] * 3


def test_the_margin_loss_undoes_the_scaling_of_logits(honest: Verification) -> None:
    scaled = run(PLANTED_FAULTS["logits times 1000"][0])
    assert scaled.robustness.white_box[0].accuracy.value > honest.robust.value + 0.05
    assert abs(scaled.robust.value - honest.robust.value) < 0.02


def test_every_condition_is_listed_whatever_happens(honest: Verification) -> None:
    names = list(status(honest))
    for make in (lambda: fit(Softmax), lambda: fit(BlackBox)):
        assert sorted(status(run(make))) == sorted(names)
    assert status(honest)["weight-parity"] == "not applied"


def test_unmeasured_robustness_fails_a_threshold() -> None:
    result = run(lambda: fit(BlackBox), policy=parse_policy({"min_robust": 0.0}))
    assert status(result)["min-robust"] == "failed"
    assert result.robust is None
    assert [result.name for result in result.robustness.attacks] == ["square"]


FEW = AttackSettings(steps=4, restarts=2, square_queries=0)


@pytest.fixture(scope="module")
def brief() -> Verification:
    return run(settings=FEW)


def recorded(brief: Verification, **changes: object) -> dict[str, object]:
    pgd = brief.robustness.white_box[0].accuracy.value
    facts = {"clean_accuracy": brief.clean.value, "robust_accuracy": pgd, "n": 300, "split": "test", "norm": "linf"}
    return {**facts, "eps": EPS, "attack": "pgd", "steps": 4, "restarts": 2, "seed": 0, **changes}


def test_negative_controls(brief: Verification) -> None:
    """Biases zeroed, classes confused, ten times the stated eps: the policy must notice each."""
    policy = parse_policy({"min_clean": 0.9, "min_robust": 0.6})
    assert run(settings=FEW, policy=policy, recorded=recorded(brief)).verdict.passed
    good = fit()
    zeroed = replace(good, offset=0 * good.offset, bias=0 * good.bias)
    assert status(run(lambda: zeroed, settings=FEW, recorded=recorded(brief)))["clean-drop"] == "failed"
    confused = replace(good, readout=good.readout[:, ::-1])
    assert status(run(lambda: confused, settings=FEW, policy=policy))["min-clean"] == "failed"
    strong = run(eps="0.3", settings=FEW, policy=policy)
    assert [status(strong)[name] for name in ("min-clean", "min-robust")] == ["passed", "failed"]
    assert not strong.verdict.passed


@pytest.mark.parametrize(
    ("changes", "clean", "robust"),
    [
        ({}, "passed", "passed"),
        ({"clean_accuracy": 1.0}, "failed", "passed"),
        ({"robust_accuracy": 0.95}, "passed", "failed"),
        ({"eps": "0.02"}, "passed", "not applied"),
        ({"steps": 100}, "passed", "not applied"),
        ({"n": 299}, "not applied", "not applied"),
        ({"images_sha256": "00"}, "not applied", "not applied"),
    ],
)
def test_drops_below_recorded_numbers(brief: Verification, changes: dict[str, object], clean: str, robust: str) -> None:
    numbers = recorded(brief, **changes)
    for policy, silent in (({}, "not applied"), ({"max_drop": 0.02}, "failed")):
        found = status(run(settings=FEW, recorded=numbers, policy=parse_policy(policy)))
        expected = [silent if outcome == "not applied" else outcome for outcome in (clean, robust)]
        assert [found["clean-drop"], found["robust-drop"]] == expected
    same = recorded(brief, images_sha256=brief.images_sha256)
    assert status(run(settings=FEW, recorded=same))["clean-drop"] == "passed"


def test_parity_and_size_are_part_of_the_verdict() -> None:
    weight = np.float32([1, 2])
    expected = ExpectedWeights({"w": weight}, {}, {})
    few = AttackSettings(steps=2, restarts=1, square_queries=0)
    arguments = {"n": 50, "settings": few, "expected": expected}
    assert status(run(decoded={"w": weight.copy()}, **arguments))["weight-parity"] == "passed"
    assert status(run(decoded={"w": weight * 2}, **arguments))["weight-parity"] == "failed"
    assert status(run(**arguments))["weight-parity"] == "not applied"
    sizes = [
        run(n=50, settings=few, policy=parse_policy({"min_robust": 0.01, "max_bytes": b})).verdict
        for b in (20_000, 19_999)
    ]
    assert [verdict.passed for verdict in sizes] == [True, False]
    assert status(run(n=50, settings=few))["white-box-strongest"] == "not applied"


def test_a_claim_without_digest_fails() -> None:
    images, labels = digits()
    few = AttackSettings(steps=1, restarts=1, square_queries=0)
    nameless = Artefact("model.onnx", 10, "")
    result = verify(fit, images[:20], labels[:20], parse_threat_model(EPS), nameless, settings=few)
    assert status(result)["statement"] == "failed"


def test_report_is_plain_json_with_everything(honest: Verification) -> None:
    report = json.loads(json.dumps(honest.to_json(), allow_nan=False))
    assert report["verdict"]["passed"] is True
    assert report["verdict"]["grade"] == "smoke"
    assert report["artefact"] == {
        "name": "model.onnx",
        "bytes": 20_000,
        "sha256": "ab" * 32,
        "source": {"model.atmc": "cd" * 32},
    }
    assert report["threat_model"] == {"norm": "linf", "eps": EPS, "box": [0, 1]}
    assert report["images"]["sha256"] == honest.images_sha256
    assert report["clean"]["n"] == 300
    assert report["robust"]["clopper_pearson_95"][0] < report["robust"]["accuracy"]
    assert {"accuracy", "wilson_95", "parameters"} <= set(report["attacks"][0])
    assert report == json.loads(json.dumps(run().to_json()))


def test_progress_names_every_stage() -> None:
    seen: dict[str, tuple[int, int]] = {}
    run(n=60, progress=lambda stage, done, total: seen.update({stage: (done, total)}))
    attacks = ["pgd-20 cross-entropy", "pgd-20 margin", "apgd-t", "square"]
    assert list(seen) == ["clean accuracy", *attacks, "twice the budget", "other eps"]
    assert all(done == total for done, total in seen.values())


IMAGES = np.zeros((4, 1, 8, 8), np.uint8)
LABELS = np.array([0, 1, 2, 3])
FLOATS = IMAGES.astype(np.float32)


@pytest.mark.parametrize(
    ("images", "labels", "words"),
    [
        (IMAGES[:, 0], LABELS, "wrong shape"),
        (IMAGES[:0], LABELS[:0], "wrong shape"),
        (np.zeros((4, 3, 8, 8), np.uint8), LABELS, r"expected \(n, 1, 8, 8\)"),
        (FLOATS + np.float32(np.nan), LABELS, "NaN"),
        (FLOATS + 2, LABELS, r"out of range: expected \[0, 1\]"),
        (IMAGES.astype(np.int64), LABELS, "wrong type"),
        (IMAGES, LABELS[:3], "labels do not fit"),
        (IMAGES, LABELS.astype(np.float32), "labels do not fit"),
        (IMAGES, LABELS - 1, "labels are out of range"),
        (IMAGES, LABELS + 7, "labels are out of range: expected 0 to 9, got a label 10"),
    ],
)
def test_bad_images_and_labels(images: np.ndarray, labels: np.ndarray, words: str) -> None:
    with pytest.raises(InputError, match=words) as caught:
        verify(fit, images, labels, parse_threat_model(EPS), ARTEFACT, image_shape=(1, 8, 8))
    assert "\n" not in str(caught.value)


def test_integer_and_float_images_are_the_same_pixels() -> None:
    images, labels = digits()
    few = AttackSettings(steps=2, restarts=1, square_queries=0)
    results = [
        verify(fit, x, labels[1200:1250], parse_threat_model(EPS), ARTEFACT, settings=few)
        for x in (images[1200:1250], images[1200:1250].astype(np.float32) / 255)
    ]
    assert results[0].robust == results[1].robust


def test_the_second_classifier_is_a_new_one() -> None:
    made: list[Mlp] = []

    def make() -> Mlp:
        made.append(fit())
        return made[-1]

    run(make, n=40)
    assert len(made) == 2
