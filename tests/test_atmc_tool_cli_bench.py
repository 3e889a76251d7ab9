"""`atmc-tool bench`: which files it compares, and what it says."""

import json
from pathlib import Path

import pytest
from compressed_networks import digits_network
from conftest import Cli

from exporters.atmc_file import encode_model

QUICK = "--threads 1 --rounds 2"


@pytest.fixture
def run(tmp_path: Path, cli: Cli) -> Path:
    folder = tmp_path / "atmc-run"
    folder.mkdir()
    (folder / "model.atmc").write_bytes(encode_model(digits_network()))
    assert cli("export --onnx", tmp_path).code == 0
    return tmp_path


def test_a_decoded_network_is_as_fast_as_the_dense_one(run: Path, cli: Cli) -> None:
    done = cli(f"bench --batch 4 --batch 1 {QUICK} --json", run)
    assert done.code == 0, done.err
    facts = json.loads(done.out)
    assert [each["batch"] for each in facts["speed"]] == [1, 4]
    assert facts["artefact"]["bytes"] == (run / "atmc-run" / "model.onnx").stat().st_size
    assert facts["against"]["bytes"] > 4 * 52_768
    assert facts["settings"]["threads"] == 1
    for side in ("against", "artefact"):
        assert {"p50", "p95", "images_per_second"} <= facts[side]["batches"][0].keys()
        assert facts[side]["load_seconds"] > 0


def test_an_atmc_file_is_exported_for_it_and_nothing_is_left(run: Path, cli: Cli) -> None:
    before = sorted(path.name for path in (run / "atmc-run").iterdir())
    done = cli(f"bench atmc-run/model.atmc {QUICK} -q", run)
    assert (done.code, done.err) == (0, "")
    rows = [[cell.strip() for cell in line.split("│")] for line in done.out.splitlines() if "│" in line]
    better = {row[1].split(":")[-1].strip(): row[2] for row in rows}
    assert better["bytes"] == better["p50, ms"] == "less"
    assert better["images per second"] == "more"
    assert sorted(path.name for path in (run / "atmc-run").iterdir()) == before
    assert "times as fast (spread over the rounds" in done.out
    for row in ("bytes", "loading, ms", "memory while loading", "batch 1: p95, ms", "images per second"):
        assert row in done.out


def test_two_files(run: Path, cli: Cli) -> None:
    done = cli(f"bench atmc-run/model.onnx --against atmc-run/model.onnx {QUICK} --json", run)
    facts = json.loads(done.out)
    assert facts["against"]["bytes"] == facts["artefact"]["bytes"]
    assert facts["against"]["name"] == facts["artefact"]["name"] == "atmc-run/model.onnx"


def test_what_can_not_be(run: Path, cli: Cli) -> None:
    failed = cli("bench atmc-run/model.onnx --against other.onnx", run)
    assert failed.code == 4
    assert "other.onnx is not there: expected dense, or an ONNX file" in failed.error
    (run / "atmc-run" / "model.atmc").write_bytes(encode_model(digits_network(seed=1)))
    failed = cli("bench", run)
    assert failed.code == 4
    assert "the model.atmc that atmc-run/model.onnx was made of is not there" in failed.error
    assert cli("bench --batch 0", run).code == 2
