"""Every bad input is one line on stderr, its exit code, and nothing half-written."""

import os
import pickle
import resource
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import Cli, environment_without, run_atmc

from atmc_tool.model_card import ModelCard
from atmc_tool.models import ARCHITECTURES
from atmc_tool.models.writing import write_model

SHORT = "--max-steps 2 --set attack.steps=1 --set evaluation.n=20 --set evaluation.steps=1"


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with an untrained digits-cnn as model.pt and model.safetensors, card and all."""
    folder = tmp_path_factory.mktemp("models")
    card = ModelCard(arch="digits-cnn", image_shape=(1, 8, 8), n_classes=10, data="digits", eps="0.1")
    torch.manual_seed(0)
    state = ARCHITECTURES["digits-cnn"].build().state_dict()
    for name in ("model.pt", "model.safetensors"):
        write_model(folder / name, state, card)
    return folder


@pytest.fixture
def folder(models: Path, tmp_path: Path) -> Path:
    """A copy of `models`."""
    shutil.copytree(models, tmp_path, dirs_exist_ok=True)
    return tmp_path


def listing(folder: Path) -> dict[str, bytes | None]:
    """Every path below `folder`, with the content of files."""
    return {str(path): path.read_bytes() if path.is_file() else None for path in folder.rglob("*")}


@pytest.mark.parametrize(
    ("line", "code", "message"),
    [
        ("compress missing.pt", 4, "missing.pt is not there"),
        ("inspect missing.atmc", 4, "can't read missing.atmc: No such file or directory"),
        ("inspect model.txt", 4, "can't read model.txt"),
        ("export --onnx", 4, "atmc-run/model.atmc is not there. Hint: make it with 'atmc-tool compress model.pt'"),
        ("verify", 4, "atmc-run/model.onnx is not there. Hint: make it with 'atmc-tool export --onnx'"),
        ("compress model.pt --arch lenet", 4, "the weights do not fit"),
        ("compress model.pt --arch digits-cn", 2, "did you mean digits-cnn?"),
        ("compress model.pt --arch nothing.py:build", 4, "no such file: nothing.py"),
        ("compress model.pt --data digit", 2, "did you mean digits?"),
        ("compress model.pt --data nothing.npz", 4, "no such file or folder: nothing.npz"),
        ("train -o new.pt --eps 0.1 --arch digits-cnn", 2, "which data set?: expected --data digits, mnist"),
        ("train -o new.pt --data digits --arch digits-cnn", 2, "which threat model?: expected --eps such as 8/255"),
        ("train -o new.pt --data digits --eps 0.1", 2, "digits-cnn fits digits"),
        ("train -o new.pt --data digits --eps 0.1 --arch lenet", 4, "lenet is not made for the images of digits"),
        ("train --data digits --eps 0.1 --arch digits-cnn -o model.bin", 2, "can't write a network to model.bin"),
        ("compress model.pt --eps 8", 2, "write 8/255 for 8 grey levels"),
        ("compress model.pt --eps 0", 2, "eps is out of range"),
        ("compress model.pt --eps -1", 2, "eps is out of range"),
        ("compress model.pt --eps abc", 2, "eps is not a number"),
        ("verify --eps 8/0", 2, "eps divides by zero"),
        ("compress model.pt --keep 0", 2, "'--keep': 0.0 is not in the range"),
        ("compress model.pt --keep 1.5", 2, "'--keep': 1.5 is not in the range"),
        ("compress model.pt --bits 0", 2, "'--bits': '0' is not one of"),
        ("compress model.pt --bits 9", 2, "'--bits': '9' is not one of"),
        ("compress model.pt --size big", 2, "expected 20KB, 1.5MiB or 20x"),
        ("compress model.pt --time-limit soon", 2, "expected 90s, 30m or 1.5h"),
        ("compress model.pt --keep 0.1 --size 20KB", 2, "give one of keep, size, nominal_size and strategy"),
        ("compress model.pt --keep 0.00001", 6, "the budget can't be met: expected keep of at least 7.6e-05"),
        ("compress model.pt --size 100B", 6, "the budget can't be met: expected at least"),
        ("compress model.pt --device cuda:99", 3, "device cuda:99 is not there"),
        ("compress model.pt --device tpu", 3, "unknown device"),
        ("compress model.pt --set precision=fp32", 2, "key precision. Hint: did you mean compute.precision?"),
        ("compress model.pt --set compress.kep=0.1", 2, "key compress.kep. Hint: did you mean compress.keep?"),
        ("compress model.pt --set compress.bits=9", 2, "compress.bits"),
        ("compress model.pt --set compress.keep=2", 2, "compress.keep: expected at most 1, got 2"),
        ("compress model.pt --set data=5", 2, "data: expected a mapping of keys, got 5"),
        ("compress model.pt --set data=5 --set data.name=3", 2, "data both a value and keys of its own"),
        ("compress model.pt --set compress.layers.fc2.weight=2", 2, "compress.layers.fc2.weight: expected at most 1"),
        ("compress model.pt --set nonsense", 2, "expected key=value"),
        ("compress model.pt --preset mnits", 2, "unknown preset"),
        ("compress model.pt -c nothing.yaml", 4, "can't read nothing.yaml"),
        ("compress model.pt --resume", 2, "nothing to resume in atmc-run"),
        ("compress model.pt --resume --overwrite", 2, "--resume and --overwrite exclude each other"),
        ("compress model.pt -o model.pt", 2, "model.pt is not a folder"),
        ("unpack -o model.x", 2, "can't unpack to model.x: expected .safetensors or .pt, got .x"),
        ("export --onnx -o model.pt", 2, "-o is no ONNX file: expected a name that ends in .onnx, got model.pt"),
        ("export --int8 --format dense", 2, "--format is of the ONNX file: expected --onnx with it"),
    ],
)  # fmt: skip
def test_what_can_not_be(line: str, code: int, message: str, cli: Cli, folder: Path) -> None:
    before = listing(folder)
    failed = cli(line, folder)
    assert failed.code == code, failed.err
    assert message in failed.error
    assert failed.out == ""
    assert listing(folder) == before


@pytest.mark.parametrize("name", ["model.pt", "model.safetensors"])
@pytest.mark.parametrize("damage", ["empty", "truncated", "flipped"])
@pytest.mark.parametrize("command", ["compress", "inspect"])
def test_a_damaged_network(name: str, damage: str, command: str, cli: Cli, folder: Path) -> None:
    content = bytearray((folder / name).read_bytes())
    content[len(content) // 2] ^= 4
    damaged = {"empty": b"", "truncated": content[: len(content) * 2 // 3], "flipped": content}[damage]
    (folder / name).write_bytes(damaged)
    failed = cli(f"{command} {name}", folder)
    assert failed.code == 4
    assert f"{name} is {'empty' if damage == 'empty' else 'damaged'}" in failed.error
    assert not (folder / "atmc-run").exists()


class Code:
    """Runs a command where it is unpickled."""

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, ("touch ran",)


@pytest.mark.parametrize("command", ["compress", "inspect"])
def test_code_in_a_pickle_is_not_run(command: str, cli: Cli, folder: Path) -> None:
    (folder / "code.pt").write_bytes(pickle.dumps({"state_dict": Code()}))
    torch.save({"state_dict": Code()}, folder / "zipped.pt")
    for name in ("code.pt", "zipped.pt"):
        failed = cli(f"{command} {name}", folder)
        assert failed.code == 4
        assert name in failed.error
    assert not (folder / "ran").exists()


def npz(folder: Path, **changes: object) -> str:
    """An .npz data set that fits digits-cnn, with changes; `None` leaves an array out."""
    random = np.random.default_rng(0)
    arrays = {
        f"{axis}_{part}": random.integers(0, 256, (n, 8, 8), dtype=np.uint8) if axis == "x" else np.arange(n) % 10
        for part, n in (("train", 60), ("test", 30))
        for axis in "xy"
    }
    np.savez(folder / "data.npz", **{key: value for key, value in {**arrays, **changes}.items() if value is not None})
    return "data.npz"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"y_test": np.full(30, 10)}, "label is out of range: expected 0 to 9, got 10"),
        ({"y_train": np.arange(60) % 10 - 1}, "label is out of range"),
        ({"x_train": np.zeros((60, 28, 28), np.uint8), "x_test": np.zeros((30, 28, 28), np.uint8)}, "(1, 28, 28)"),
        ({"x_train": np.full((60, 8, 8), np.nan)}, "images hold NaN"),
        ({"y_train": None, "y_test": None}, "has no labels"),
    ],
)
def test_bad_data(changes: dict[str, object], message: str, cli: Cli, folder: Path) -> None:
    name = npz(folder, **changes)
    before = listing(folder)
    for line in (f"compress model.pt --data {name}", f"train --data {name} --arch digits-cnn --eps 0.1 -o new.pt"):
        failed = cli(line, folder)
        assert failed.code == 4, failed.err
        assert message in failed.error
        assert listing(folder) == before


def test_data_of_other_classes_than_those_of_the_file(cli: Cli, folder: Path) -> None:
    name = npz(folder, y_train=np.arange(60) % 3, y_test=np.arange(30) % 3)
    failed = cli(f"compress model.pt --data {name}", folder)
    assert failed.code == 4, failed.err
    assert "expected logits (N, 3), got (2, 10)" in failed.error


@pytest.mark.parametrize(("key", "value"), [("data", "data.py:make"), ("arch", "net.py:build")])
def test_code_that_only_a_file_names_is_not_run(key: str, value: str, cli: Cli, folder: Path) -> None:
    for name in ("data.py", "net.py"):
        (folder / name).write_text("from pathlib import Path\nPath('ran').touch()\n")
    card = {"arch": "digits-cnn", "image_shape": (1, 8, 8), "n_classes": 10, "data": "digits", "eps": "0.1", key: value}
    state = ARCHITECTURES["digits-cnn"].build().state_dict()
    write_model(folder / "theirs.pt", state, ModelCard.model_validate(card))
    failed = cli("compress theirs.pt", folder)
    assert failed.code == 4
    assert f"--{key} {value}" in failed.error
    assert not (folder / "ran").exists()


@pytest.mark.parametrize(
    "line", ["compress model.pt -o full", "train --data digits --arch digits-cnn --eps 0.1 -o full/x.pt"]
)
def test_what_is_there_is_not_overwritten(line: str, cli: Cli, folder: Path) -> None:
    for place in ("full", "full/x.train"):
        (folder / place).mkdir()
        (folder / place / "mine.txt").write_text("keep")
    before = listing(folder)
    failed = cli(line, folder)
    assert failed.code == 2
    assert "is not empty. Hint: --resume goes on, --overwrite replaces" in failed.error
    assert listing(folder) == before


def test_overwrite_removes_only_what_a_run_writes(cli: Cli, folder: Path) -> None:
    run = folder / "atmc-run"
    (run / "checkpoints").mkdir(parents=True)
    (run / "checkpoints" / "step-1.ckpt").write_text("old")
    (run / "model.onnx").write_text("stale")
    (run / "mine.txt").write_text("keep")
    assert cli(f"compress model.pt {SHORT} --overwrite -q", folder).code == 0
    assert (run / "mine.txt").read_text() == "keep"
    assert not (run / "model.onnx").exists()
    assert not (run / "checkpoints" / "step-1.ckpt").exists()
    failed = cli("export --onnx -o mine.onnx", folder)
    assert failed.code == 0
    assert cli("export --onnx -o mine.onnx", folder).error == (
        "error: mine.onnx exists. Hint: --overwrite replaces it, -o names another file"
    )


@pytest.mark.parametrize(
    ("line", "written"),
    [
        (f"train --data digits --arch digits-cnn --eps 0.1 -o new.pt {SHORT}", "new.pt"),
        (f"compress model.pt {SHORT}", "atmc-run/model.atmc"),
    ],
)
def test_a_full_disk(line: str, written: str, folder: Path) -> None:
    def at_most_100_kb() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))

    failed = run_atmc(f"{line} -q", folder, preexec_fn=at_most_100_kb)
    assert failed.code == 1
    assert "File too large. Hint: free space, then go on with --resume" in failed.error
    assert not (folder / written).exists()
    assert not [path for path in folder.rglob(".*") if path.is_file()]


def test_what_is_there_and_what_is_not_is_said_without_torch(tmp_path: Path) -> None:
    environment = environment_without(("torch",), tmp_path / "packages")
    done = run_atmc("compress nope.pt", tmp_path, environment)
    assert done.code == 4
    assert done.error.startswith("error: nope.pt is not there")
    (tmp_path / "model.pt").write_text("mine")
    done = run_atmc("train --data digits --arch digits-cnn --eps 0.1", tmp_path, environment)
    assert done.code == 2
    assert done.error.startswith("error: model.pt exists")
