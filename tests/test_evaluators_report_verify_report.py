"""The page of a verification: what it says, from a whole report, a damaged one and none at all."""

import base64
import copy
import io
import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from test_evaluators_report_run_report import EVIL, Page, luminance

from evaluators.gate import CHECKS
from evaluators.paired import Paired
from evaluators.report.advice import ADVICE
from evaluators.report.charts import LETTER, WIDTH, Point, bar, curve, interval
from evaluators.report.examples import LONGEST_SIDE, MOST, Example, data_uri, fooled_examples, in_turn
from evaluators.report.palette import DARK, LIGHT
from evaluators.report.radius import like_stated, times_stated
from evaluators.report.verify_report import verify_report
from evaluators.statistics import Proportion

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
NBSP = "\N{NO-BREAK SPACE}"
REPORT: dict[str, Any] = {
    "atmc_tool": "0.1.0",
    "provider": "cpu",
    "provider_note": "",
    "data": {"name": "digits", "sha256": "d" * 64},
    "verdict": {
        "passed": False,
        "grade": "smoke",
        "checks": [
            {"name": "logits", "status": "passed", "reason": "finite, 10 classes", "evidence": {"shape": [360, 10]}},
            {"name": "min-clean", "status": "not applied", "reason": "no threshold is set", "evidence": {}},
            {"name": "min-robust", "status": "failed", "reason": "lower bound 0.7998 < 0.9", "evidence": {"n": 360}},
            {"name": "converged", "status": "warning", "reason": "40 steps fool 3 more", "evidence": {}},
            {"name": "of-tomorrow", "status": "failed", "reason": "who knows", "evidence": {}},
        ],
    },
    "artefact": {"name": "release/model.onnx", "bytes": 7346, "sha256": "a" * 64, "source": {"model.atmc": "b" * 64}},
    "threat_model": {"norm": "linf", "eps": "8/255", "box": [0, 1]},
    "images": {"split": "test", "sha256": "c" * 64},
    "clean": Proportion(357, 360).to_json(),
    "robust": Proportion(303, 360).to_json(),
    "attacks": [
        {"name": "pgd-20 cross-entropy", "parameters": {"steps": 20}, **Proportion(307, 360).to_json()},
        {"name": "square", "parameters": {"queries": 300}, **Proportion(222, 256).to_json()},
    ],
    "comparison": [
        {
            "name": "wrm-15",
            "label": "for comparison only",
            "distance": {"mean": 2.974504, "largest": 5.1},
            **Proportion(130, 360).to_json(),
        }
    ],
    "settings": {"steps": 20},
    "policy": {"min_clean": None, "min_robust": 0.9, "max_drop": 0.02, "max_bytes": None},
    "recorded": {"clean_accuracy": 0.99, "robust_accuracy": 0.85},
    "dense": None,
    "sizes": {"dense": 212_008, "gzip of the pruned dense weights": 7417, "model.atmc": 5453, "model.onnx": 7346},
    "eps_curve": [
        {"eps": eps, "text": text, "attack": "pgd-20" if eps else "", **Proportion(correct, 100).to_json()}
        for eps, text, correct in ((0, "0", 99), (4 / 255, "4/255", 93), (8 / 255, "8/255", 84), (1, "1", 0))
    ],
    "classes": [{"name": str(k), "n": 36, "clean": 1.0, "robust": 0.6 + k / 40} for k in range(10)],
    "layers": [{"name": "conv1.weight", "shape": [32, 1, 3, 3], "kept": 72, "total": 288, "bits": 4, "bytes": 80}],
    "baseline": {
        "name": "dense.onnx",
        "sha256": "e" * 64,
        "problem": "",
        "clean": Proportion(358, 360).to_json(),
        "robust": Proportion(309, 360).to_json(),
        "clean_paired": Paired(2, 1, 360).to_json(),
        "robust_paired": Paired(9, 3, 360).to_json(),
    },
    "provenance": {
        "machine": {"system": "Linux", "cores": 2},
        "atmc_tool": "0.1.0",
        "numpy": "2.4.6",
        "command": "atmc-tool verify",
    },
}


