import resource
from pathlib import Path

import pytest

from atmc_tool.errors import AtmcError
from atmc_tool.metrics import append_metrics, read_metrics, trim_metrics


def test_round_trip(tmp_path: Path) -> None:
    path = tmp_path / "new" / "metrics.jsonl"
    assert read_metrics(path) == []
    lines = [{"step": step, "loss": 0.1 * step, "note": "ä"} for step in (1, 2, 3)]
    for line in lines:
        append_metrics(path, line)
    assert read_metrics(path) == lines
    trim_metrics(path, 2)
    assert read_metrics(path) == lines[:2]


@pytest.mark.parametrize("damage", ['{"step": 2, "lo', '{"step": "x"}', "[]", "\0\0\0", "}", '{"epoch": 1}', "\udcff"])
def test_what_is_no_whole_line_is_passed_over_and_dropped(damage: str, tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"step": 1}\n' + damage.encode(errors="surrogateescape"))
    assert read_metrics(path) == [{"step": 1}]
    trim_metrics(path, 5)
    assert path.read_text() == '{"step": 1}\n'


def test_a_full_disk_is_said(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20, before[1]))
    try:
        with pytest.raises(AtmcError, match=r"can't write .*metrics.jsonl: File too large. Hint: .*--resume"):
            append_metrics(path, {"step": 1, "loss": 0.123456789})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
