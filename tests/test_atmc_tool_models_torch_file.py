"""Files of torch.save that are damaged or hostile: one line, and nothing of theirs is run."""

import io
import os
import pickle
import random
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from atmc_tool.errors import InputError
from atmc_tool.models.torch_file import load_torch

STATE = {"conv.weight": torch.linspace(-1, 1, 18).reshape(2, 1, 3, 3), "conv.bias": torch.tensor([0.5, -2.0])}
HERE = Path("model.pt")


def _saved(value: object, zipped: bool = True) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, buffer, _use_new_zipfile_serialization=zipped)
    return buffer.getvalue()


def _rezipped(content: bytes, change: Callable[[str, bytes], bytes], compression: int = zipfile.ZIP_STORED) -> bytes:
    """The same archive with other records and matching checksums."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as old, zipfile.ZipFile(buffer, "w", compression) as new:
        for name in old.namelist():
            new.writestr(name, change(name, old.read(name)))
    return buffer.getvalue()


def _flipped(content: bytes, position: int, bit: int) -> bytes:
    damaged = bytearray(content)
    damaged[position] ^= 1 << bit
    return bytes(damaged)


def _same(loaded: Any) -> bool:
    return loaded.keys() == STATE.keys() and all(torch.equal(loaded[name], STATE[name]) for name in STATE)


def _refusal(content: bytes, trust_pickle: bool = False) -> str:
    with pytest.raises(InputError) as caught:
        load_torch(HERE, content, trust_pickle)
    message = str(caught.value)
    assert "model.pt" in message
    assert "\n" not in message
    return message


class Hostile:
    """Makes a folder when it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Callable[..., object], tuple[object, ...]]:
        return os.mkdir, (str(self.marker),)


class HostileFile(Hostile):
    """Makes a file when it is unpickled, by a function of a module that torch does not block by name."""

    def __reduce__(self) -> tuple[Callable[..., object], tuple[object, ...]]:
        return open, (str(self.marker), "w")


FORMATS: dict[str, Callable[[object], bytes]] = {
    "zip": _saved,
    "before torch 1.6": lambda value: _saved(value, zipped=False),
    **{f"pickle {n}": lambda value, n=n: pickle.dumps(value, protocol=n) for n in (2, 4, 5)},  # type: ignore[misc]
}


@pytest.mark.parametrize("hostile", [Hostile, HostileFile])
@pytest.mark.parametrize("written", FORMATS.values(), ids=FORMATS)
@pytest.mark.parametrize("nested", [False, True])
def test_code_in_a_file_is_not_run(
    hostile: type[Hostile], written: Callable[[object], bytes], nested: bool, tmp_path: Path
) -> None:
    marker = tmp_path / "marker"
    value = hostile(marker)
    message = _refusal(written({"state_dict": {"a": torch.ones(1), "b": value}} if nested else value))
    assert not marker.exists()
    assert "contains code" in message
    assert "--trust-pickle" in message


@pytest.mark.parametrize("zipped", [True, False])
def test_that_code_would_run_where_trusted(zipped: bool, tmp_path: Path) -> None:
    marker = tmp_path / "marker"
    load_torch(HERE, _saved(Hostile(marker), zipped), trust_pickle=True)
    assert marker.is_dir()


def test_the_refusal_names_what_would_run(tmp_path: Path) -> None:
    assert "posix.mkdir" in _refusal(_saved(Hostile(tmp_path / "marker"))) or os.name != "posix"
    assert "torch.nn.modules.linear.Linear" in _refusal(_saved(nn.Linear(2, 2)))


@pytest.mark.parametrize("zipped", [True, False])
def test_a_state_dict_needs_no_trust_and_a_module_does(zipped: bool) -> None:
    assert _same(load_torch(HERE, _saved(STATE, zipped), trust_pickle=False))
    assert _same(load_torch(HERE, _saved(STATE, zipped), trust_pickle=True))
    network = nn.Linear(2, 2)
    loaded = load_torch(HERE, _saved(network, zipped), trust_pickle=True)
    assert isinstance(loaded, nn.Linear)
    assert torch.equal(loaded.weight, network.weight)