def example(side: int = 8, channels: int = 1, seed: int = 0) -> Example:
    generator = np.random.default_rng(seed)
    clean = generator.uniform(0.1, 0.9, (channels, side, side)).astype(np.float32)
    return Example(clean, clean + np.float32(0.1) * np.sign(generator.normal(size=clean.shape)), "3", "8")


def test_the_whole_report() -> None:
    examples = [example(seed=seed) for seed in range(6)]
    content = verify_report(REPORT, examples)
    assert content == verify_report(copy.deepcopy(REPORT), examples)
    page = Page(content)
    text = re.sub(r"\s+", " ", page.text.replace(NBSP, " "))
    for said in (
        "✗ FAILED (smoke test)",
        "Failed: min-robust, of-tomorrow",
        "Robust accuracy: 84.2 % (95 % interval 80.0 to 87.8 %)",
        "303 of 360 test images",
        "every pixel value by at most 8/255",
        "1 checks passed, 2 failed, 1 warning, 1 did not apply",
        "converged: 40 steps fool 3 more",
        "robust accuracy: 9 of 360 images lost, 3 gained; it falls by 1.67 points",
        "system Linux, cores 2",
        ADVICE["min-robust"],
        "212,008 bytes",
        "38.9 times smaller",
        "28.9 × smaller",
        "under square 86.7 %",
        "For comparison only",
        "under wrm-15 36.1 %",
        "n 360; 94.81 eps away",
        "required: lower end at least 90.0 %",
        "100.0 % → 60.0 %",
        "3 becomes 8",
        "difference × 5",
        "baseline dense.onnx, measured here",
        "32 × 1 × 3 × 3",
        "25.0 %",
        "a" * 64,
        "made of model.atmc, SHA-256",
        "numpy",
    ):
        assert said in text, said
    alone = [each["aria-label"] or "" for each in page.all("div") if each.get("role") == "img"]
    assert alone == [f"Accuracy: 99.0{NBSP}% at eps 0, 93.0{NBSP}% at eps 4/255, 84.0{NBSP}% at eps 8/255, "
                     f"0.0{NBSP}% at eps 1."]  # fmt: skip
    assert len(page.all("img")) == 18
    assert all(picture["alt"] for picture in page.all("img"))
    hidden = [each for each in page.all("svg") if each.get("aria-hidden") == "true"]
    assert len(hidden) == len(page.all("svg")) - 1  # all but the curve, which has the words above
    assert len(content) < 500_000


def test_it_loads_nothing() -> None:
    page = Page(verify_report(REPORT, [example()]))
    assert not {tag for tag, _ in page.elements} & {"script", "link", "iframe", "object", "base", "form"}
    for _, attributes in page.elements:
        for name in ("src", "href", "xlink:href", "style", "onload"):
            assert (attributes.get(name) or "data:image/png;base64,").startswith("data:image/png;base64,")
    content = verify_report(REPORT, [example()]).decode()
    assert not re.findall(r"https?:|//[a-z]|@import", re.sub(r"base64,[^\"]+", "", content))
    policy = next(each["content"] for each in page.all("meta") if each.get("http-equiv"))
    assert policy == "default-src 'none'; style-src 'unsafe-inline'; img-src data:"


def test_a_passed_release() -> None:
    checks = [check for check in REPORT["verdict"]["checks"] if check["status"] != "failed"]
    report = {**REPORT, "verdict": {"passed": True, "grade": "release", "checks": checks}}
    text = Page(verify_report(report)).text
    assert "✓ PASSED" in text
    assert "smoke" not in text
    assert "Failed:" not in text
    assert "what to do" not in text
    assert "fool this file" not in text
    assert "No least robust accuracy" not in text
    assert "No least robust accuracy" in Page(verify_report({**report, "policy": {}})).text


@pytest.mark.parametrize("report", [{}, {"verdict": None}, dict.fromkeys(REPORT), {key: [3] for key in REPORT}])
def test_sections_without_data_are_left_out(report: dict[str, Any]) -> None:
    page = Page(verify_report(report))
    assert "✗ FAILED" in page.text
    assert "could not be measured" in page.text
    for absent in ("Size", "under attack", "Class by class", "Layers", "All checks", "Beside other", "comparison only"):
        assert absent not in page.text
    assert not page.all("svg")


