"""What lies where in a run folder, and when a command may write into one."""

import shutil
from dataclasses import dataclass
from pathlib import Path

from atmc_tool.errors import InputError, UsageError
from atmc_tool.files import leftovers, remove_leftovers
from atmc_tool.trackers import MLFLOW, MLFLOW_RUN, TENSORBOARD

MODEL = "model.atmc"
ONNX = "model.onnx"
INT8 = "model.int8.onnx"
REPORT = "verify.json"
MANIFEST = "manifest.sha256"
RUN_REPORT = "report.html"
WRONG_KIND = {  # what users name by mistake: suffix → what it is, what to do
    **dict.fromkeys((".pt", ".pth", ".th", ".safetensors"), ("a trained network", "atmc-tool compress comes first")),
    ".atmc": ("a compressed network", "atmc-tool export --onnx comes first"),
    ".onnx": ("an exported network", "name the model.atmc that it was made of"),
}


@dataclass(frozen=True)
class RunFolder:
    """The folder of one training or compression, with the artefacts made from it."""

    path: Path

    @property
    def config(self) -> Path:
        """The resolved configuration."""
        return self.path / "config.yaml"

    @property
    def checkpoints(self) -> Path:
        """State to resume from."""
        return self.path / "checkpoints"

    @property
    def model(self) -> Path:
        """The compressed network."""
        return self.path / MODEL

    def own(self) -> list[Path]:
        """Everything that commands write here; `--overwrite` removes these and nothing else."""
        artefacts = (MODEL, ONNX, INT8, "model.safetensors")
        reports = (REPORT, report_name(Path(INT8)))
        manifests = (MANIFEST, manifest_name(Path(INT8)))
        names = (
            "metrics.jsonl",
            *artefacts,
            *reports,
            *(Path(name).with_suffix(".html").name for name in reports),
            *manifests,
            RUN_REPORT,
            TENSORBOARD,
            MLFLOW,
            MLFLOW_RUN,
        )
        return [self.config, self.checkpoints, *(self.path / name for name in names)]

    def check_free(self, made: Path, *, resume: bool, overwrite: bool) -> None:
        """Refuse to write over what is there unless told to, and to resume what is not there. Changes nothing.

        A run that was killed before its first checkpoint can be resumed: it starts from the beginning. One that was
        killed before it wrote its configuration has left nothing. `made` is what a finished run leaves.

        Raises:
            UsageError: non-empty and neither `resume` nor `overwrite`; both; or nothing to resume, or only from the
                beginning though it is finished.
        """
        if resume and overwrite:
            raise UsageError("--resume and --overwrite exclude each other", hint="keep the state or replace it")
        if self.path.exists() and not self.path.is_dir():
            raise UsageError(f"{self.path} is not a folder", hint="choose another one with -o")
        there = self.path.is_dir() and not {*self.path.iterdir()} <= {*leftovers(self.path, self.config.name)}
        if resume and not self.config.is_file():
            raise UsageError(f"nothing to resume in {self.path}", hint="leave out --resume to start a new run")
        if resume and made.exists() and not any(self.checkpoints.glob("*.ckpt")):
            raise UsageError(f"{made} is there and no checkpoint to resume", hint="--overwrite starts again")
        if there and not (resume or overwrite):
            raise UsageError(f"{self.path} is not empty", hint="--resume goes on, --overwrite replaces, -o elsewhere")

    def was_begun_with(self, config: str) -> bool:
        """Whether the run that is there has exactly this configuration, as YAML."""
        return self.config.is_file() and self.config.read_bytes() == config.encode()

    def clear(self) -> None:
        """Remove what an earlier run left; files of others stay."""
        for path in self.own():
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)
        self.remove_leftovers()

    def remove_leftovers(self) -> None:
        """Remove what killed writes of `own` files left."""
        for path in self.own():
            remove_leftovers(self.path, path.name)


def report_name(artefact: Path) -> str:
    """Name of the report on an exported file: verify.json for model.onnx, NAME.verify.json for NAME.onnx."""
    return REPORT if artefact.name == ONNX else f"{artefact.stem}.{REPORT}"


def manifest_name(artefact: Path) -> str:
    """Name of the list of digests that verify leaves: by the same rule as `report_name`."""
    return MANIFEST if artefact.name == ONNX else f"{artefact.stem}.{MANIFEST}"


def locate(path: Path | None, run: Path, name: str) -> Path:
    """The artefact `name` that a command works on: `path` itself, or in the folder `path`, or in the run folder.

    Raises:
        InputError: it is not there; the hint names the command that makes it.
    """
    folder = run if path is None else path
    found = folder if path is not None and not path.is_dir() else folder / name
    if found.is_file() and found.suffix != Path(name).suffix and found.suffix in WRONG_KIND:
        what, hint = WRONG_KIND[found.suffix]
        raise InputError(f"{found} is {what}", expected=name, hint=hint)
    if not found.is_file():
        makers = {MODEL: "atmc-tool compress model.pt", ONNX: "atmc-tool export --onnx"}
        raise InputError(f"{found} is not there", hint=f"make it with '{makers[name]}', or name a file or run folder")
    return found
