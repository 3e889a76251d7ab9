"""The main job by the command line, from model.pt to a verdict, and the controls that the verdict must fail."""

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
import yaml
from conftest import Cli, Outcome, environment_without, run_atmc
from onnx import numpy_helper
from safetensors.torch import load_file

from atmc_tool.attacks.classifier import Loss
from atmc_tool.data import load_data
from atmc_tool.models import ARCHITECTURES
from atmc_tool.torch_classifier import TorchClassifier
from evaluators.classifier import OrtClassifier, decoded_weights, read_onnx
from exporters.atmc_file import encode_model, read_atmc

pytestmark = pytest.mark.xdist_group("digits_run")

DECODERS = {"Gather", "CumSum", "ScatterElements", "BitShift", "MatMul", "MatMulInteger", "Cast", "Where", "Slice"}


@pytest.fixture
def run(digits_run: Path, tmp_path: Path) -> Path:
    """A copy of `digits_run` to change."""
    shutil.copytree(digits_run, tmp_path, dirs_exist_ok=True)
    return tmp_path


def verdict(cli: Cli, folder: Path, options: str = "") -> tuple[int, dict[str, str]]:
    """Exit code of `verify`, and check → status."""
    done = cli(f"verify --json {options}", folder)
    assert done.code in (0, 5), done.err
    report = json.loads(done.out)
    assert report == json.loads((folder / "atmc-run" / "verify.json").read_text())
    assert report["verdict"]["passed"] == (done.code == 0)
    return done.code, {check["name"]: check["status"] for check in report["verdict"]["checks"]}


def test_the_bare_command_verifies_what_the_run_knows(run: Path) -> None:
    done = run_atmc("verify", run)
    assert done.code == 0, done.err
    report = json.loads((run / "atmc-run" / "verify.json").read_text())
    assert report["threat_model"] == {"norm": "linf", "eps": "0.1", "box": [0, 1]}
    assert report["data"]["name"] == "digits"
    assert report["clean"]["accuracy"] == pytest.approx(report["recorded"]["clean_accuracy"], abs=0.01)
    assert report["attacks"][0]["accuracy"] == pytest.approx(report["recorded"]["robust_accuracy"], abs=0.02)
    assert report["artefact"]["bytes"] == (run / "atmc-run" / "model.onnx").stat().st_size
    assert re.search(r"verdict: PASSED: robust accuracy 0\.\d+ \(linf, eps 0\.1\), smoke test only", done.out)
    assert "Traceback" not in done.err


@pytest.mark.parametrize("line", ["verify", "export --onnx --overwrite", "unpack", "inspect atmc-run"])
def test_without_torch_installed(line: str, run: Path) -> None:
    environment = environment_without(("torch", "functorch"), run / "site")
    failed = run_atmc("train --arch lenet --data digits --objective natural -o x.pt", run, environment)
    assert failed.code == 3
    assert "the package torch is not installed" in failed.error
    done = run_atmc(line, run, environment)
    assert done.code == 0, done.err


def test_size_and_constraints_of_what_ships(run: Path) -> None:
    model = read_atmc(run / "atmc-run" / "model.atmc")
    factors = [factor for weight in model.weights.values() for factor in weight.factors.values()]
    assert sum(np.count_nonzero(factor.values) for factor in factors) <= 0.05 * 52_768
    assert all(len(np.unique(factor.values)) <= 16 for factor in factors)
    assert (run / "atmc-run" / "model.atmc").stat().st_size < 16_000
    assert (run / "atmc-run" / "model.onnx").stat().st_size < 24_000


def test_onnx_dense_and_compressed_are_one_network(run: Path, cli: Cli) -> None:
    assert cli("unpack", run).code == 0
    network = ARCHITECTURES["digits-cnn"].build()
    network.load_state_dict(load_file(run / "atmc-run" / "model.safetensors"))
    images = load_data("digits").test.floats()[:64]
    session = onnxruntime.InferenceSession(run / "atmc-run" / "model.onnx", providers=["CPUExecutionProvider"])
    with torch.no_grad():
        expected = network.eval()(torch.from_numpy(images)).numpy()
    np.testing.assert_allclose(session.run(["logits"], {"input": images})[0], expected, atol=1e-4)
    facts = json.loads(cli("inspect atmc-run/model.onnx --json", run).out)
    assert not DECODERS & facts["operators_after_optimisation"].keys()


