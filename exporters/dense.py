"""Back to a plain dense network, and how large that is: the sizes that `.atmc` is compared with."""

import gzip
import hashlib
import json
from typing import Any

import safetensors.numpy
from numpy.typing import NDArray

from atmc_tool.compressed import CompressedModel
from atmc_tool.errors import InputError

CARD_KEY = "atmc_tool"


def dense_state(model: CompressedModel) -> dict[str, NDArray[Any]]:
    """The plain dense state dict, every further name of a tied tensor in it.

    Raises:
        InputError: the manifest names a tensor that is not there.
    """
    state, tied = model.state(), model.manifest.get("tied", {})
    if not isinstance(tied, dict) or not all(isinstance(name, str) and name in state for name in tied.values()):
        raise InputError("the list of tied tensors in the model is damaged", expected="name → name of a tensor")
    return {**state, **{name: state[first] for name, first in tied.items()}}


def dense_card(model: CompressedModel) -> str | None:
    """The JSON of the model card; None where the network has none."""
    return json.dumps(model.manifest["card"], separators=(",", ":")) if "card" in model.manifest else None


def dense_safetensors(model: CompressedModel) -> bytes:
    """A safetensors file of `dense_state`, as `safetensors.torch.load_file` and `read_model` read it.

    Its metadata has one key, as `atmc_tool.models.safetensors_file` writes it: the model card and a digest of card
    and tensors; none where the network has no card. The same model gives the same bytes.
    """
    state, card = dense_state(model), dense_card(model)
    if card is None:
        return safetensors.numpy.save(state)
    return safetensors.numpy.save(state, {CARD_KEY: json.dumps({"card": card, "sha256": state_digest(state, card)})})


def dense_torch(model: CompressedModel) -> bytes:
    """A file of `torch.save` as `train` writes it: `state_dict`, and the model card where there is one. Needs torch."""
    import torch

    from atmc_tool.models.writing import encode_torch

    state = {name: torch.from_numpy(array) for name, array in dense_state(model).items()}
    return encode_torch(state, dense_card(model))


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
