"""An exported file with faults planted into copies of it, each verified as `verify` does."""

import json
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import numpy as np

from atmc_tool.cli.data_source import data_folder
from atmc_tool.cli.origin import PREFIX
from atmc_tool.cli.render import note
from atmc_tool.cli.run_folder import MODEL, ONNX, REPORT
from atmc_tool.cli.verification import verify_file
from atmc_tool.compressed import CompressedModel, CompressedWeight, SparseTensor
from atmc_tool.errors import InputError
from atmc_tool.files import read_bytes, sha256
from atmc_tool.settings import merge
from evaluators.classifier import MAX_BYTES, parse_graph
from evaluators.gate import Verdict
from evaluators.planted_faults import FAULTS, Fault
from exporters.atmc_file import LIMITS, decode_model, encode_model

if TYPE_CHECKING:
    from atmc_tool.config import Config

MARGIN = 0.05  # by which a fault may lower an accuracy, image by image, where the policy states none
LOSSES = {"max_clean_loss": "clean-loss", "max_robust_loss": "robust-loss"}  # parts of a policy → checks
SOME = 1e-9  # a robust accuracy that any network with one robust image reaches
RAISED = 0.05  # what is added to a recorded accuracy
FACTOR = 1.001  # on a value of a codebook
Resolve = Callable[[Mapping[str, Any] | None], "Config"]


@dataclass(frozen=True)
class Outcome:
    """What the gate said of one fault.

    caught: it failed for a right reason; None where the fault could not be planted
    failed: the checks that failed, `right` those of them that are a right reason
    reason: of the first right one, or why nothing was planted, or why the file was refused
    """

    name: str
    what: str
    caught: bool | None
    failed: tuple[str, ...]
    right: tuple[str, ...]
    reason: str


@dataclass(frozen=True)
class _Planted:
    """Files of a release with a fault: model.onnx and, where there is one, model.atmc; checks that are a right reason.

    Where `refused`, reading them has to fail.
    """

    what: str
    onnx: bytes
    atmc: bytes
    caught: frozenset[str]
    refused: bool = False


def planted(path: Path, provider: str, resolve: Resolve) -> tuple[Verdict, list[Outcome]]:
    """The verdict on the exported file `path` itself, and what the gate says of each fault.

    The honest file's outcomes are the baseline of the others, so that what spoils accuracies shows also where nothing
    was recorded at compression.

    Raises:
        UsageError, InputError, MissingEnvironmentError: the honest file can't be verified.
    """
    content = read_bytes(path, MAX_BYTES)
    data = data_folder(path)
    beside = path.parent / MODEL
    source = read_bytes(beside, LIMITS.file_bytes) if beside.is_file() else b""

    def own(files: Mapping[str, Any] | None) -> "Config":
        return resolve(merge(data, files or {}))

    with TemporaryDirectory() as folder:
        copy = Path(folder) / "honest"
        note("the honest file")
        report, verification = _verified(copy, content, source, provider, own, None)
        if not verification.passed:
            return verification, []
        baseline = Path(folder) / REPORT
        baseline.write_text(json.dumps(report))
        outcomes = []
        for name, make in _faults(content, source):
            note(f"fault: {name}")
            outcomes.append(_tried(name, make, Path(folder) / "planted", provider, own, baseline))
        return verification, outcomes


def _tried(
    name: str,
    make: Callable[[], _Planted],
    folder: Path,
    provider: str,
    resolve: Resolve,
    baseline: Path,
) -> Outcome:
    """The outcome of one fault, planted in `folder`, which is removed."""
    try:
        fault = make()
    except InputError as error:
        return Outcome(name, "", None, (), (), str(error))
    try:
        _, verdict = _verified(folder, fault.onnx, fault.atmc, provider, resolve, baseline)
    except InputError as error:
        return Outcome(name, fault.what, fault.refused, (), (), "refused: " + str(error).replace(f"{folder}/", ""))
    finally:
        shutil.rmtree(folder)
    failed = tuple(check.name for check in verdict.failed)
    right = tuple(check for check in failed if check in fault.caught)
    reasons = [check.reason.replace(f"{folder}/", "") for check in verdict.failed if check.name in right]
    caught = bool(right) and not fault.refused
    return Outcome(name, fault.what, caught, failed, right, reasons[0] if reasons else _no_reason(failed))


def _no_reason(failed: tuple[str, ...]) -> str:
    return f"failed for another reason: {', '.join(failed)}" if failed else "passed"