def replaced(value: Any, by: Any) -> Iterator[Any]:
    """`value` with one thing in it replaced, for each thing in it."""
    yield by
    for key in value if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ():
        for inner in replaced(value[key], by):
            changed = copy.copy(value)
            changed[key] = inner
            yield changed


@pytest.mark.parametrize("by", [EVIL, float("nan"), -1e300, None, [EVIL, {}]], ids=str)
def test_anything_in_the_place_of_anything(by: Any) -> None:
    """Whatever verify.json holds, there is a page, and text stays text."""
    for changed in list(replaced(REPORT, by))[1::7]:
        content = verify_report(changed)
        assert b"<script" not in content
        assert b"nan%" not in content
        Page(content)


def test_every_check_has_its_advice() -> None:
    assert set(ADVICE) == set(CHECKS)


def test_colours_of_the_verdict_have_contrast() -> None:
    for scheme in (LIGHT, DARK):
        pairs = [("text", ground, 4.5) for ground in ("pass", "fail")]
        pairs += [(mark, ground, 4.5) for mark in ("line-3", "line-7") for ground in ("page", "card")]
        pairs += [(f"{kind}-edge", ground, 3) for kind in ("pass", "fail") for ground in (kind, "page")]
        for front, ground, least in pairs:
            low, high = sorted((luminance(scheme[front]), luminance(scheme[ground])))
            assert (high + 0.05) / (low + 0.05) >= least, (front, ground)


def test_radii_are_written_as_the_stated_one_is() -> None:
    assert [like_stated(k / 255, "4/255") for k in (0, 1, 2, 8, 0.5, 255)] == [
        "0",
        "1/255",
        "2/255",
        "8/255",
        "0.5/255",
        "1",
    ]
    assert like_stated(0.025, "0.1") == like_stated(0.025, "None") == like_stated(0.025, "x/0") == "0.025"
    assert times_stated(6 / 255, "4/255") == "1.50 eps"
    assert times_stated(1.0, "None") is None


def test_a_long_label_at_the_end_of_a_curve_is_not_cut_off() -> None:
    drawn = curve([Point("0", 1, 1, 1), Point("0.03137", 0, 0, 0)], "eps", None)
    (at,) = re.findall(r'<text x="([\d.]+)"[^>]*>0\.03137', drawn)
    assert float(at) + LETTER * len("0.03137") / 2 <= WIDTH


def test_charts_stand_where_their_numbers_are() -> None:
    assert 'width="25.00%"' in bar(0.25)
    assert 'width="0.40%"' in bar(1e-9)
    drawn = interval(0.5, 0.4, 0.6, 0.55)
    for part in ('x1="40.00%" x2="60.00%"', 'cx="50.00%"', 'x1="55.00%" x2="55.00%"'):
        assert part in drawn
    heights = re.findall(r'circle class="dot" cx="([\d.]+)" cy="([\d.]+)"', curve(
        [Point("0", 1, 1, 1), Point("a", 0.5, 0.4, 0.6), Point("b", 0, 0, 0.1)], "eps", "a"
    ))  # fmt: skip
    (x0, y0), (x1, y1), (x2, y2) = [(float(x), float(y)) for x, y in heights]
    assert x1 - x0 == pytest.approx(x2 - x1, abs=0.2)
    assert y1 - y0 == pytest.approx(y2 - y1, abs=0.2)
    assert y0 < y1 < y2


def test_labels_of_many_radii_do_not_overlap() -> None:
    points = [Point(f"{k}/255", 0.5, 0.4, 0.6) for k in range(40)]
    labels = re.findall(r'<text x="([\d.]+)" y="200" text-anchor="middle">(\d+/255)', curve(points, "eps", None))
    at = [float(x) for x, _ in labels]
    assert len(at) >= 4
    assert min(b - a for a, b in pairwise(at)) > 7 * 6


class Reading:
    """The class of an image (1, 2, 2) is 10 times its first pixel."""

    def logits(self, images: Any) -> Any:
        said = np.rint(10 * images[:, 0, 0, 0]).astype(int)
        return np.eye(10, dtype=np.float32)[said]


