"""`verify` by the command line: policy file, baseline, outputs for pipelines. The verdicts: test_end_to_end.py."""

import json
import shutil
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from conftest import Cli
from onnx import numpy_helper

from evaluators.gate import CHECKS

pytestmark = pytest.mark.xdist_group("digits_run")


@pytest.fixture
def run(digits_run: Path, tmp_path: Path) -> Path:
    """A copy of `digits_run` to change."""
    shutil.copytree(digits_run, tmp_path, dirs_exist_ok=True)
    return tmp_path


def verdict(cli: Cli, folder: Path, options: str = "") -> tuple[dict[str, Any], dict[str, str]]:
    """The report, and check → status."""
    done = cli(f"verify --json {options}", folder)
    assert done.code in (0, 5), done.err
    report = json.loads(done.out)
    return report, {check["name"]: check["status"] for check in report["verdict"]["checks"]}


def write(folder: Path, text: str) -> str:
    (folder / "policy.yaml").write_text(text)
    return "--policy policy.yaml"


def test_a_report_has_what_readers_need(run: Path, cli: Cli) -> None:
    report, checks = verdict(cli, run)
    assert set(checks) == set(CHECKS)
    assert checks["metadata"] == checks["same-logits"] == checks["held-out"] == checks["normalisation"] == "passed"
    curve = report["eps_curve"]
    assert [point["eps"] for point in curve] == pytest.approx([0, 0.025, 0.05, 0.1, 0.2])
    assert curve[0]["accuracy"] == report["clean"]["accuracy"]
    assert sum(row["n"] for row in report["classes"]) == report["clean"]["n"]
    clean = sum(row["n"] * row["clean"] for row in report["classes"])
    assert clean == pytest.approx(report["clean"]["correct"])
    assert report["sizes"]["model.atmc"] == (run / "atmc-run" / "model.atmc").stat().st_size
    assert report["sizes"]["model.onnx"] == report["artefact"]["bytes"]
    assert report["sizes"]["dense"] > report["sizes"]["gzip of the pruned dense weights"] > report["sizes"]["nominal"]
    assert sum(layer["total"] for layer in report["layers"]) == 52_768
    assert report["provenance"]["onnxruntime"]
    assert report["baseline"] is None


def test_a_policy_file_takes_the_place_of_other_policies(run: Path, cli: Cli) -> None:
    with (run / "atmc.yaml").open("a") as file:
        file.write("policy: {min_clean: 0.999, allow_black_box: true}\n")
    assert verdict(cli, run)[1]["min-clean"] == "failed"
    option = write(run, "max_bytes: 24KB\nmin_robust: 0.9\n")
    report, checks = verdict(cli, run, option)
    assert (checks["min-clean"], checks["max-bytes"], checks["min-robust"]) == ("not applied", "passed", "failed")
    assert report["policy"]["allow_black_box"] is False
    assert verdict(cli, run, f"{option} --min-robust 0.1")[1]["min-robust"] == "passed"


def test_a_policy_file_can_ask_for_checks_and_images(run: Path, cli: Cli) -> None:
    option = write(run, "required: [source, weight-parity, min-robust]\ngrade: release\nmin_steps: 6\n")
    report, checks = verdict(cli, run, option)
    failed = {check["name"]: check["reason"] for check in report["verdict"]["checks"] if check["status"] == "failed"}
    assert set(failed) == {"required", "sample-size", "attack-budget"}
    assert failed["required"] == "required and not passed: min-robust (not applied)"
    assert checks["source"] == "passed"


@pytest.mark.parametrize(
    ("text", "code", "words"),
    [
        ("min_robst: 0.5\n", 2, "policy.yaml: unknown configuration key min_robst. Hint: did you mean min_robust?"),
        ("required: [sources]\n", 2, "policy.yaml: required: unknown check 'sources'. Hint: did you mean source?"),
        ("min_robust: high\n", 2, "policy.yaml: min_robust"),
        ("- min_robust\n", 4, "policy.yaml holds no settings"),
        ("min_robust: [\n", 4, "policy.yaml is not valid YAML"),
        (None, 4, "policy.yaml"),
    ],
)
def test_a_policy_file_that_is_wrong(text: str | None, code: int, words: str, run: Path, cli: Cli) -> None:
    if text is not None:
        (run / "policy.yaml").write_text(text)
    failed = cli("verify --policy policy.yaml", run)
    assert failed.code == code
    assert words in failed.error
    assert not (run / "atmc-run" / "verify.json").exists()


