import hashlib
import io
import os
import subprocess
import sys
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from atmc_tool.checkpoint import load_checkpoint, save_checkpoint
from atmc_tool.errors import InputError
from atmc_tool.files import leftovers


def test_round_trip_and_only_the_last_two_stay(tmp_path: Path) -> None:
    for step in (9, 10, 11):
        save_checkpoint(tmp_path, step, {"step": step, "tensors": [torch.full((3,), float(step))]})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-10.ckpt", "step-11.ckpt"]
    state = load_checkpoint(tmp_path)
    assert state is not None
    assert state["step"] == 11
    assert torch.equal(state["tensors"][0], torch.full((3,), 11.0))


def test_no_checkpoint(tmp_path: Path) -> None:
    assert load_checkpoint(tmp_path) is None


@pytest.mark.parametrize("damage", [b"", b"short", None])
def test_a_damaged_checkpoint_gives_way_to_the_one_before(tmp_path: Path, damage: bytes | None) -> None:
    save_checkpoint(tmp_path, 1, {"step": 1})
    save_checkpoint(tmp_path, 2, {"step": 2})
    newest = tmp_path / "step-2.ckpt"
    content = bytearray(newest.read_bytes())
    content[len(content) // 2] ^= 1
    newest.write_bytes(bytes(content) if damage is None else damage)
    state = load_checkpoint(tmp_path)
    assert state is not None
    assert state["step"] == 1
    (tmp_path / "step-1.ckpt").write_bytes(b"")
    with pytest.raises(InputError, match=r"no checkpoint .* is whole"):
        load_checkpoint(tmp_path)


def test_the_format_is_the_digest_and_torchs_own(tmp_path: Path) -> None:
    save_checkpoint(tmp_path, 3, {"tensors": [torch.arange(5.0)], "step": 3})
    content = (tmp_path / "step-3.ckpt").read_bytes()
    assert hashlib.sha256(content[64:]).hexdigest().encode() == content[:64]
    state = torch.load(io.BytesIO(content[64:]), weights_only=True)
    assert torch.equal(state["tensors"][0], torch.arange(5.0))


def test_neither_way_makes_copies(tmp_path: Path) -> None:
    """Bytes objects and buffers are Python's memory, the state's tensors are torch's own."""
    state = {"tensors": [torch.zeros(1 << 20) for _ in range(4)]}

    def most(work: Callable[[], object]) -> int:
        tracemalloc.start()
        work()
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return peak

    assert most(lambda: save_checkpoint(tmp_path, 1, state)) < 1 << 20
    assert most(lambda: load_checkpoint(tmp_path)) < 1 << 20


def test_a_half_written_file_is_not_a_checkpoint(tmp_path: Path) -> None:
    save_checkpoint(tmp_path, 1, {"step": 1})
    (tmp_path / ".step-2.ckpt.abc").write_bytes(b"half")
    state = load_checkpoint(tmp_path)
    assert state is not None
    assert state["step"] == 1


def test_what_killed_writes_left_is_removed(tmp_path: Path) -> None:
    write = "import os\nfrom pathlib import Path\nfrom atmc_tool.files import write_atomic\n"
    kill = "os.fsync = lambda _: os.kill(os.getpid(), 9)\nwrite_atomic(Path('step-2.ckpt'), b'new')\n"
    save_checkpoint(tmp_path, 1, {"step": 1})
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    killed = subprocess.run([sys.executable, "-c", write + kill], cwd=tmp_path, env=environment, check=False)
    assert killed.returncode == -9
    assert len(leftovers(tmp_path)) == 1
    (tmp_path / ".mine.tmp").touch()
    state = load_checkpoint(tmp_path)
    assert state is not None
    assert state["step"] == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == [".mine.tmp", "step-1.ckpt"]