def test_examples_are_images_that_were_right_and_are_fooled() -> None:
    labels = np.array([1, 1, 1, 2, 3, 3, 4, 5, 6, 7])
    images = np.zeros((10, 1, 2, 2), np.float32)
    images[:, 0, 0, 0] = labels / 10
    images[4, 0, 0, 0] = 0.9  # a mistake without any attack
    adversarial = images.copy()
    adversarial[:, 0, 0, 0] += 0.1
    robust = np.zeros(10, bool)
    robust[3] = True
    adversarial[6] = images[6]  # says what it said
    found = fooled_examples(Reading(), images, labels, robust, adversarial, ["a", "b", "c", "d", "e"])
    assert [(e.before, e.after) for e in found] == [("b", "c"), ("d", "e"), ("5", "6"), ("6", "7"), ("7", "8")]
    assert len(found) <= MOST
    assert fooled_examples(Reading(), images, labels, np.ones(10, bool), adversarial, []) == []
    as_bytes = np.rint(255 * images).astype(np.uint8)
    assert fooled_examples(Reading(), as_bytes, labels, robust, adversarial, [])[0].before == "1"


def test_each_class_in_turn() -> None:
    labels = np.array([5, 5, 5, 2, 2, 9])
    np.testing.assert_array_equal(labels[in_turn(np.arange(6), labels)], [2, 5, 9, 2, 5, 5])


@pytest.mark.parametrize(("channels", "side"), [(1, 8), (3, 8), (2, 8), (3, 224)])
def test_pictures_hold_the_pixels(channels: int, side: int) -> None:
    one = example(side, channels)
    head, _, code = data_uri(one.clean).partition(",")
    picture = np.asarray(Image.open(io.BytesIO(base64.b64decode(code))))
    assert head == "data:image/png;base64"
    assert max(picture.shape[:2]) <= LONGEST_SIDE
    step = 3 if side == 224 else 1
    expected = np.rint(255 * one.clean[:, ::step, ::step]).transpose(1, 2, 0)
    np.testing.assert_array_equal(picture, expected if channels == 3 else expected[..., 0])
    assert one.amplification == pytest.approx(5, rel=1e-3)
    assert len(one.pictures()) == 3


def test_large_photos_stay_a_small_page() -> None:
    assert len(verify_report(REPORT, [example(224, 3, seed) for seed in range(MOST)])) < 500_000


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium")
@pytest.mark.parametrize(("width", "scheme"), [(390, "light"), (1280, "dark")])
def test_in_chromium(width: int, scheme: str, tmp_path: Path) -> None:
    """Colours follow the scheme, the charts are drawn, and nothing but a table is wider than the window."""
    path, picture = tmp_path / "page.html", tmp_path / "page.png"
    content = verify_report(REPORT, [example()]).decode()
    path.write_text(content)
    dark = ["--force-dark-mode", "--blink-settings=preferredColorScheme=0"] if scheme == "dark" else []

    def chromium(*arguments: str) -> str:
        start = [str(CHROMIUM), "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"]
        profile = [f"--user-data-dir={tmp_path / 'profile'}", f"--window-size={width},6000", *dark]
        return subprocess.run(
            [*start, *profile, *arguments], capture_output=True, text=True, check=True, timeout=60
        ).stdout

    chromium(f"--screenshot={picture}", path.as_uri())
    pixels = np.asarray(Image.open(picture).convert("RGB"))
    assert pixels.shape[1] == width
    colours = DARK if scheme == "dark" else LIGHT
    for name, least in {"page": 100_000, "fail": 2000, "line-1": 500, "card": 2000}.items():
        rgb = [int(colours[name][i : i + 2], 16) for i in (1, 3, 5)]
        assert np.count_nonzero((pixels == rgb).all(-1)) > least, name
    measured = '<script>document.title = document.documentElement.scrollWidth + " of " + innerWidth</script></body>'
    path.write_text(re.sub(r"<meta http-equiv[^>]+>", "", content).replace("</body>", measured))
    found = re.search(r"<title>(\d+) of (\d+)</title>", chromium("--dump-dom", path.as_uri()))
    assert found is not None
    assert int(found[1]) <= int(found[2])


def test_verify_json_as_it_is_written_can_be_shown() -> None:
    assert verify_report(json.loads(json.dumps(REPORT))) == verify_report(REPORT)