def test_the_baseline_is_a_network_or_an_earlier_report(run: Path, cli: Cli) -> None:
    dense, shipped = run / "dense.onnx", run / "atmc-run" / "model.onnx"
    shutil.copy(shipped, dense)
    model = onnx.load_model(shipped)
    for tensor in model.graph.initializer:
        if tensor.name == "fc2.bias":
            bias = numpy_helper.to_array(tensor)
            tensor.CopyFrom(numpy_helper.from_array(bias - 9 * np.eye(10, dtype=np.float32)[3], tensor.name))
    onnx.save_model(model, shipped)
    assert cli("verify dense.onnx -o report", run).code == 0
    margins = write(run, "max_clean_loss: 0.02\nmax_robust_loss: 0.02\n")
    reports = []
    for baseline in ("dense.onnx", "report/dense.verify.json"):
        report, checks = verdict(cli, run, f"{margins} --baseline {baseline}")
        assert (checks["clean-loss"], checks["robust-loss"]) == ("failed", "failed")
        reports.append(report["baseline"])
    assert reports[0]["clean_paired"]["lost"] > 10
    for key in ("clean", "robust", "clean_paired", "robust_paired"):
        assert reports[0][key] == reports[1][key]
    assert verdict(cli, run, "--baseline dense.onnx")[1]["clean-loss"] == "not applied"
    assert verdict(cli, run, margins)[1]["clean-loss"] == "failed"


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("b.txt", "x", "b.txt is no baseline"),
        ("b.json", "{", "b.json is damaged"),
        ("b.json", "[]", "b.json is no report of verify"),
        ("b.onnx", "x", "b.onnx is not an ONNX file"),
        (None, None, "b.json"),
    ],
)
def test_a_baseline_that_is_wrong(name: str | None, content: str, words: str, run: Path, cli: Cli) -> None:
    if name is not None:
        (run / name).write_text(content)
    failed = cli(f"verify --baseline {name or 'b.json'}", run)
    assert failed.code == 4
    assert words in failed.error


def test_outputs_for_pipelines(run: Path, cli: Cli) -> None:
    done = cli("verify --junit out.xml --markdown out.md --max-bytes 10", run)
    assert done.code == 5
    root = ElementTree.fromstring((run / "out.xml").read_bytes())
    assert root.get("failures") == "1"
    assert (run / "out.md").read_text().startswith("## atmc-run/model.onnx: FAILED\n")
    shown = cli("verify --markdown - --max-bytes 10", run)
    assert shown.out == (run / "out.md").read_text()
    assert "--json and --markdown - both write to stdout" in cli("verify --json --markdown -", run).error


@pytest.mark.parametrize(
    "options",
    [
        "--cyclonedx atmc-run/model.onnx",
        "--junit atmc-run/model.atmc",
        "--markdown ./atmc-run/../atmc-run/verify.json",
        "--markdown atmc-run/manifest.sha256",
        "--junit out --cyclonedx out",
        "--junit atmc-run",
        "--junit atmc.yaml/out.xml",
        "-o atmc.yaml",
        "--surrogate dense.onnx --markdown dense.onnx",
        "--baseline earlier.json --junit earlier.json",
        "-o report --junit atmc-run/verify.json",
    ],
)
def test_reports_replace_no_other_file(options: str, run: Path, cli: Cli) -> None:
    for name in ("dense.onnx", "earlier.json", "atmc-run/verify.json", "atmc-run/manifest.sha256"):
        (run / name).write_text("x")
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    failed = cli(f"verify {options}", run)
    assert failed.code == 2
    assert "can't be written to" in failed.error
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before


def test_no_earlier_verdict_stands_while_there_is_no_new_one(run: Path, cli: Cli) -> None:
    """But for the report to compare with, which stands until the new one takes its place."""
    options = "-n 60 --min-robust 0.01 --junit out.xml --cyclonedx out.cdx.json --markdown out.md"
    assert cli(f"verify {options}", run).code == 0
    reports = [run / "atmc-run" / name for name in ("verify.json", "verify.html", "manifest.sha256")]
    reports += [run / name for name in ("out.xml", "out.cdx.json", "out.md")]
    assert all(path.is_file() for path in reports)
    earlier = reports[0].resolve()
    compared = json.loads(cli(f"verify -n 60 --baseline {earlier} --json", run).out)
    assert compared["baseline"]["clean_paired"]["lost"] == 0
    assert cli(f"verify {options} --baseline {earlier} --undefended missing.onnx", run).code == 4
    assert [path for path in reports if path.exists()] == reports[:1]
    assert cli(f"verify {options} --undefended missing.onnx", run).code == 4
    assert not any(path.exists() for path in reports)


def test_every_file_has_a_report_of_its_own(run: Path, cli: Cli) -> None:
    shutil.copy(run / "atmc-run" / "model.onnx", run / "atmc-run" / "model.int8.onnx")
    assert cli("verify", run).code == 0
    before = (run / "atmc-run" / "verify.json").read_bytes()
    assert cli("verify atmc-run/model.int8.onnx --max-bytes 10", run).code == 5
    assert (run / "atmc-run" / "verify.json").read_bytes() == before
    report = json.loads((run / "atmc-run" / "model.int8.verify.json").read_text())
    assert report["artefact"]["name"] == "atmc-run/model.int8.onnx"


def test_statements_that_were_changed_are_found(run: Path, cli: Cli) -> None:
    path = run / "atmc-run" / "model.onnx"
    model = onnx.load_model(path)
    for entry in model.metadata_props:
        if entry.key == "atmc_tool.metrics":
            metrics = json.loads(entry.value)
            metrics["compressed"]["robust_accuracy"] = 0.1
            entry.value = json.dumps(metrics)
    onnx.save_model(model, path)
    _, checks = verdict(cli, run)
    assert {name for name, status in checks.items() if status == "failed"} == {"metadata"}


