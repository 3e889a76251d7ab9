"""Back to a plain dense network, and how large that is: the sizes that `.atmc` is compared with. Needs no torch."""

import gzip
import hashlib
import json
from typing import Any

import safetensors.numpy
from numpy.typing import NDArray

from atmc_tool.compressed import CompressedModel
from atmc_tool.errors import InputError

CARD_KEY = "atmc_tool"


def dense_safetensors(model: CompressedModel) -> bytes:
    """A safetensors file of the plain dense state dict, as `safetensors.torch.load_file` and `read_model` read it.

    Its metadata has one key, as `atmc_tool.models.safetensors_file` writes it: the model card and a digest of card
    and tensors; none where the network has no card. The same model gives the same bytes.
    """
    state = {**model.state(), **_further_names(model)}
    if "card" not in model.manifest:
        return safetensors.numpy.save(state)
    card = json.dumps(model.manifest["card"], separators=(",", ":"))
    return safetensors.numpy.save(state, {CARD_KEY: json.dumps({"card": card, "sha256": state_digest(state, card)})})


def _further_names(model: CompressedModel) -> dict[str, NDArray[Any]]:
    """Every further name of a tied tensor, as the state dict has it.

    Raises:
        InputError: the manifest names a tensor that is not there.
    """
    state, tied = model.state(), model.manifest.get("tied", {})
    if not isinstance(tied, dict) or not all(isinstance(name, str) and name in state for name in tied.values()):
        raise InputError("the list of tied tensors in the model is damaged", expected="name → name of a tensor")
    return {name: state[first] for name, first in tied.items()}


def dense_bytes(model: CompressedModel) -> int:
    """Bytes of the dense network: 4 for every element of every tensor of the state dict, whatever its type."""
    return 4 * sum(array.size for array in model.state().values())


def gzip_dense_bytes(model: CompressedModel) -> int:
    """Bytes of `gzip -9` over the arrays of the dense state dict, one after the other, without any header."""
    content = b"".join(array.tobytes() for array in model.state().values())
    return len(gzip.compress(content, compresslevel=9, mtime=0))


def state_digest(state: dict[str, NDArray[Any]], card: str) -> str:
    """SHA-256 over the card and every tensor's name, type, shape and bytes, in the order of names."""
    digest = hashlib.sha256(card.encode())
    for name in sorted(state):
        array = state[name]
        digest.update(json.dumps([name, f"torch.{array.dtype.name}", list(array.shape)]).encode())
        digest.update(array.tobytes())
    return digest.hexdigest()
