"""safetensors files: other people's are read as they are, damage to ours is always seen."""

import json
from collections.abc import Mapping
from pathlib import Path

import pytest
import safetensors.torch
import torch
from torch import Tensor

from atmc_tool.errors import InputError
from atmc_tool.models.safetensors_file import METADATA_KEY, decode_safetensors, encode_safetensors

HERE = Path("model.safetensors")
STATE = {
    "conv.weight": torch.linspace(-1, 1, 18).reshape(2, 1, 3, 3),
    "conv.bias": torch.tensor([0.5, -2.0]),
    "bn.num_batches_tracked": torch.tensor(7),
    "half": torch.ones(3, dtype=torch.bfloat16),
    "nothing": torch.zeros(0, 4),
}
CARD = '{"arch": "lenet"}'


def _same(loaded: Mapping[str, Tensor]) -> bool:
    return loaded.keys() == STATE.keys() and all(
        loaded[name].dtype == STATE[name].dtype and torch.equal(loaded[name], STATE[name]) for name in STATE
    )


def _flipped(content: bytes, position: int, bit: int) -> bytes:
    damaged = bytearray(content)
    damaged[position] ^= 1 << bit
    return bytes(damaged)


def _refusal(content: bytes) -> str:
    with pytest.raises(InputError) as caught:
        decode_safetensors(HERE, content)
    message = str(caught.value)
    assert "model.safetensors" in message
    assert "\n" not in message
    return message


def test_what_is_written_is_read_by_us_and_by_anyone() -> None:
    content = encode_safetensors(STATE, CARD)
    loaded, card = decode_safetensors(HERE, content)
    assert _same(loaded)
    assert card == CARD
    assert _same(safetensors.torch.load(content))


def test_the_same_network_gives_the_same_bytes_in_any_order() -> None:
    content = encode_safetensors(STATE, CARD)
    assert all(encode_safetensors(STATE, CARD) == content for _ in range(5))
    assert encode_safetensors(dict(reversed(STATE.items())), CARD) == content


def test_other_peoples_files_have_no_card() -> None:
    for metadata in (None, {"format": "pt"}):
        loaded, card = decode_safetensors(HERE, safetensors.torch.save(STATE, metadata=metadata))
        assert _same(loaded)
        assert card is None


def test_a_flipped_bit_of_ours_is_refused_or_harmless() -> None:
    content = encode_safetensors(STATE, CARD)
    accepted = 0
    for position in range(len(content)):
        for bit in range(8):
            try:
                loaded, card = decode_safetensors(HERE, _flipped(content, position, bit))
            except InputError:
                continue
            accepted += 1
            assert _same(loaded)
            assert card in (CARD, None)
    # The name of the metadata key can turn into another one: that file reads as someone else's, with its weights whole.
    assert accepted < 8 * len(METADATA_KEY) + 8


def test_every_flipped_bit_of_the_tensors_is_refused() -> None:
    content = encode_safetensors(STATE, CARD)
    start = 8 + int.from_bytes(content[:8], "little")
    for position in range(start, len(content)):
        assert "SHA-256" in _refusal(_flipped(content, position, position % 8))


def test_a_truncated_file_is_refused_wherever_it_ends() -> None:
    content = encode_safetensors(STATE, CARD)
    for length in range(len(content)):
        _refusal(content[:length])


@pytest.mark.parametrize(
    "facts", ["", "null", "[]", '"card"', '{"card": "{}"}', '{"sha256": "0"}', '{"card": "{}", "sha256": "0"}']
)
def test_a_key_of_ours_without_what_belongs_there_is_refused(facts: str) -> None:
    _refusal(safetensors.torch.save(STATE, metadata={METADATA_KEY: facts}))


def test_a_tensor_type_that_torch_lacks_is_named() -> None:
    header = json.dumps({"a": {"dtype": "F4", "shape": [4], "data_offsets": [0, 2]}}).encode()
    assert "F4" in _refusal(len(header).to_bytes(8, "little") + header + bytes(2))