def test_the_dense_format_is_the_same_network_and_passes_verify(run: Path, cli: Cli) -> None:
    compact, path = (run / "atmc-run" / name for name in ("model.onnx", "dense.onnx"))
    assert cli(f"export --onnx --format dense -o {path}", run).code == 0
    assert not onnx.load_model(path).functions
    images = load_data("digits").test.floats()[:64]
    logits = [
        onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"]).run(["logits"], {"input": images})[0]
        for file in (compact, path)
    ]
    np.testing.assert_array_equal(*logits)
    path.replace(compact)
    code, checks = verdict(cli, run)
    assert code == 0
    assert checks["weight-parity"] == "passed"


def edit_onnx(path: Path, names: set[str], change: Any) -> None:
    """Apply `change` to the initialisers of `names`."""
    model = onnx.load_model(path)
    changed = 0
    for tensor in model.graph.initializer:
        if tensor.name in names:
            tensor.CopyFrom(numpy_helper.from_array(change(numpy_helper.to_array(tensor)), tensor.name))
            changed += 1
    assert changed == len(names)
    onnx.save_model(model, path)


def test_a_changed_codebook_value_fails_parity(run: Path, cli: Cli) -> None:
    path = run / "atmc-run" / "model.atmc"
    model = read_atmc(path)
    weight = model.weights["fc1.weight"]
    factor = weight.factors["V"]
    assert factor.codebook is not None
    assert factor.codes is not None
    codebook = factor.codebook.copy()
    codebook[-1] *= np.float32(1.001)
    changed = replace(factor, codebook=codebook, values=codebook[factor.codes])
    weights = {**model.weights, "fc1.weight": replace(weight, factors={"V": changed})}
    path.write_bytes(encode_model(replace(model, weights=weights)))
    code, checks = verdict(cli, run)
    assert code == 5
    failed = {name for name, status in checks.items() if status == "failed"}
    assert failed - {"same-logits"} == {"source", "weight-parity"}  # its logits are the other file's too


def test_a_changed_initialiser_fails_parity_alone(run: Path, cli: Cli) -> None:
    edit_onnx(run / "atmc-run" / "model.onnx", {"fc2.bias"}, lambda bias: np.nextafter(bias, np.float32(9)))
    code, checks = verdict(cli, run)
    assert code == 5
    assert {name for name, status in checks.items() if status == "failed"} == {"weight-parity"}


def test_zeroed_biases_fail_on_accuracy_also_without_the_model(run: Path, cli: Cli) -> None:
    path = run / "atmc-run" / "model.onnx"
    model = onnx.load_model(path)
    for name, bias in decoded_weights(model, [f"{layer}.bias" for layer in ("conv1", "conv2", "fc1", "fc2")]).items():
        model.graph.initializer.append(numpy_helper.from_array(np.zeros_like(bias), f"no {name}"))
        for node in model.graph.node:
            node.input[:] = [f"no {name}" if value == name else value for value in node.input]
    onnx.save_model(model, path)
    (run / "atmc-run" / "model.atmc").unlink()
    code, checks = verdict(cli, run)
    assert code == 5
    assert checks["weight-parity"] == "not applied"
    assert "failed" in (checks["clean-drop"], checks["robust-drop"])


def test_ten_times_eps_fails_on_robustness(run: Path, cli: Cli) -> None:
    assert verdict(cli, run, "--min-robust 0.2")[0] == 0
    code, checks = verdict(cli, run, "--eps 1.0 --min-robust 0.2")
    assert code == 5
    assert checks["min-robust"] == "failed"


def test_thresholds_of_the_policy(run: Path, cli: Cli) -> None:
    options = {"--min-clean": ("0.5", "0.999", "min-clean"), "--max-bytes": ("24KB", "1KB", "max-bytes")}
    for option, (met, missed, check) in options.items():
        assert verdict(cli, run, f"{option} {met}")[1][check] == "passed"
        code, checks = verdict(cli, run, f"{option} {missed}")
        assert (code, checks[check]) == (5, "failed")
    with (run / "atmc.yaml").open("a") as file:
        file.write("policy: {max_bytes: 1000}\n")
    failed = cli("verify", run)
    assert failed.code == 5
    assert failed.err.splitlines()[-1].startswith("error: gate failed: max-bytes: ")
    assert "verdict: FAILED (max-bytes)" in failed.out


