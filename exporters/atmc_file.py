"""A whole compressed network as one small file, `.atmc`: written, read, described. The format is FORMAT.md.

A stream costs about 100 bytes (header entry, digest), so there are few for the whole network and none per layer. A
digits network, 2,638 of 52,768 weights kept, 16 values, takes 5,546 bytes: header 461, manifest 1,307 (more than twice
that as plain JSON, so it is a stream too, and only what identifies the file stands in the header), skeleton 410, biases
449, weights 2,919. At level 1, which is still read, weights take 3,222.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import numpy as np

from atmc_tool.compressed import FACTOR_NAMES, CompressedModel, CompressedWeight, SparseTensor
from atmc_tool.errors import AtmcError, InputError
from atmc_tool.files import read_bytes, sha256
from exporters import entropy, level3
from exporters.container import Limits, header_end, read_container, write_container
from exporters.manifest import Manifest, Stream, StreamEntry, WeightEntry, parse_manifest
from exporters.rest_arrays import decode_rest, encode_rest, halves_of, rest_entry
from exporters.strict_json import brief

FORMAT, VERSION = "atmc", "1"
LEVEL, LEVELS = 3, ("1", "3")
"""The level that is written, and those that are read. Level 2 was written, in several ways, before any release."""

ABOUT = "compressed network, made and read by atmc-tool"
NO_DIGEST = "0" * 64
LIMITS = Limits()


def encode_model(model: CompressedModel) -> bytes:
    """The bytes of the `.atmc` file; the same for equal models (and the same liblzma).

    Raises:
        AtmcError: a value is NaN or infinite, an element type is not stored, or the network is beyond the limits.
        ValueError: the model breaks a rule of `CompressedModel`, or its manifest is not JSON.
    """
    weights = [_weight_entry(name, weight) for name, weight in model.weights.items()]
    rest = [rest_entry(name, array) for name, array in model.rest.items()]
    factors = [weight.factors[f] for weight in model.weights.values() for f in FACTOR_NAMES if f in weight.factors]
    headers = [header for entry in weights for header in entry.headers().values()]
    halves = halves_of(model.rest)
    contents = {
        "skeleton": model.skeleton,
        "rest": encode_rest(model.rest, halves),
        **level3.encode(factors, headers, halves),
    }
    stored = {
        name: entropy.store(content) if name == "coded" else entropy.compress(content, lp=2 if name == "rest" else 0)
        for name, content in contents.items()
        if content
    }
    streams = {name: StreamEntry(bytes=len(contents[name]), sha256=sha256(stored[name])) for name in stored}
    fields = {"weights": weights, "rest": rest, "streams": streams, "facts": dict(model.manifest)}
    manifest = Manifest.model_validate(fields)
    try:
        manifest.check_limits(LIMITS, LEVEL)
    except InputError as error:
        raise AtmcError(f"this network can't be stored: {error}") from error
    head = entropy.compress(manifest.to_json())
    metadata = {"format": FORMAT, "version": VERSION, "level": str(LEVEL), "sha256": NO_DIGEST, "about": ABOUT}
    content = write_container({"manifest": head, **stored}, metadata)
    return content.replace(NO_DIGEST.encode(), _root(content, NO_DIGEST, len(head)).encode(), 1)


def encoded_bytes(model: CompressedModel) -> int:
    """Size of the `.atmc` file in bytes, exact. About 150 ms for 20,600 entries of 430,500 weights on one core."""
    return len(encode_model(model))


def _weight_entry(name: str, weight: CompressedWeight) -> WeightEntry:
    kept = {
        factor: (tensor.kept, 0 if tensor.codebook is None else len(tensor.codebook))
        for factor, tensor in sorted(weight.factors.items(), key=lambda item: FACTOR_NAMES.index(item[0]))
    }
    entry = WeightEntry.model_validate({"name": name, "shape": [int(size) for size in weight.shape], "factors": kept})
    for factor, header in entry.headers().items():
        tensor = weight.factors[factor]
        if not np.isfinite(tensor.values).all():
            raise AtmcError(
                f"{header.name} has values that are NaN or infinite", hint="training diverged; lower the learning rate"
            )
        if fault := header.fault(tensor):
            raise ValueError(f"{header.name} {fault}")
    return entry


def decode_model(content: bytes, limits: Limits = LIMITS) -> CompressedModel:
    """The model that `encode_model` was given, bit by bit.

    Raises:
        InputError: `content` is damaged, not an `.atmc` file, of an unknown version or level, or beyond `limits`.
    """
    return _assemble(_open(content, limits)).model


def read_atmc(path: Path) -> CompressedModel:
    """The network in the file `path`.

    Raises:
        InputError: as `decode_model`, and where the file can't be read.
    """
    content = read_bytes(path, LIMITS.file_bytes)
    try:
        return decode_model(content)
    except InputError as error:
        raise InputError(f"{path} can't be used: {error}") from error


@dataclass(frozen=True)
class _Opened:
    """A checked file: its level, manifest and root digest, and of every stream the stored size and the content."""

    level: int
    manifest: Manifest
    digest: str
    stored: Mapping[str, int]
    contents: Mapping[str, bytes]


def _root(content: bytes, digest: str, manifest_bytes: int) -> str:
    """SHA-256 of the header, its `digest` as zeros, and of the stored manifest, which holds all other digests."""
    start = header_end(content)
    header = content[:start].replace(digest.encode(), NO_DIGEST.encode(), 1)
    return sha256(header + content[start : start + manifest_bytes])


def _open(content: bytes, limits: Limits) -> _Opened:
    """Everything that can be checked before the tensors are made."""
    streams, metadata = read_container(content, limits)
    if metadata.get("format") != FORMAT:
        raise InputError("not an .atmc file", expected=f"format {FORMAT!r}", got=brief(metadata.get("format")))
    for field, known in (("version", (VERSION,)), ("level", LEVELS)):
        if metadata.get(field) not in known:
            expected, hint = " or ".join(known), "upgrade atmc-tool to read it"
            if field == "level" and metadata.get(field) == "2":
                hint = "it was written by a version before 0.1.0: compress again"
            raise InputError(f"unknown format {field}", expected=expected, got=brief(metadata.get(field)), hint=hint)
    level = int(metadata["level"])
    if next(iter(streams), None) != "manifest":
        raise InputError("the first stream is not the manifest", got=brief(next(iter(streams), None)))
    stored = {name: stream.tobytes() for name, stream in streams.items()}
    digest = metadata.get("sha256", "")
    if digest != _root(content, digest, len(stored["manifest"])):
        raise InputError("the file is damaged: header and manifest do not have the digest that the header states")
    text = entropy.decompress(stored.pop("manifest"), limits.manifest_bytes, "manifest", exact=False)
    manifest = parse_manifest(text)
    if set(stored) != set(manifest.streams):
        expected, got = brief(sorted(manifest.streams)), brief(sorted(stored))
        raise InputError("the file does not hold the streams of its manifest", expected=expected, got=got)
    for name, entry in manifest.streams.items():
        if sha256(stored[name]) != entry.sha256:
            raise InputError(f"the file is damaged: stream {name!r} does not have the digest that the manifest states")
    manifest.check_limits(limits, level)
    contents: dict[str, bytes] = dict.fromkeys(get_args(Stream), b"")
    for name, entry in manifest.streams.items():
        contents[name] = entropy.decompress(stored[name], entry.bytes, f"stream {name!r}")
    return _Opened(level, manifest, digest, {name: len(stream) for name, stream in streams.items()}, contents)


@dataclass(frozen=True)
class _Assembled:
    """The network, and how its factors, in the order of the file, share the streams."""

    model: CompressedModel
    shares: Sequence[level3.Share]


def _assemble(opened: _Opened) -> _Assembled:
    """The network from streams whose sizes follow from the manifest."""
    manifest, contents, headers = opened.manifest, opened.contents, opened.manifest.factors()
    singles = sum(entry.dtype == "F32" for entry in manifest.rest)
    if opened.level == 1:
        factors, halves = entropy.decode_factors(contents, headers), [False] * singles
        shares = [level3.Share(0, True)] * len(factors)
    else:
        decoded = level3.decode(contents, headers, singles)
        factors, halves, shares = decoded.factors, decoded.halves, decoded.shares
    rest = decode_rest(contents["rest"], manifest.rest, halves)
    one = iter(factors)
    weights = {
        entry.name: CompressedWeight(tuple(entry.shape), {factor: next(one) for factor in entry.headers()})
        for entry in manifest.weights
    }
    return _Assembled(CompressedModel(weights, rest, contents["skeleton"], manifest.facts), shares)


def describe(content: bytes, limits: Limits = LIMITS) -> dict[str, Any]:
    """What an `.atmc` file is, as plain JSON values; all sizes in bytes unless they say bits.

    `nominal_bits` is the paper's size (arXiv:1902.03538): nonzeros · bits + 32 · codebook values.
    A layer's `stored_bytes` is its share of the streams that all layers share, by its bytes before compression; what is
    nobody's own, such as the weights of the model of level 3, is in no share.

    Raises:
        InputError: as `decode_model`.
    """
    opened = _open(content, limits)
    assembled, manifest = _assemble(opened), opened.manifest
    ratios: dict[str, float] = {name: opened.stored[name] / entry.bytes for name, entry in manifest.streams.items()}
    shares = iter(assembled.shares)
    layers = []
    for name, weight in assembled.model.weights.items():
        own = {factor: _factor_bytes(tensor, next(shares), ratios) for factor, tensor in weight.factors.items()}
        layers.append(_describe_layer(name, weight, own))
    rest = [{"name": e.name, "dtype": e.dtype, "shape": e.shape, "bytes": e.bytes} for e in manifest.rest]
    totals = {key: sum(layer[key] for layer in layers) for key in ("weights", "kept", "nominal_bits")}
    return {
        "format": FORMAT,
        "version": int(VERSION),
        "level": opened.level,
        "digests": {
            "file": sha256(content),
            "root": opened.digest,
            **{name: entry.sha256 for name, entry in manifest.streams.items()},
        },
        "streams": {
            "header": {"stored_bytes": header_end(content)},
            "manifest": {"stored_bytes": opened.stored["manifest"]},
            **{
                name: {"stored_bytes": opened.stored[name], "raw_bytes": entry.bytes}
                for name, entry in manifest.streams.items()
            },
        },
        "layers": layers,
        "rest": rest,
        "totals": {
            **totals,
            "density": totals["kept"] / totals["weights"] if totals["weights"] else 0.0,
            "file_bytes": len(content),
        },
        "manifest": manifest.facts,
    }


def _factor_bytes(tensor: SparseTensor, share: level3.Share, ratios: Mapping[str, float]) -> int:
    """A factor's part of the streams, by their bytes before compression."""
    parts: dict[str, float] = {name: len(part) for name, part in entropy.encode_factors([tensor]).items()}
    own = parts if share.plain else {"values": parts["values"]}
    return round(sum(size * ratios.get(name, 0) for name, size in [*own.items(), ("coded", share.coded)]))


def _describe_layer(name: str, weight: CompressedWeight, own: Mapping[str, int]) -> dict[str, Any]:
    factors: dict[str, dict[str, Any]] = {
        factor: {
            "shape": list(tensor.shape),
            "kept": tensor.kept,
            "bits": tensor.bits,
            "codebook": 0 if tensor.codebook is None else len(tensor.codebook),
            "stored_bytes": own[factor],
        }
        for factor, tensor in weight.factors.items()
    }
    weights, kept = int(np.prod(weight.shape)), sum(tensor.kept for tensor in weight.factors.values())
    nonzero = np.any(weight.dense().reshape(*weight.shape[:2], -1), axis=2)
    return {
        "name": name,
        "shape": list(weight.shape),
        "weights": weights,
        "kept": kept,
        "density": kept / weights,
        "factors": factors,
        "empty_filters": np.flatnonzero(~nonzero.any(axis=1)).tolist(),
        "empty_channels": np.flatnonzero(~nonzero.any(axis=0)).tolist(),
        "nominal_bits": sum(tensor.nominal_bits for tensor in weight.factors.values()),
        "stored_bytes": sum(f["stored_bytes"] for f in factors.values()),
    }
