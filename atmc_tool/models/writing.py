"""Trained networks into files that say what they are."""

import io
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from atmc_tool.errors import UsageError
from atmc_tool.files import write_atomic
from atmc_tool.model_card import ModelCard
from atmc_tool.models.reading import CARD_KEY
from atmc_tool.models.safetensors_file import encode_safetensors


def write_model(path: Path, state: Mapping[str, Tensor], card: ModelCard) -> None:
    """Write weights and card to `path`: `.pt` (`torch.save`, for anyone's `torch.load`) or `.safetensors`.

    The same weights and card give the same bytes. The file is whole or absent.

    Raises:
        UsageError: another suffix.
        AtmcError: the file can't be written.
    """
    own = {name: tensor.detach().cpu().clone(memory_format=torch.contiguous_format) for name, tensor in state.items()}
    text = card.model_dump_json()
    if path.suffix == ".pt":
        content = encode_torch(own, text)
    elif path.suffix == ".safetensors":
        content = encode_safetensors(own, text)
    else:
        raise UsageError(
            f"can't write a network to {path}", expected=".pt or .safetensors", got=path.suffix or "no suffix"
        )
    write_atomic(path, content)


def encode_torch(state: Mapping[str, Tensor], card: str | None) -> bytes:
    """`state` and the JSON of its card, where it has one, as the bytes of a file of `torch.save`; deterministic."""
    buffer = io.BytesIO()
    torch.save({"state_dict": dict(state), **({} if card is None else {CARD_KEY: card})}, buffer)
    return buffer.getvalue()
