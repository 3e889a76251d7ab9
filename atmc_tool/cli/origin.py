"""What an exported file knows about itself, and the model.atmc that it was made of."""

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from onnx import ModelProto
from pydantic import ValidationError

from atmc_tool.cli.run_folder import MODEL
from atmc_tool.errors import InputError
from atmc_tool.files import read_bytes, sha256
from atmc_tool.model_card import ModelCard
from evaluators.gate import Check, judge
from evaluators.int8_parity import int8_parity
from evaluators.parity import ExpectedWeights, expected_weights
from evaluators.verification import Verification
from exporters.atmc_file import LIMITS, read_atmc
from exporters.channel_removal import remove_channels
from exporters.factored_execution import factor_execution
from exporters.float_graph import parameters
from exporters.int8 import KEY as INT8_KEY
from exporters.onnx_file import build_onnx

PREFIX = "atmc_tool."
RECORDED_SECTIONS = ("seed", "data", "threat_model", "evaluation", "policy")


@dataclass(frozen=True)
class Origin:
    """Where an ONNX file comes from.

    settings: configuration that its makers recorded, as a layer beneath what the user says
    metrics:  numbers recorded at compression: `dense`, `compressed`
    digests:  SHA-256 of what it was made of, as far as known
    expected: the weights in its model.atmc, as the export changed them; None where that is not there, or where the file
              rounds them to int8
    check:    whether it was made of that model.atmc
    rounded:  of an int8 file: whether its weights are those of the model.atmc, rounded
    whole:    that model.atmc as ONNX as it is, where the export changed it and did not round; else empty
    """

    settings: Mapping[str, Any]
    metrics: Mapping[str, Any]
    digests: Mapping[str, str]
    expected: ExpectedWeights | None
    check: Check
    rounded: Check | None = None
    whole: bytes = b""

    def judged(self, verification: Verification, *more: Check) -> Verification:
        """The verification with this origin's checks, and `more`, among its checks."""
        rounded = {} if self.rounded is None else {self.rounded.name: self.rounded}
        checks = (self.check, *more, *(rounded.get(check.name, check) for check in verification.verdict.checks))
        n = 0 if verification.clean is None else verification.clean.n
        return dataclasses.replace(verification, verdict=judge(checks, n))


def find_origin(path: Path, model: ModelProto, run: Path) -> Origin:
    """The origin of the ONNX file `path`; its model.atmc lies beside it, or in `run` with the right digest.

    Raises:
        InputError: a statement of the file, or the model.atmc beside it, is damaged.
    """
    stated = {entry.key.removeprefix(PREFIX): entry.value for entry in model.metadata_props}
    digest = stated.get("source_sha256")
    beside, found = path.parent / MODEL, None
    if beside.is_file():
        found = beside
    elif digest and (run / MODEL).is_file() and sha256(read_bytes(run / MODEL, LIMITS.file_bytes)) == digest:
        found = run / MODEL
    card = _parse(path, "card", stated)
    settings: dict[str, Any] = {}
    if card is not None:
        threat_model = {"eps": card.eps, "norm": card.norm}
        settings = {"data": {"name": card.data}, "threat_model": threat_model, "seed": card.seed}
    metrics = _metrics(_json(path, "metrics", stated))
    digests = {"source": digest} if digest else {}
    if found is None:
        return Origin(settings, metrics, digests, None, Check("source", None, "no model.atmc beside the file"))
    compressed = read_atmc(found)
    recorded, measured = (_mapping(compressed.manifest.get(key)) for key in ("config", "metrics"))
    settings |= {key: recorded[key] for key in RECORDED_SECTIONS if key in recorded}
    actual = sha256(read_bytes(found, LIMITS.file_bytes))
    digests[str(found)] = actual
    check = _same_source(found, digest, actual)
    metrics = _metrics(measured) or metrics
    shipped = remove_channels(compressed)[0] if "removed" in stated else compressed
    shipped = factor_execution(shipped)[0] if "factored" in stated else shipped
    if INT8_KEY.removeprefix(PREFIX) in stated:
        return Origin(settings, metrics, digests, None, check, int8_parity(parameters(shipped, actual), model))
    whole = build_onnx(compressed, actual) if shipped is not compressed else b""
    return Origin(settings, metrics, digests, expected_weights(shipped), check, None, whole)


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _metrics(stated: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    return {name: _mapping(stated.get(name)) for name in ("dense", "compressed") if name in stated}


def _same_source(found: Path, stated: str | None, actual: str) -> Check:
    evidence = {"stated": stated, "actual": actual}
    if stated == actual:
        return Check("source", True, f"made of {found}, {actual[:12]}", evidence)
    reason = f"made of another file ({stated[:12]})" if stated else "does not say what it was made of"
    return Check("source", False, f"{reason} than {found} ({actual[:12]}): export again", evidence)


def _parse(path: Path, key: str, stated: Mapping[str, str]) -> ModelCard | None:
    if stated.get(key, "{}") == "{}":
        return None
    try:
        return ModelCard.model_validate_json(stated[key])
    except ValidationError as error:
        first = error.errors()[0]
        got = f"{'.'.join(str(part) for part in first['loc'])}: {first['msg']}"
        raise InputError(f"the model card in {path} is damaged", got=got) from error


def _json(path: Path, key: str, stated: Mapping[str, str]) -> dict[str, Any]:
    try:
        value = json.loads(stated.get(key, "{}"))
    except json.JSONDecodeError as error:
        raise InputError(f"the {key} in {path} are damaged", expected="JSON", got=str(error)) from error
    if not isinstance(value, dict):
        raise InputError(f"the {key} in {path} are damaged", expected="a JSON object", got=type(value).__name__)
    return value
