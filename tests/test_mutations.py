"""Thousands of damaged and hostile files: none crashes the reader, holds it up, or is taken for what it is not."""

import itertools
import tracemalloc
from collections import Counter
from collections.abc import Iterator

import pytest
from mutations import damaged, model_digest, mutants, read, sealed
from test_exporters_atmc_file import GOLDEN_MODEL, digits_like

from atmc_tool.compressed import CompressedModel
from exporters.atmc_file import decode_model, encode_model


@pytest.fixture
def traced() -> Iterator[None]:
    tracemalloc.start()
    yield
    tracemalloc.stop()


@pytest.mark.usefixtures("traced")
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
    import random

    content = encode_model(GOLDEN_MODEL)
    outcomes = {read_outcome(sealed(content, random.Random(seed))) for seed in range(60)}
    assert "same" in outcomes
    assert damaged(content, random.Random(0)) != content


def read_outcome(content: bytes) -> str:
    tracemalloc.start()
    try:
        return read(content, model_digest(decode_model(encode_model(GOLDEN_MODEL)))).outcome
    finally:
        tracemalloc.stop()
