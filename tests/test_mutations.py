"""Thousands of damaged and hostile files: none crashes the reader, holds it up, or is taken for what it is not."""

import itertools
import random
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
from mutations import damaged, model_digest, mutants, read, sealed
from test_exporters_atmc_file import GOLDEN_MODEL, digits_like

from atmc_tool.compressed import CompressedModel
from exporters.atmc_file import encode_model


@pytest.mark.parametrize(("model", "count"), [(GOLDEN_MODEL, 600), (digits_like("U", "V", "C"), 400)])
def test_mutants_are_refused_or_harmless(model: CompressedModel, count: int) -> None:
    content, honest = encode_model(model), model_digest(model)
    base = read(content, honest)
    assert base.outcome == "same"
    seen: Counter[tuple[str, str]] = Counter()
    for kind, mutant in itertools.islice(mutants(content, 1), count):
        reading = read(mutant, honest)
        seen[kind, reading.outcome] += 1
        assert (kind, reading.outcome) != ("raw", "other")
        assert reading.peak <= 4 * base.peak
        assert reading.seconds < 2
    assert seen["raw", "refused"] > count / 4
    assert seen["sealed", "other"] > 0  # so the digests were got past


def test_mutants_are_the_same_in_every_run() -> None:
    content = encode_model(GOLDEN_MODEL)
    first, again, other = (list(itertools.islice(mutants(content, seed), 20)) for seed in (5, 5, 6))
    assert first == again
    assert first != other
    assert all(mutant != content for kind, mutant in first if kind == "raw")


def test_a_sealed_file_that_says_the_same_is_the_same() -> None:
    """So that what is refused is refused for what was changed."""
    content, honest = encode_model(GOLDEN_MODEL), model_digest(GOLDEN_MODEL)
    outcomes = {read(sealed(content, random.Random(seed)), honest).outcome for seed in range(60)}
    assert "same" in outcomes
    assert damaged(content, random.Random(0)) != content


@pytest.mark.skipif(sys.platform != "linux", reason="the limit is Linux's")
def test_a_reading_can_be_kept_from_growing() -> None:
    """So that a benchmark that says nothing grew is one that would have said so."""
    code = """
import numpy as np
from mutations import bounded, keep_little
keep_little()
np.ones(4_000_000)  # freed
with bounded(4_000_000):
    np.ones(400_000)
    try:
        np.ones(600_000)
    except MemoryError:
        print("refused")
np.ones(600_000)
"""
    folder = Path(__file__).parent
    done = subprocess.run([sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, check=True)
    assert done.stdout == "refused\n"
