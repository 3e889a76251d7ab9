import json
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy_classifiers import BlackBox, HalfWay, Mlp, digits, fit

from atmc_tool.errors import InputError
from atmc_tool.threat_model import parse_threat_model
from evaluators.attack_plan import AttackSettings
from evaluators.baseline import BaselineFile, packed, unpacked
from evaluators.policy import parse_policy
from evaluators.verification import Artefact, Verification, verify

N = 200
SETTINGS = AttackSettings(steps=5, restarts=1, square_queries=0)
ARTEFACT = Artefact("model.onnx", 20_000, "ab" * 32)


def run(
    classifier: Mlp, baseline: BaselineFile | None = None, n: int = N, eps: str = "0.03", **policy: Any
) -> Verification:
    images, labels = digits()
    held_out = slice(1200, 1200 + n)
    return verify(
        lambda: classifier,
        images[held_out],
        labels[held_out],
        parse_threat_model(eps),
        ARTEFACT,
        settings=SETTINGS,
        policy=parse_policy(policy),
        baseline=baseline,
    )


def status(verification: Verification) -> dict[str, str]:
    return {check.name: check.status for check in verification.verdict.checks}


def report(verification: Verification) -> dict[str, Any]:
    plain: dict[str, Any] = json.loads(json.dumps(verification.to_json()))
    return plain


def worse(classifier: Mlp) -> Mlp:
    """Loses some images of one class."""
    return replace(classifier, bias=classifier.bias - np.eye(10, dtype=np.float32)[3] / 4)


@pytest.fixture(scope="module")
def dense() -> Verification:
    return run(fit())


@given(st.lists(st.booleans(), min_size=1, max_size=50))
def test_outcomes_survive_packing(outcomes: list[bool]) -> None:
    text = packed(np.array(outcomes))
    assert unpacked(text, len(outcomes), "x").tolist() == outcomes
    assert packed(None) is None
    assert unpacked(None, 3, "x") is None


@pytest.mark.parametrize("text", ["", "AA", "AAAA", "?", "ÄA==", 7, []])
def test_damaged_outcomes(text: object) -> None:
    with pytest.raises(InputError, match="outcomes in the report are damaged"):
        unpacked(text, 9, "the report")


def test_a_network_attacked_now_and_its_earlier_report_are_one_baseline(dense: Verification) -> None:
    network = BaselineFile("dense.onnx", "cd" * 32, classifier=fit())
    earlier = BaselineFile("verify.json", "ef" * 32, report=report(dense))
    found = [run(worse(fit()), file).baseline for file in (network, earlier)]
    np.testing.assert_array_equal(found[0].clean, found[1].clean)
    np.testing.assert_array_equal(found[0].robust, found[1].robust)
    assert found[0].clean.mean() == dense.clean.value
    assert found[0].robust.mean() == dense.robust.value


def test_flips_are_counted_image_by_image(dense: Verification) -> None:
    after = run(worse(fit()), BaselineFile("d.json", "", report=report(dense)), max_clean_loss=0.5, max_robust_loss=0)
    stated = report(after)["baseline"]
    assert stated["clean_paired"]["lost"] == int((dense.right & ~after.right).sum()) > 0
    assert stated["robust_paired"]["gained"] == int((~dense.standing & after.standing).sum())
    assert stated["robust_paired"]["drop"] == pytest.approx(dense.robust.value - after.robust.value)
    assert stated["clean"]["accuracy"] == dense.clean.value
    assert (status(after)["clean-loss"], status(after)["robust-loss"]) == ("passed", "failed")
    assert status(after)["robustness-judged"] == "passed"


def test_no_flip_is_no_proof_of_equality(dense: Verification) -> None:
    file = BaselineFile("d.json", "", report=report(dense))
    for margin, expected in ((0.016, "passed"), (0.014, "failed")):  # 1 − 0.05^(1/200) = 0.0149
        assert status(run(fit(), file, max_robust_loss=margin))["robust-loss"] == expected


@pytest.mark.parametrize(
    ("changes", "clean", "robust", "words"),
    [
        ({}, True, True, ""),
        ({"outcomes": None}, False, False, "no outcomes of single images"),
        ({"images": {"split": "test", "sha256": "00"}}, False, False, "other images"),
        ({"threat_model": {"norm": "linf", "eps": "0.04", "box": [0, 1]}}, True, False, "other threat model"),
        ({"settings": {"steps": 1}}, True, False, "other settings"),
        ({"attacks": []}, True, False, "other attacks"),
        ({"attacks": 3}, True, False, "other attacks"),
    ],
)
def test_only_what_was_measured_alike_is_compared(
    dense: Verification, changes: dict[str, Any], clean: bool, robust: bool, words: str
) -> None:
    file = BaselineFile("verify.json", "", report={**report(dense), **changes})
    after = run(fit(), file, max_clean_loss=0.1, max_robust_loss=0.1)
    assert (after.baseline.clean is not None, after.baseline.robust is not None) == (clean, robust)
    assert words in after.baseline.problem
    expected = ["passed" if usable else "failed" for usable in (clean, robust)]
    assert [status(after)["clean-loss"], status(after)["robust-loss"]] == expected
    silent = ["not applied"] * 2
    assert [status(run(fit(), file))[name] for name in ("clean-loss", "robust-loss")] == silent


def test_a_margin_without_a_baseline_fails() -> None:
    assert status(run(fit(), max_clean_loss=0.1))["clean-loss"] == "failed"


@pytest.mark.parametrize("kind", [BlackBox, HalfWay])
def test_a_baseline_without_gradient_is_compared_on_clean_images_only(kind: type[Mlp]) -> None:
    file = BaselineFile("d.onnx", "", classifier=fit(kind))
    after = run(fit(), file, max_clean_loss=0.1, max_robust_loss=0.1)
    assert (status(after)["clean-loss"], status(after)["robust-loss"]) == ("passed", "failed")
    assert "Mystery" in after.baseline.problem


@pytest.mark.parametrize(("n", "bits"), [(0, None), (-1, None), ("many", None), (201, None), (None, None), (3, "4A==")])
def test_a_damaged_report(dense: Verification, n: object, bits: str | None) -> None:
    damaged = report(dense)
    damaged["outcomes"] |= {"n": n, **({} if bits is None else {"clean": bits, "robust": bits})}
    with pytest.raises(InputError, match="damaged") as caught:
        run(fit(), BaselineFile("verify.json", "", report=damaged))
    assert "\n" not in str(caught.value)


def test_the_policy_may_allow_a_file_without_gradients() -> None:
    images, labels = digits()
    some = slice(1200, 1300)
    for allowed in (False, True):
        result = verify(
            lambda: fit(BlackBox),
            images[some],
            labels[some],
            parse_threat_model("0.03"),
            ARTEFACT,
            settings=AttackSettings(square_queries=20),
            policy=parse_policy({"allow_black_box": allowed, "min_robust": 0.5}),
        )
        assert result.verdict.passed is allowed
        assert status(result)["white-box"] == ("warning" if allowed else "failed")
        assert status(result)["min-robust"] == ("passed" if allowed else "failed")
        assert (result.robust is not None) is allowed
        json.dumps(result.to_json(), allow_nan=False)