def _verified(
    folder: Path, content: bytes, source: bytes, provider: str, resolve: Resolve, baseline: Path | None
) -> tuple[dict[str, Any], Verdict]:
    """The report on these files, written into a new `folder`, and its verdict."""
    folder.mkdir()
    (folder / ONNX).write_bytes(content)
    if source:
        (folder / MODEL).write_bytes(source)

    def lenient(files: Mapping[str, Any] | None) -> "Config":
        config = resolve(files)
        policy = {"min_robust": SOME, **config.policy}  # judged, also where compression measured other images
        left_out = ["signature", "providers", *(LOSSES.values() if baseline is None else ())]
        policy["required"] = [name for name in policy.get("required", ()) if name not in left_out]
        if baseline is None:  # the honest file is its own
            policy = {key: value for key, value in policy.items() if key not in LOSSES}
        else:
            policy = {**dict.fromkeys(LOSSES, MARGIN), **policy}
        return config.model_copy(update={"policy": policy, "run": folder})

    report, verification, _ = verify_file(folder / ONNX, provider, None, lenient, baseline)
    return report, verification.verdict


def _spoiled(fault: Fault, content: bytes, source: bytes) -> _Planted:
    spoiled: bytes = fault.plant(parse_graph(content)).SerializeToString()
    return _Planted(fault.what, spoiled, source, fault.caught)


def _faults(content: bytes, source: bytes) -> Iterator[tuple[str, Callable[[], _Planted]]]:
    """Name → how to plant it."""
    for name, fault in FAULTS.items():
        yield name, partial(_spoiled, fault, content, source)
    for name, change in _CHANGES.items():
        yield name, partial(_changed, change, content, source)


def _changed(change: Callable[[bytes, bytes], _Planted], content: bytes, source: bytes) -> _Planted:
    if not source:
        raise InputError(f"there is no {MODEL} beside the file")
    return change(content, source)


def _stale(content: bytes, source: bytes) -> _Planted:
    """model.atmc written again with another fact in it, and not exported again."""
    model = decode_model(source)
    other = encode_model(replace(model, manifest={**model.manifest, "made_again": True}))
    return _Planted("model.atmc made again after the export", content, other, frozenset({"source"}))


def _tampered_codebook(content: bytes, source: bytes) -> _Planted:
    """One value of a codebook in model.atmc changed by a thousandth, digests set right, and the ONNX file's too."""
    model = decode_model(source)
    name, factor, tensor = _largest_coded(model)
    assert tensor.codebook is not None
    assert tensor.codes is not None
    codebook = tensor.codebook.copy()
    codebook[int(np.abs(codebook).argmax())] *= np.float32(FACTOR)
    changed = replace(tensor, codebook=codebook, values=codebook[tensor.codes])
    weight = CompressedWeight(model.weights[name].shape, {**model.weights[name].factors, factor: changed})
    other = encode_model(replace(model, weights={**model.weights, name: weight}))
    caught = frozenset({"weight-parity"})
    return _Planted("a codebook's value in model.atmc × 1.001, resealed", _restated(content, other), other, caught)


def _raised_record(content: bytes, source: bytes) -> _Planted:
    """The accuracies that model.atmc records raised by 5 points, digests set right, and the ONNX file's too."""
    model = decode_model(source)
    compressed = dict(model.manifest.get("metrics", {}).get("compressed", {}))
    found = [key for key in ("clean_accuracy", "robust_accuracy") if isinstance(compressed.get(key), float)]
    if not found:
        raise InputError("model.atmc records no accuracies")
    compressed |= {key: compressed[key] + RAISED for key in found}
    metrics = {**model.manifest["metrics"], "compressed": compressed}
    other = encode_model(replace(model, manifest={**model.manifest, "metrics": metrics}))
    caught = frozenset({"metadata", "clean-drop", "robust-drop"})
    return _Planted("recorded accuracies in model.atmc + 0.05, resealed", _restated(content, other), other, caught)


def _damaged(content: bytes, source: bytes) -> _Planted:
    """A bit of model.atmc flipped, and nothing set right."""
    other = bytearray(source)
    other[len(other) // 2] ^= 1
    return _Planted("a bit of model.atmc flipped", content, bytes(other), frozenset(), refused=True)


_CHANGES: Mapping[str, Callable[[bytes, bytes], _Planted]] = {
    "stale file": _stale,
    "tampered codebook": _tampered_codebook,
    "raised record": _raised_record,
    "damaged source": _damaged,
}


def _largest_coded(model: CompressedModel) -> tuple[str, str, SparseTensor]:
    """The factor of the most entries among those that have a codebook."""
    coded = [
        (name, factor, tensor)
        for name, weight in model.weights.items()
        for factor, tensor in weight.factors.items()
        if tensor.codebook is not None and tensor.kept
    ]
    if not coded:
        raise InputError("no weight has a codebook")
    return max(coded, key=lambda each: each[2].kept)


def _restated(content: bytes, source: bytes) -> bytes:
    """The ONNX file, which states the digest of `source`."""
    model = parse_graph(content)
    for entry in model.metadata_props:
        if entry.key == f"{PREFIX}source_sha256":
            entry.value = sha256(source)
    restated: bytes = model.SerializeToString()
    return restated
