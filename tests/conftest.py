"""What all tests share: one thread, the command line as users run it, and one small run made by it."""

import os
import pty
import shlex
import signal
import subprocess
import sys
from collections.abc import Callable
from contextlib import chdir
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

os.environ["OMP_NUM_THREADS"] = "1"  # tests run side by side; read by torch and onnxruntime when they are imported
ROOT = Path(__file__).parents[1]

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # as in a shell's background; the processes of tests inherit it
    signal.signal(signal.SIGINT, signal.default_int_handler)

settings.register_profile("atmc", deadline=None, derandomize=True, print_blob=True)
settings.load_profile("atmc")


@dataclass(frozen=True)
class Outcome:
    """What a command left: exit code, stdout, stderr."""

    code: int
    out: str
    err: str

    @property
    def error(self) -> str:
        """The one line that an error is; fails where there is more, such as a traceback."""
        lines = self.err.splitlines()
        assert len(lines) == 1, self.err
        assert lines[0].startswith("error: "), self.err
        return lines[0]


Cli = Callable[..., Outcome]


@pytest.fixture
def cli(capfd: pytest.CaptureFixture[str]) -> Cli:
    """`cli("verify --json", cwd)` runs the entry point in this process, in folder `cwd`."""

    def run(line: str, cwd: Path) -> Outcome:
        from atmc_tool.cli import main

        capfd.readouterr()
        with chdir(cwd), pytest.raises(SystemExit) as stopped:
            main(shlex.split(line))
        out, err = capfd.readouterr()
        code = stopped.value.code
        assert isinstance(code, int)
        return Outcome(code, out, err)

    return run


def run_atmc(line: str, cwd: Path, environment: dict[str, str] | None = None, **options: Any) -> Outcome:
    """`atmc-tool LINE` as a process of its own in folder `cwd`; with an `environment` that has its own packages."""
    flags = ["-S"] if environment else []
    done = subprocess.run(
        [sys.executable, *flags, "-m", "atmc_tool", *shlex.split(line)],
        cwd=cwd,
        env=environment or {**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
        **options,
    )
    return Outcome(done.returncode, done.stdout, done.stderr)


def on_terminal(line: str, cwd: Path, **environment: str) -> str:
    """What `atmc-tool LINE` writes to a terminal."""
    ours, theirs = pty.openpty()
    variables = {**os.environ, "PYTHONPATH": str(ROOT), "TERM": "xterm-256color", "COLUMNS": "150", **environment}
    if "NO_COLOR" not in environment:
        variables.pop("NO_COLOR", None)
    command = [sys.executable, "-m", "atmc_tool", *line.split()]
    with subprocess.Popen(command, cwd=cwd, env=variables, stdin=theirs, stdout=theirs, stderr=theirs) as process:
        os.close(theirs)
        chunks = []
        try:
            while chunk := os.read(ours, 65536):
                chunks.append(chunk)
        except OSError:  # how Linux says that the other end is closed
            pass
    os.close(ours)
    assert process.returncode == 0
    return b"".join(chunks).decode()


def environment_without(packages: tuple[str, ...], folder: Path) -> dict[str, str]:
    """An environment, made in `folder`, in which `packages` are not installed; for `python -S`."""
    folder.mkdir()
    for entry in Path(pytest.__file__).parents[1].iterdir():
        if not entry.name.startswith(packages):
            (folder / entry.name).symlink_to(entry)
    return {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{folder}"}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with an untrained digits-cnn, card and all."""
    import torch

    from atmc_tool.model_card import ModelCard
    from atmc_tool.models import ARCHITECTURES
    from atmc_tool.models.writing import write_model

    card = ModelCard(arch="digits-cnn", image_shape=(1, 8, 8), n_classes=10, data="digits", eps="0.1", seed=3)
    torch.manual_seed(0)
    write_model(tmp_path / "model.pt", ARCHITECTURES["digits-cnn"].build().state_dict(), card)
    return tmp_path


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """The folder of data sets that ATMC_DATA_DIR names; the test is skipped where it names none."""
    folder = os.environ.get("ATMC_DATA_DIR")
    if not folder or not Path(folder).is_dir():
        pytest.skip("ATMC_DATA_DIR names no folder")
    return Path(folder)


@pytest.fixture(scope="session")
def digits_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with model.pt and atmc-run/ (model.atmc, model.onnx) of a small network trained on digits.

    Made by the command line, in about 20 s; atmc.yaml makes its measurements short. Tests copy what they change.
    """
    folder = tmp_path_factory.mktemp("digits")
    (folder / "atmc.yaml").write_text("evaluation: {n: 200, steps: 5, restarts: 1, square_queries: 20}\n")
    short = "--max-steps 150 --set attack.steps=2"
    for line in (
        f"train --data digits --arch digits-cnn --eps 0.1 {short} -o model.pt",
        f"compress model.pt {short}",
        "export --onnx",
    ):
        done = run_atmc(line, folder)
        assert done.code == 0, f"{line}\n{done.err}"
    return folder