def test_a_module_whose_class_is_not_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "gone.py").write_text("from torch import nn\nclass Net(nn.Linear): pass\n")
    monkeypatch.syspath_prepend(tmp_path)
    import gone  # type: ignore[import-not-found]

    content = _saved(gone.Net(2, 2))
    del gone.Net
    assert "needs Python code that is not here" in _refusal(content, trust_pickle=True)
    monkeypatch.undo()
    del sys.modules["gone"]
    assert "No module named 'gone'" in _refusal(content, trust_pickle=True)
    assert "contains code (gone.Net)" in _refusal(content)


@pytest.mark.parametrize("zipped", [True, False])
def test_a_truncated_file_is_refused_wherever_it_ends(zipped: bool) -> None:
    content = _saved(STATE, zipped)
    for length in range(1, len(content), 3):
        _refusal(content[:length])
    _refusal(content[:-1])
    _refusal(b"not a model at all")


def test_a_flipped_bit_of_a_zip_is_refused_or_harmless() -> None:
    content = _saved(STATE)
    refused = 0
    for position in range(len(content)):
        try:
            loaded = load_torch(HERE, _flipped(content, position, position % 8), trust_pickle=False)
        except InputError:
            refused += 1
        else:
            assert _same(loaded), position
    assert refused > len(content) // 4  # the rest is padding, times and other fields nobody reads


def test_a_flipped_bit_of_any_record_is_refused() -> None:
    content = _saved(STATE)
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        for name in archive.namelist():
            record = archive.read(name)
            for bit in range(8):
                _refusal(_flipped(content, content.index(record) + len(record) // 2, bit))


def test_a_flipped_bit_of_the_older_format_never_ends_in_another_error() -> None:
    """That format has no checksum: a flipped weight can't be seen, damage to the structure can."""
    content = _saved(STATE, zipped=False)
    refused = 0
    for position in range(len(content)):
        try:
            load_torch(HERE, _flipped(content, position, position % 8), trust_pickle=False)
        except InputError:
            refused += 1
    assert refused > len(content) // 2


def test_any_pickle_with_right_checksums_never_ends_in_another_error() -> None:
    content = _saved(STATE)
    draw = random.Random(0)
    refused = 0
    for _ in range(300):
        try:
            load_torch(HERE, _rezipped(content, lambda name, old: _scrambled(draw, name, old)), trust_pickle=False)
        except InputError:
            refused += 1
    assert refused > 150


def _scrambled(draw: random.Random, name: str, record: bytes) -> bytes:
    return _flipped(record, draw.randrange(len(record)), draw.randrange(8)) if name.endswith("data.pkl") else record


def test_trailing_bytes_of_the_older_format_are_refused() -> None:
    _refusal(_saved(STATE, zipped=False) + b"x")


def test_records_that_expand_are_refused_before_they_do() -> None:
    bomb = _rezipped(_saved(STATE), lambda name, old: bytes(10**7) if "data/0" in name else old, zipfile.ZIP_DEFLATED)
    assert len(bomb) < 20_000
    assert "compressed" in _refusal(bomb)


@pytest.mark.parametrize("zipped", [True, False])
def test_a_stated_size_beyond_the_file_is_refused(zipped: bool) -> None:
    state = {"a": torch.zeros(1000)}
    content = _saved(state, zipped)
    short, long = b"M\xe8\x03", b"\x8a\x05\x00\x00\x00\x00\x01"  # the pickled integers 1000 and 2^32

    def grown(record: bytes) -> bytes:
        assert short in record
        return record.replace(short, long)

    if zipped:
        content = _rezipped(content, lambda name, old: grown(old) if name.endswith("data.pkl") else old)
    else:
        content = grown(content)
    _refusal(content)


def test_a_file_written_without_checksums_is_read() -> None:
    torch.serialization.set_crc32_options(False)
    try:
        content = _saved(STATE)
    finally:
        torch.serialization.set_crc32_options(True)
    assert _same(load_torch(HERE, content, trust_pickle=False))


@pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning", "ignore:.torch.jit:FutureWarning")
def test_torchscript_is_named() -> None:
    buffer = io.BytesIO()
    torch.jit.save(torch.jit.trace(nn.Linear(2, 2), torch.rand(1, 2)), buffer)  # type: ignore[no-untyped-call]
    assert "TorchScript" in _refusal(buffer.getvalue())
    assert "TorchScript" in _refusal(buffer.getvalue(), trust_pickle=True)


def test_tensors_come_to_the_cpu() -> None:
    loaded: dict[str, Tensor] = load_torch(HERE, _saved(STATE), trust_pickle=False)
    assert {tensor.device.type for tensor in loaded.values()} == {"cpu"}
