"""What two compressed networks differ in: layers, other tensors, the graph, and what is known of them."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from atmc_tool.compressed import CompressedModel
from atmc_tool.errors import InputError
from atmc_tool.files import read_bytes, sha256
from exporters.atmc_file import LIMITS, decode_model, describe

FORM = ("kept", "values", "bits")  # not bytes: layers share their streams, so each one's bytes depend on all


@dataclass(frozen=True)
class _File:
    """A file: its content, the network in it, and of each layer and other tensor its shape, `FORM` and bytes."""

    path: Path
    content: bytes
    model: CompressedModel
    level: int
    layers: Mapping[str, Mapping[str, Any]]


def compare_files(first: Path, second: Path) -> dict[str, Any]:
    """What differs between two `.atmc` files, as plain JSON values.

    equal:        the files are the same, byte for byte
    same_network: every tensor and the graph are equal, however they are stored
    files:        path, bytes, sha256 and level of each
    layers:       one entry for every tensor, those of the first file first: `change` is `none`, `values`, `shape`,
                  `stored` (equal values in another codebook), `added` or `removed`; `first` and `second` have
                  shape, kept entries, values of the codebook, bits of a code and bytes; of tensors of one shape,
                  `differing` is how many elements differ and `largest_difference` how much at most
    graph:        whether the graphs differ
    facts:        dotted name → [first, second] of every recorded fact that differs (card, metrics, versions, …)

    Raises:
        InputError: a file is missing, damaged or no compressed network.
    """
    a, b = _read(first), _read(second)
    layers = [_layer(name, a, b) for name in dict.fromkeys((*a.layers, *b.layers))]
    graph = a.model.skeleton != b.model.skeleton
    return {
        "equal": a.content == b.content,
        "same_network": not graph and all(layer["change"] in ("none", "stored") for layer in layers),
        "files": [
            {"path": str(f.path), "bytes": len(f.content), "sha256": sha256(f.content), "level": f.level}
            for f in (a, b)
        ],
        "layers": layers,
        "graph": graph,
        "facts": _differing(dict(_flat(a.model.manifest)), dict(_flat(b.model.manifest))),
    }


def _read(path: Path) -> _File:
    content = read_bytes(path, LIMITS.file_bytes)
    try:
        model, described = decode_model(content), describe(content)
    except InputError as error:
        raise InputError(f"{path} can't be used: {error}") from error
    layers = {layer["name"]: _figures(layer) for layer in described["layers"]}
    layers |= {entry["name"]: {"shape": entry["shape"], "bytes": entry["bytes"]} for entry in described["rest"]}
    return _File(path, content, model, described["level"], layers)


def _figures(layer: Mapping[str, Any]) -> dict[str, Any]:
    """Of a layer of several factors: kept, values and bytes of all together, bits of the longest code."""
    factors = layer["factors"].values()
    return {
        "shape": layer["shape"],
        "kept": layer["kept"],
        "values": sum(factor["codebook"] for factor in factors),
        "bits": max((factor["bits"] for factor in factors), default=0),
        "bytes": layer["stored_bytes"],
    }


def _layer(name: str, a: _File, b: _File) -> dict[str, Any]:
    first, second = a.layers.get(name), b.layers.get(name)
    entry: dict[str, Any] = {"name": name, "first": first, "second": second}
    if first is None or second is None:
        return {**entry, "change": "added" if first is None else "removed"}
    left, right = _array(a.model, name), _array(b.model, name)
    if left.shape != right.shape:
        return {**entry, "change": "shape"}
    differing = int(np.count_nonzero(left != right))
    largest = float(np.abs(left.astype(np.float64) - right.astype(np.float64)).max(initial=0))
    stored = any(first.get(key) != second.get(key) for key in FORM)
    change = "values" if differing or left.dtype != right.dtype else "stored" if stored else "none"
    return {**entry, "change": change, "differing": differing, "largest_difference": largest}


def _array(model: CompressedModel, name: str) -> NDArray[Any]:
    return model.weights[name].dense() if name in model.weights else model.rest[name]


def _flat(facts: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in facts.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _differing(first: Mapping[str, Any], second: Mapping[str, Any]) -> dict[str, list[Any]]:
    names = dict.fromkeys((*first, *second))
    return {name: [first.get(name), second.get(name)] for name in names if first.get(name) != second.get(name)}