def test_a_lone_file_is_verified_by_what_it_states(run: Path, cli: Cli) -> None:
    (run / "lone").mkdir()
    (run / "atmc-run" / "model.onnx").rename(run / "lone" / "small.onnx")
    (run / "atmc-run" / "model.atmc").unlink()
    done = cli("verify lone/small.onnx -o report --json", run)
    assert done.code == 0, done.err
    assert (run / "report" / "small.verify.json").exists()
    statuses = {check["name"]: check["status"] for check in json.loads(done.out)["verdict"]["checks"]}
    assert statuses["clean-drop"] == statuses["robust-drop"] == "passed"
    assert statuses["source"] == statuses["weight-parity"] == "not applied"


@pytest.mark.parametrize("name", ["model.atmc", "model.onnx"])
@pytest.mark.parametrize("damage", ["empty", "truncated", "flipped"])
def test_a_damaged_artefact(name: str, damage: str, run: Path, cli: Cli) -> None:
    path = run / "atmc-run" / name
    content = bytearray(path.read_bytes())
    content[20 if name == "model.onnx" else len(content) // 2] ^= 4
    path.write_bytes({"empty": b"", "truncated": content[: len(content) * 2 // 3], "flipped": content}[damage])
    lines = [f"inspect atmc-run/{name}", "verify", *(["unpack"] if name == "model.atmc" else [])]
    for line in lines:
        failed = cli(line, run)
        assert failed.code == 4, (line, failed.err)
        assert name in failed.error
    assert not (run / "atmc-run" / "verify.json").exists()
    assert not (run / "atmc-run" / "model.safetensors").exists()


@pytest.mark.parametrize(("key", "value"), [("card", "{"), ("card", "[]"), ("metrics", "{"), ("metrics", "[1]")])
def test_damaged_statements_of_an_onnx_file(key: str, value: str, run: Path, cli: Cli) -> None:
    path = run / "atmc-run" / "model.onnx"
    model = onnx.load_model(path)
    for entry in model.metadata_props:
        if entry.key == f"atmc_tool.{key}":
            entry.value = value
    onnx.save_model(model, path)
    failed = cli("verify", run)
    assert failed.code == 4
    assert f"{key} in atmc-run/model.onnx" in failed.error.replace("model card", "card")


def test_images_of_another_shape(run: Path, cli: Cli) -> None:
    zeros = {f"x_{part}": np.zeros((20, 9, 9), np.uint8) for part in ("train", "test")}
    labels = {f"y_{part}": np.arange(20) % 10 for part in ("train", "test")}
    np.savez(run / "other.npz", **zeros, **labels)
    failed = cli("verify --data other.npz", run)
    assert failed.code == 4
    assert "expected (n, 1, 8, 8), n ≥ 1, got (20, 1, 9, 9)" in failed.error


def test_a_cuda_provider_that_is_not_there(run: Path, cli: Cli) -> None:
    providers = json.loads(cli("doctor --json", run).out)["onnxruntime_providers"]
    if providers["cuda"] == "works":
        pytest.skip("there is a CUDA device")
    failed = cli("verify --provider cuda", run)
    assert failed.code == 3
    assert "CUDA" in failed.error


@pytest.mark.parametrize("loss", ["cross_entropy", "margin"])
def test_the_gradient_of_the_file_is_that_of_torch(loss: Loss, run: Path, cli: Cli) -> None:
    assert cli("unpack", run).code == 0
    state = load_file(run / "atmc-run" / "model.safetensors")
    network = ARCHITECTURES["digits-cnn"].build().eval()
    subset = load_data("digits").test.take(np.arange(64))
    images, labels = subset.floats(), subset.labels
    expected = TorchClassifier(network, state, (0.0,), (1.0,)).logits_and_gradient(
        torch.from_numpy(images), torch.from_numpy(labels), loss
    )[1]
    got = OrtClassifier(read_onnx(run / "atmc-run" / "model.onnx")).logits_and_gradient(images, labels, loss)[1]
    assert np.linalg.norm(got - expected.numpy()) <= 1e-4 * np.linalg.norm(expected.numpy())


@pytest.mark.slow
def test_a_checkpoint_of_others_goes_all_the_way(data_dir: Path, tmp_path: Path) -> None:
    """ResNet-20 for CIFAR-10 as others trained and saved it, without a word about its architecture."""
    checkpoint = data_dir.parent / "models" / "resnet20-cifar10.th"
    if not checkpoint.exists():
        pytest.skip(f"{checkpoint} is not there")
    short = "--set data.limit=2000 --set attack.steps=2 --set evaluation.n=64 --set evaluation.square_queries=10"
    done = run_atmc(f"compress {checkpoint} --data cifar10-jpeg --eps 2/255 --max-steps 4 {short} --json", tmp_path)
    assert done.code == 0, done.err
    report = json.loads(done.out)
    assert report["metrics"]["dense"]["clean_accuracy"] > 0.6  # the weights were read, the normalisation is right
    assert report["kept"]["total"] <= 0.05 * 268_336
    assert run_atmc("export --onnx", tmp_path).code == 0
    done = run_atmc("verify --set data.limit=2000 --json", tmp_path)
    assert done.code in (0, 5), done.err
    statuses = {check["name"]: check["status"] for check in json.loads(done.out)["verdict"]["checks"]}
    assert statuses["weight-parity"] == statuses["white-box"] == statuses["clean-drop"] == "passed"


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("export model.pt --onnx", "model.pt is a trained network"),
        ("verify atmc-run/model.atmc", "model.atmc is a compressed network"),
        ("verify model.pt", "model.pt is a trained network"),
    ],
)
def test_a_file_of_the_wrong_kind_is_named_as_what_it_is(line: str, message: str, run: Path, cli: Cli) -> None:
    failed = cli(line, run)
    assert failed.code == 4
    assert message in failed.error
    assert "comes first" in failed.error


def test_another_eps_is_not_judged_by_numbers_of_the_recorded_one(run: Path, cli: Cli) -> None:
    code, checks = verdict(cli, run, "--eps 0.3")
    assert code == 5
    assert checks["robustness-judged"] == "failed"


def test_the_run_remembers_where_its_data_lie(digits_run: Path, tmp_path: Path, cli: Cli) -> None:
    digits = load_data("digits")
    arrays = {
        f"{axis}_{part}": values
        for part, images in (("train", digits.train), ("test", digits.test))
        for axis, values in (("x", images.images), ("y", images.labels))
    }
    (tmp_path / "elsewhere").mkdir()
    np.savez(tmp_path / "elsewhere" / "mine.npz", **arrays)
    shutil.copy(digits_run / "model.pt", tmp_path)
    short = "--max-steps 2 --set evaluation.n=20 --set evaluation.steps=1 --set evaluation.square_queries=0"
    assert cli(f"compress model.pt --data mine.npz --data-dir elsewhere {short}", tmp_path).code == 0
    assert cli("export --onnx", tmp_path).code == 0
    assert cli("verify", tmp_path).code in (0, 5)


def test_who_names_the_data_is_told_where_another_run_found_its_own(digits_run: Path, tmp_path: Path, cli: Cli) -> None:
    """A folder in a stranger's config.yaml decides nothing, yet it may be the user's own."""
    shutil.copytree(digits_run, tmp_path, dirs_exist_ok=True)
    (tmp_path / "atmc-run").rename(tmp_path / "theirs")
    (tmp_path / "atmc.yaml").unlink()
    digits = load_data("digits")
    arrays = {"x_train": digits.train.images, "y_train": digits.train.labels}
    arrays |= {"x_test": digits.test.images, "y_test": digits.test.labels}
    for name in ("own", "easy"):
        (tmp_path / name).mkdir()
        np.savez(tmp_path / name / "mine.npz", **arrays)
        arrays["x_test"] = arrays["x_test"][:10] * 0
        arrays["y_test"] = arrays["y_test"][:10]
    config = yaml.safe_load((tmp_path / "theirs" / "config.yaml").read_text())
    config["data"] |= {"name": "mine.npz", "dir": "easy"}
    (tmp_path / "theirs" / "config.yaml").write_text(yaml.safe_dump(config))
    short = "-n 40 --steps 1 --restarts 1 --set evaluation.square_queries=0 --json"

    def digest(done: Outcome) -> str:
        assert done.code in (0, 5), done.err
        found: str = json.loads(done.out)["data"]["sha256"]
        return found

    lost = cli(f"verify theirs {short} --data mine.npz", tmp_path)
    assert lost.code == 4
    assert "theirs says that it found its data in easy; yours are not looked for there" in lost.err
    named = cli(f"verify theirs {short} --data mine.npz --data-dir own", tmp_path)
    assert "found its data" not in named.err
    (tmp_path / "atmc.yaml").write_text("data: {name: mine.npz, dir: own}\n")
    assert digest(cli(f"verify theirs {short}", tmp_path)) == digest(named)
    assert digest(cli(f"verify theirs {short} --data-dir easy", tmp_path)) != digest(named)
