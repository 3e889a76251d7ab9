"""safetensors files of weights; ours carry a model card and a digest, for the format itself has no checksum.

The card and the digest travel as one JSON text under one metadata key, because the safetensors library writes
several keys in random order and the same network should give the same bytes.
"""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from atmc_tool.errors import InputError

METADATA_KEY = "atmc_tool"


def encode_safetensors(state: Mapping[str, Tensor], card: str) -> bytes:
    """`state` (contiguous CPU tensors) and the JSON of its card as the bytes of a safetensors file; deterministic."""
    facts = json.dumps({"card": card, "sha256": _digest(state, card)})
    return safetensors.torch.save(dict(state), metadata={METADATA_KEY: facts})


def decode_safetensors(path: Path, content: bytes) -> tuple[dict[str, Tensor], str | None]:
    """The tensors in `content`, the bytes of `path`, and the JSON of the card, None where the file is not ours.

    Raises:
        InputError: not a whole safetensors file, or one of ours that does not match its digest.
    """
    try:
        state = safetensors.torch.load(content)
    except SafetensorError as error:
        raise InputError(
            f"{path} is damaged or not a safetensors file", expected="a whole safetensors file", got=f"{error}"
        ) from error
    except KeyError as error:  # the library's own table of types ends before the format's
        raise InputError(f"{path} holds a tensor of a type that torch can't hold", got=str(error)) from error
    header_length = int.from_bytes(content[:8], "little")
    metadata = json.loads(content[8 : 8 + header_length]).get("__metadata__", {})
    if METADATA_KEY not in metadata:
        return state, None
    try:
        facts = json.loads(metadata[METADATA_KEY])
        card, digest = str(facts["card"]), str(facts["sha256"])
    except (ValueError, LookupError, TypeError) as error:
        raise InputError(
            f"{path} is damaged", expected=f"a card and a digest as its metadata {METADATA_KEY}"
        ) from error
    if digest != _digest(state, card):
        raise InputError(f"{path} is damaged", expected="tensors that match the file's own SHA-256", got="others")
    return state, card


def _digest(state: Mapping[str, Tensor], card: str) -> str:
    """SHA-256 over the card and every tensor's name, type, shape and bytes, in the order of names."""
    digest = hashlib.sha256(card.encode())
    for name in sorted(state):
        tensor = state[name]
        digest.update(json.dumps([name, str(tensor.dtype), list(tensor.shape)]).encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
