"""What a file is, as plain facts: its kind, size, digest, layers, and what it says about itself."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import NodeProto, helper

from atmc_tool.cli.run_folder import MODEL, ONNX, RunFolder
from atmc_tool.errors import InputError
from atmc_tool.files import read_bytes, sha256
from exporters.dense import CARD_KEY, state_digest
from exporters.manifest import DTYPES

MAX_BYTES = 4 << 30
_BITS = {name: 8 * np.dtype(dtype).itemsize for name, dtype in DTYPES.items()}
KINDS = ".atmc, .onnx, .pt, .pth, .safetensors or a run folder"


def inspect_path(path: Path, trust_pickle: bool) -> dict[str, Any]:
    """The facts of the file or run folder `path`; only `.pt` and `.pth` need torch.

    Raises:
        InputError: missing, damaged, or of no known kind.
    """
    if path.is_dir():
        return _run_folder(path)
    readers = {".atmc": _atmc, ".onnx": _onnx, ".safetensors": _safetensors}
    suffix = path.suffix.lower()
    content = read_bytes(path, MAX_BYTES)
    if not content:
        raise InputError(f"{path} is empty", expected=KINDS)
    if suffix in readers:
        facts = readers[suffix](path, content)
    elif suffix in (".pt", ".pth", ".th"):
        facts = _torch(path, trust_pickle)
    else:
        raise InputError(f"{path} is of no known kind", expected=KINDS)
    return {"path": str(path), "bytes": len(content), "sha256": sha256(content), **facts}


def _run_folder(path: Path) -> dict[str, Any]:
    folder = RunFolder(path)
    files = [file for file in folder.own() if file.is_file()]
    if not files:
        raise InputError(f"{path} is no run folder", expected=f"config.yaml, {MODEL} or {ONNX} in it")
    artefacts = [file for file in files if file.suffix in (".atmc", ".onnx", ".safetensors")]
    return {
        "path": str(path),
        "kind": "run folder",
        "files": [{"path": str(f), "bytes": f.stat().st_size, "sha256": sha256(f.read_bytes())} for f in files],
        "checkpoints": sorted(file.name for file in folder.checkpoints.glob("*")),
        "artefacts": [inspect_path(file, trust_pickle=False) for file in artefacts],
    }


def _atmc(path: Path, content: bytes) -> dict[str, Any]:
    from exporters.atmc_file import describe

    try:
        facts = describe(content)
    except InputError as error:
        raise InputError(f"{path} can't be used: {error}") from error
    described = facts.pop("layers")
    layers = [part for layer in described for part in _atmc_layer(layer)]
    layers += [
        {"name": entry["name"], "shape": entry["shape"], "bits": _BITS[entry["dtype"]], "bytes": entry["bytes"]}
        for entry in facts.pop("rest")
    ]
    units = {"empty_filters": 0, "empty_channels": 1}
    empty = {
        layer["name"]: {unit: {"of": layer["shape"][axis], "which": layer[unit]} for unit, axis in units.items()}
        for layer in described
        if any(layer[unit] for unit in units)
    }
    return {"kind": "compressed network (.atmc)", "layers": layers, "empty": empty, **facts}


def _atmc_layer(layer: Mapping[str, Any]) -> list[dict[str, Any]]:
    """A weight, or where it is made of several factors, each of them."""
    factors = layer["factors"]
    if not factors:
        return [{"name": layer["name"], "shape": layer["shape"], "kept": 0, "values": 0, "bytes": 0}]
    alone = len(factors) == 1
    return [
        {
            "name": layer["name"] if alone else f"{layer['name']}.{name}",
            "shape": layer["shape"] if alone else factor["shape"],
            "kept": factor["kept"],
            "values": factor["codebook"] or None,
            "bits": factor["bits"],
            "bytes": factor["stored_bytes"],
        }
        for name, factor in factors.items()
    ]


def _onnx(path: Path, content: bytes) -> dict[str, Any]:
    from evaluators.classifier import decoded_weights, optimized_operators, parse_onnx
    from evaluators.classifier import facts as facts_of

    model = parse_onnx(content, str(path))
    stored = {tensor.name: len(tensor.SerializeToString()) for tensor in model.graph.initializer}
    types = {tensor.name: helper.tensor_dtype_to_np_dtype(tensor.data_type) for tensor in model.graph.initializer}
    makers = {name: node for node in model.graph.node for name in node.output}
    facts = facts_of(model, str(path))
    image_dependent = {facts.input_name}
    parameters: dict[str, None] = {}
    for node in model.graph.node:
        if image_dependent.intersection(node.input):
            if node.op_type not in ("QuantizeLinear", "DequantizeLinear"):  # scales of images are no layer's weights
                parameters |= dict.fromkeys(name for name in node.input if name and name not in image_dependent)
            image_dependent.update(node.output)

    arrays = {name: array for name, array in decoded_weights(model, parameters).items() if array.dtype.kind == "f"}
    parts = {name: _upstream(name, makers) & stored.keys() for name in arrays}
    weights = {name: 1 + int(np.count_nonzero(array)) for name, array in arrays.items()}
    readers = {part: sum(weights[name] for name in arrays if part in parts[name]) for part in stored}
    layers = [
        {
            **_layer(name, array),
            **_code(array),
            **_rounded(makers.get(name), types),
            "bytes": round(sum(stored[part] * weights[name] / readers[part] for part in parts[name])),
        }
        for name, array in arrays.items()
    ]
    return {
        "kind": "network (.onnx)",
        "opset": facts.opset,
        "image_shape": list(facts.image_shape),
        "batch": facts.batch,
        "n_classes": facts.n_classes,
        "metadata": {key: _parsed(value) for key, value in facts.metadata.items()},
        "operators_after_optimisation": dict(sorted(optimized_operators(model).items())),
        "layers": layers,
    }


def _rounded(maker: NodeProto | None, types: Mapping[str, np.dtype[Any]]) -> dict[str, int]:
    """Bits of each element where a weight is stored as integers, such as int8."""
    if maker is None or maker.op_type != "DequantizeLinear" or maker.input[0] not in types:
        return {}
    return {"bits": 8 * types[maker.input[0]].itemsize}


def _upstream(name: str, makers: Mapping[str, NodeProto]) -> set[str]:
    """Every value that `name` is computed from, itself among them."""
    found, left = set[str](), [name]
    while left:
        value = left.pop()
        if value not in found:
            found.add(value)
            left += makers[value].input if value in makers else []
    return found


def _safetensors(path: Path, content: bytes) -> dict[str, Any]:
    import safetensors

    try:
        entries = safetensors.deserialize(content)  # type: ignore[no-untyped-call]
    except safetensors.SafetensorError as error:
        raise InputError(f"{path} is damaged or not a safetensors file", got=str(error)) from error
    header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    layers = []
    for name, entry in sorted(entries):
        facts: dict[str, Any] = {"name": name, "shape": entry["shape"], "bytes": len(entry["data"])}
        if entry["dtype"] in _BITS:
            array = np.frombuffer(entry["data"], DTYPES[entry["dtype"]]).reshape(entry["shape"])
            facts = _layer(name, array)
        layers.append(facts)
    metadata = header.get("__metadata__", {})
    if CARD_KEY in metadata:
        _check_own_digest(path, metadata[CARD_KEY], entries)
    parsed = {key: _parsed(value) for key, value in metadata.items()}
    return {"kind": "state dict (.safetensors)", "metadata": parsed, "layers": layers}


def _check_own_digest(path: Path, stated: str, entries: Sequence[tuple[str, Mapping[str, Any]]]) -> None:
    """Raise where the tensors are not those that a file of ours was written with."""
    facts = _parsed(stated, deep=False)
    try:
        state = {name: np.frombuffer(e["data"], DTYPES[e["dtype"]]).reshape(e["shape"]) for name, e in entries}
        whole = facts["sha256"] == state_digest(state, facts["card"])
    except (KeyError, TypeError):
        whole = False
    if not whole:
        raise InputError(f"{path} is damaged", expected="tensors that match the file's own SHA-256", got="others")


def _torch(path: Path, trust_pickle: bool) -> dict[str, Any]:
    from atmc_tool.models.reading import read_model

    file = read_model(path, trust_pickle)
    layers = [_layer(name, tensor.numpy()) for name, tensor in file.state.items()]
    card = file.card.model_dump(mode="json") if file.card else None
    return {"kind": "state dict (torch)", "card": card, "layers": layers}


def _layer(name: str, array: NDArray[Any]) -> dict[str, Any]:
    """`values`: how many different nonzero values."""
    return {
        "name": name,
        "shape": list(array.shape),
        "kept": int(np.count_nonzero(array)),
        "values": len(np.unique(array[array != 0])),
        "bits": 8 * array.itemsize,
        "bytes": array.nbytes,
    }


def _code(array: NDArray[Any]) -> dict[str, int]:
    """Bits of a code for the nonzero values, where there are few enough for a codebook."""
    values = len(np.unique(array[array != 0]))
    return {"bits": max(1, (values - 1).bit_length())} if values <= 256 < array.size else {}


def _parsed(value: str, *, deep: bool = True) -> Any:
    """What a string of metadata says, where it is JSON; `deep` also parses a card inside."""
    try:
        parsed = json.loads(value)
    except json.JSONDecodeError:
        return value
    if deep and isinstance(parsed, Mapping) and isinstance(parsed.get("card"), str):
        return {**parsed, "card": _parsed(parsed["card"])}
    return parsed
