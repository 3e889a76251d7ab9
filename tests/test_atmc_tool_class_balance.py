"""Balanced accuracy against scikit-learn's, and where commands report it."""

import json
from pathlib import Path

import numpy as np
import pytest
from conftest import Cli
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from sklearn.metrics import balanced_accuracy_score

from atmc_tool.class_balance import balanced_accuracy, class_counts, is_unbalanced
from atmc_tool.data import load_data
from evaluators.accuracy import share
from evaluators.classifier import OrtClassifier, read_onnx

CLASSES = st.integers(0, 5)


@pytest.mark.filterwarnings("ignore:A single label was found")
@given(hnp.arrays(np.int64, st.integers(1, 60), elements=CLASSES), st.data())
def test_agrees_with_scikit_learn(labels: np.ndarray, data: st.DataObject) -> None:
    predicted = data.draw(hnp.arrays(np.int64, len(labels), elements=st.sampled_from(sorted(set(labels.tolist())))))
    right, counts = predicted == labels, class_counts(labels)
    expected = balanced_accuracy_score(labels, predicted)
    assert balanced_accuracy(np.bincount(labels[right], minlength=len(counts)), counts) == pytest.approx(expected)
    measured = share(right, labels)
    assert measured.value == right.mean()
    assert measured.balanced == (pytest.approx(expected) if is_unbalanced(counts) else None)
    assert ("balanced_accuracy" in measured.to_json()) == is_unbalanced(counts)


@pytest.mark.parametrize(
    ("counts", "unbalanced"), [([10, 10], False), ([15, 10], False), ([16, 10], True), ([0, 4, 4], False), ([7], False)]
)
def test_what_counts_as_unbalanced(counts: list[int], unbalanced: bool) -> None:
    assert is_unbalanced(np.array(counts)) == unbalanced


@pytest.fixture
def rare(tmp_path: Path) -> Path:
    """A folder with digits of which every class but 0 and 1 is rare."""
    digits = load_data("digits")
    arrays = {}
    for part, images in (("train", digits.train), ("test", digits.test)):
        kept = np.flatnonzero((images.labels < 2) | (np.arange(len(images)) % 4 == 0))
        arrays |= {f"x_{part}": images.images[kept], f"y_{part}": images.labels[kept]}
    np.savez(tmp_path / "rare.npz", **arrays)
    (tmp_path / "atmc.yaml").write_text("evaluation: {n: 60, steps: 2, restarts: 1, square_queries: 5}\n")
    return tmp_path


def test_every_command_reports_it(rare: Path, cli: Cli) -> None:
    short = "--max-steps 10 --set attack.steps=1"
    line = f"train --data rare.npz --arch digits-cnn --eps 0.05 {short} -o model.pt"
    shown = cli(line, rare)
    assert shown.code == 0, shown.err
    assert "clean accuracy, mean over classes" in shown.out
    assert "robust accuracy, mean over classes" in shown.out
    shown = cli(f"compress model.pt {short} --size 12KB", rare)
    assert shown.code == 0, shown.err
    assert "clean, mean over classes" in shown.out
    assert (rare / "atmc-run" / "model.atmc").stat().st_size <= 12_000
    assert "compressed, mean over classes" in (rare / "atmc-run" / "report.html").read_text()
    assert cli("export --onnx", rare).code == 0
    done = cli("verify", rare)
    assert done.code in (0, 5), done.err
    report = json.loads((rare / "atmc-run" / "verify.json").read_text())
    assert report["recorded"]["balanced_clean_accuracy"] == pytest.approx(report["clean"]["balanced_accuracy"])
    assert report["attacks"][0]["balanced_accuracy"] == pytest.approx(report["recorded"]["balanced_robust_accuracy"])
    assert report["robust"]["balanced_accuracy"] <= report["attacks"][0]["balanced_accuracy"]
    test = load_data(str(rare / "rare.npz")).test
    chosen = test.take(np.argsort(np.random.PCG64([0]).random_raw(len(test)), kind="stable")[:60])
    predicted = OrtClassifier(read_onnx(rare / "atmc-run" / "model.onnx")).logits(chosen.floats()).argmax(1)
    expected = balanced_accuracy_score(chosen.labels, predicted)
    assert report["clean"]["balanced_accuracy"] == pytest.approx(expected)
    assert f"mean over classes {expected:.4f}" in " ".join(done.out.replace("│", " ").split())