def test_a_graph_around_the_same_weights_is_found(run: Path, cli: Cli) -> None:
    path = run / "atmc-run" / "model.onnx"
    model = onnx.load_model(path)
    name = model.graph.output[0].name
    (last,) = (node for node in model.graph.node if name in node.output)
    last.output[0] = "unscaled"
    model.graph.initializer.append(numpy_helper.from_array(np.float32(1000), "thousand"))
    model.graph.node.append(onnx.helper.make_node("Mul", ["unscaled", "thousand"], [name]))
    onnx.save_model(model, path)
    _, checks = verdict(cli, run)
    assert checks["weight-parity"] == checks["source"] == "passed"
    assert checks["same-logits"] == checks["gradients"] == "failed"


def test_test_images_that_were_trained_on_are_found(run: Path, cli: Cli) -> None:
    from atmc_tool.data import load_data

    digits = load_data("digits")
    train, labels = digits.train.images[:400], digits.train.labels[:400]
    np.savez(run / "leaky.npz", x_train=train, y_train=labels, x_test=train[:200], y_test=labels[:200])
    report, checks = verdict(cli, run, "--data leaky.npz --min-robust 0.1")
    assert checks["held-out"] == "failed"
    assert "100.00%" in next(c["reason"] for c in report["verdict"]["checks"] if c["name"] == "held-out")


def test_few_images_are_called_a_smoke_test(run: Path, cli: Cli) -> None:
    done = cli("verify -n 100 --min-robust 0.01", run)
    assert "smoke test only: fewer than 512 images" in done.out
    report = json.loads((run / "atmc-run" / "verify.json").read_text())
    reasons = {check["name"]: check["reason"] for check in report["verdict"]["checks"]}
    assert reasons["sample-size"] == "n 100, no least number is set: below 512 it is a smoke test"


def test_a_trained_network_is_named_as_what_it_is(run: Path, cli: Cli) -> None:
    (run / "net.safetensors").write_bytes(b"x")
    for name in ("net.safetensors", "model.pt", "atmc-run/model.atmc"):
        failed = cli(f"verify {name}", run)
        assert failed.code == 4
        assert "expected model.onnx" in failed.error


def test_a_network_without_a_defence_and_further_providers(run: Path, cli: Cli) -> None:
    shipped = "atmc-run/model.onnx"
    report, checks = verdict(cli, run, f"--provider cpu --provider auto --undefended {shipped} -n 60")
    cpu_alone = "CUDAExecutionProvider" not in ort.get_available_providers()
    assert checks["providers"] == "not applied" or not cpu_alone  # auto is then cpu
    found = {check["name"]: check for check in report["verdict"]["checks"]}
    fallen = found["undefended"]["evidence"]["network"]
    assert fallen["file"] == shipped
    assert checks["undefended"] == (
        "passed" if fallen["robust"]["clopper_pearson_95"][0] <= fallen["chance"] else "failed"
    )
    (run / "bad.onnx").write_text("x")
    failed = cli("verify --undefended bad.onnx", run)
    assert failed.code == 4
    assert "bad.onnx is not an ONNX file" in failed.error


def test_a_file_without_a_gradient_is_attacked_by_a_surrogate(run: Path, cli: Cli) -> None:
    shipped, honest = run / "atmc-run" / "model.onnx", run / "honest.onnx"
    shutil.copy(shipped, honest)
    model = onnx.load_model(shipped)
    graph = model.graph
    name = graph.output[0].name
    for node in graph.node:
        node.output[:] = [f"{name}.plain" if output == name else output for output in node.output]
    graph.initializer.append(numpy_helper.from_array(np.float32(0), "nothing"))
    graph.node.extend(
        [
            onnx.helper.make_node("Sin", [f"{name}.plain"], ["wave"], name="the sine"),
            onnx.helper.make_node("Mul", ["wave", "nothing"], ["flat"]),
            onnx.helper.make_node("Add", [f"{name}.plain", "flat"], [name]),
        ]
    )
    onnx.save_model(model, shipped)
    options = "-n 60 --surrogate honest.onnx"
    report, checks = verdict(cli, run, options)
    assert checks["white-box"] == "failed"
    reason = next(check["reason"] for check in report["verdict"]["checks"] if check["name"] == "white-box")
    assert "operator Sin (node 'the sine'" in reason
    assert [attack["name"].startswith("transfer, ") for attack in report["attacks"]] == [True, True, True, False]
    assert report["robust"] is None
    allowed, checks = verdict(cli, run, f"{options} {write(run, 'allow_black_box: true')}")
    assert checks["white-box"] == "warning"
    plain, _ = verdict(cli, run, "honest.onnx -n 60 -o report")
    assert allowed["robust"]["correct"] == plain["robust"]["correct"] < allowed["clean"]["correct"]
