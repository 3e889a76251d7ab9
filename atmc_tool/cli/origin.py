"""What an exported file knows about itself, and the model.atmc that it was made of."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from onnx import ModelProto
from pydantic import ValidationError

from atmc_tool.cli.run_folder import MODEL
from atmc_tool.compressed import CompressedModel
from atmc_tool.errors import InputError
from atmc_tool.files import read_bytes, sha256
from atmc_tool.model_card import ModelCard
from evaluators.attack_plan import SQUARE_QUERIES
from evaluators.gate import Check
from evaluators.int8_parity import int8_parity
from evaluators.parity import ExpectedWeights, expected_weights
from evaluators.policy import Policy
from exporters.atmc_file import LIMITS, read_atmc
from exporters.channel_removal import remove_channels
from exporters.factored_execution import factor_execution
from exporters.float_graph import parameters
from exporters.int8 import KEY as INT8_KEY
from exporters.onnx_file import build_onnx, statements

PREFIX = "atmc_tool."
EXPORT_KEYS = ("removed", "factored")  # what an export did
RECORDED_SECTIONS = ("seed", "data", "threat_model", "evaluation", "policy")


@dataclass(frozen=True)
class Origin:
    """Where an ONNX file comes from.

    settings:   configuration that its makers recorded, as a layer beneath what the user says
    metrics:    numbers recorded at compression: `dense`, `compressed`
    digests:    SHA-256 of what it was made of, as far as known
    checks:     whether it was made of its model.atmc and says the same; of an int8 file also whether its weights are
                those of the model.atmc, rounded
    content:    the bytes of that model.atmc, and `compressed` the network in them; empty and None where it is not there
    expected:   the weights in it, as the export changed them; None where the file rounds them to int8
    whole:      that network as ONNX as it is, where the export did not round; else empty
    """

    settings: Mapping[str, Any]
    metrics: Mapping[str, Any]
    digests: Mapping[str, str]
    checks: tuple[Check, ...]
    content: bytes = b""
    compressed: CompressedModel | None = None
    expected: ExpectedWeights | None = None
    whole: bytes = b""


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
        missing = "no model.atmc beside the file"
        return Origin(settings, metrics, digests, (Check("source", None, missing), Check("metadata", None, missing)))
    content = read_bytes(found, LIMITS.file_bytes)
    compressed = read_atmc(found)
    recorded, measured = (_mapping(compressed.manifest.get(key)) for key in ("config", "metrics"))
    settings |= _not_looser({key: recorded[key] for key in RECORDED_SECTIONS if key in recorded})
    actual = sha256(content)
    digests[str(found)] = actual
    metrics = _metrics(measured) or metrics
    shipped = remove_channels(compressed)[0] if "removed" in stated else compressed
    shipped = factor_execution(shipped)[0] if "factored" in stated else shipped
    checks = (_same_source(found, digest, actual), _same_statements(stated, statements(shipped.manifest)))
    if INT8_KEY.removeprefix(PREFIX) in stated:
        rounded = int8_parity(parameters(shipped, actual), model)
        return Origin(settings, metrics, digests, (*checks, rounded), content, compressed)
    whole = build_onnx(compressed, actual)
    return Origin(settings, metrics, digests, checks, content, compressed, expected_weights(shipped, compressed), whole)


def _not_looser(recorded: Mapping[str, Any]) -> dict[str, Any]:
    """What a file says of its own verification, without what would make that weaker than it is by default."""
    settings = dict(recorded)
    for section, key, harmless in (
        ("policy", "allow_black_box", lambda _: False),
        ("policy", "max_drop", lambda value: isinstance(value, int | float) and value <= Policy().max_drop),
        (
            "evaluation",
            "square_queries",
            lambda value: isinstance(value, int) and value >= min(SQUARE_QUERIES.values()),
        ),
        ("evaluation", "attack", lambda value: value == "autoattack"),
        ("data", "dir", lambda _: False),
    ):
        values = _mapping(settings.get(section))
        if key in values and not harmless(values[key]):
            settings[section] = {name: value for name, value in values.items() if name != key}
    return settings


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


def _same_statements(stated: Mapping[str, str], expected: Mapping[str, str]) -> Check:
    """The file says of its network, its accuracies and what the export did what follows from its model.atmc."""
    own = {key.removeprefix(PREFIX): value for key, value in expected.items()}
    differing = {key: value for key, value in own.items() if stated.get(key) != value}
    unknown = [key for key in EXPORT_KEYS if key in stated and key not in own]
    if differing or unknown:
        names = ", ".join([*differing, *unknown])
        evidence = {"stated": {key: stated.get(key) for key in (*differing, *unknown)}, "expected": differing}
        return Check("metadata", False, f"the file states another {names} than its model.atmc: export again", evidence)
    return Check("metadata", True, f"{', '.join(own)} as in model.atmc", {"equal": list(own)})


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
    except (ValueError, RecursionError) as error:
        raise InputError(f"the {key} in {path} are damaged", expected="JSON", got=str(error)) from error
    if not isinstance(value, dict):
        raise InputError(f"the {key} in {path} are damaged", expected="a JSON object", got=type(value).__name__)
    return value
