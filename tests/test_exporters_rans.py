"""The entropy coder: what is written is read, by a second decoder too, in about the ideal size, to the last word."""

import struct
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from slow_decoder import Coded

from atmc_tool.errors import InputError
from exporters.rans import LONGEST_TAIL, RANK, Bits, Decoder, Encoder, Ranks

LANES = [1, 2, 8, 32, 64]


class Symbols:
    """Runs of random bits and ranks that a coder can be given, with the truth or without."""

    def __init__(self, rng: np.random.Generator, lengths: list[int]) -> None:
        self.bits: list[tuple[NDArray[np.uint16], Bits]] = []
        self.ranks: list[tuple[Ranks, NDArray[np.int64], Ranks]] = []
        for length in lengths:
            ones = rng.choice([1, 2, 700, 32768, 60000, 65534, 65535], length).astype(np.uint16)
            self.bits.append((ones, rng.random(length) < ones / 65536))
            size = int(rng.integers(1, 20))
            frequencies = 1 + rng.multinomial((1 << RANK) - size, rng.dirichlet(np.full(size, 0.3)), 3).astype(np.int64)
            context = rng.integers(0, 3, length)
            chosen = [rng.choice(size, p=frequencies[c] / 2**RANK) for c in context]
            self.ranks.append((context, frequencies, np.array(chosen, np.int64)))

    def encoder(self) -> Encoder:
        encoder = Encoder()
        for (ones, bits), (context, frequencies, ranks) in zip(self.bits, self.ranks, strict=True):
            encoder.bits(ones, bits)
            encoder.ranks(context, frequencies, ranks)
        return encoder

    def read(self, decoder: Decoder) -> None:
        for (ones, bits), (context, frequencies, ranks) in zip(self.bits, self.ranks, strict=True):
            assert decoder.bits(ones).tolist() == bits.tolist()
            assert decoder.ranks(context, frequencies).tolist() == ranks.tolist()
        decoder.finish()


@settings(max_examples=60)
@given(st.integers(0, 2**32), st.lists(st.integers(0, 150), max_size=4), st.sampled_from(LANES))
def test_both_ways_are_exact_and_a_second_decoder_agrees(seed: int, lengths: list[int], lanes: int) -> None:
    symbols = Symbols(np.random.default_rng(seed), lengths)
    encoder = symbols.encoder()
    before, words = encoder.words(lanes)
    assert encoder.symbols() == 2 * sum(lengths)
    assert 2 * len(words) <= encoder.cost() * 1.01 + 4 * lanes + 2
    symbols.read(Decoder(words, lanes, before))
    # Lanes and the symbols before the tail; no weights of their own.
    fields = (lanes.bit_length() - 1 | before << 4).to_bytes(5 if lanes > 1 else 1, "little")
    slow = Coded(fields + struct.pack(f"<{len(words)}H", *words.tolist()))
    slow.start()
    for (ones, bits), (context, frequencies, ranks) in zip(symbols.bits, symbols.ranks, strict=True):
        assert [slow.bit(i, p) for i, p in enumerate(ones.tolist())] == bits.tolist()
        found = [slow.symbol(i, RANK, frequencies[c].tolist()) for i, c in enumerate(context)]
        assert found == ranks.tolist()
    slow.finish()


@pytest.mark.parametrize("lanes", LANES)
def test_the_size_is_near_the_entropy(lanes: int) -> None:
    rng = np.random.default_rng(0)
    ones = rng.integers(1, 65536, 20_000).astype(np.uint16)
    encoder = Encoder()
    encoder.bits(ones, rng.random(20_000) < ones / 65536)
    _, words = encoder.words(lanes)
    assert encoder.cost() - 2 <= 2 * len(words) < encoder.cost() * 1.003 + 4 + 1.4 * lanes


@pytest.mark.parametrize("lanes", [1, 8])
def test_too_few_and_too_many_words_are_refused_and_others_mean_something_else(lanes: int) -> None:
    symbols = Symbols(np.random.default_rng(1), [40, 60])
    before, words = symbols.encoder().words(lanes)
    for wrong in (words[:-1], words[:-5], words[: 2 * lanes - 1], words[:0], np.append(words, np.uint16(0))):
        with pytest.raises(InputError):
            read_blindly(symbols, Decoder(wrong, lanes, before))
    for place in range(len(words)):
        wrong = words.copy()
        wrong[place] ^= 1 << place % 16
        with pytest.raises((InputError, AssertionError)):
            symbols.read(Decoder(wrong, lanes, before))


def read_blindly(symbols: Symbols, decoder: Decoder) -> None:
    for (ones, _), (context, frequencies, _) in zip(symbols.bits, symbols.ranks, strict=True):
        decoder.bits(ones)
        decoder.ranks(context, frequencies)
    decoder.finish()


def test_a_state_below_its_range_is_refused() -> None:
    with pytest.raises(InputError, match="below 65536"):
        Decoder(np.array([1, 0, 0, 7], np.uint16), 2)


def test_a_tail_of_hardly_any_information_leaves_the_states_empty() -> None:
    """The last symbols would fill the words of 32 lanes only after too many of them."""
    lanes, n = 32, LONGEST_TAIL + 5000
    encoder = Encoder()
    encoder.bits(np.full(n, 65535, np.uint16), np.ones(n, np.bool_))
    before, words = encoder.words(lanes)
    assert before == n
    decoder = Decoder(words, lanes, before)
    assert decoder.bits(np.full(n, 65535, np.uint16)).all()
    decoder.finish()


def test_a_tail_is_found_without_the_symbols_far_before_it() -> None:
    n = 2_000_000
    encoder = Encoder()
    encoder.bits(np.full(n, 32768, np.uint16), np.arange(n) % 3 == 0)
    tracemalloc.start()
    symbols, _ = encoder._tail(2048)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert 16 * 2046 <= symbols <= 16 * 2048
    assert peak < 16e6


def test_a_tail_that_is_too_long_is_refused_before_it_is_decoded() -> None:
    words = np.array([1, 0] * 32, np.uint16)
    with pytest.raises(InputError, match="tail of the coded stream is too long"):
        Decoder(words, 32, 0).bits(np.full(LONGEST_TAIL + 1, 1, np.uint16))


def test_lanes_that_never_come_to_the_tail_are_refused() -> None:
    symbols = Symbols(np.random.default_rng(2), [400, 300])
    before, words = symbols.encoder().words(8)
    for wrong in (before + 1, before - 1, 2**28 - 1, 0):
        with pytest.raises((InputError, AssertionError)):
            symbols.read(Decoder(words, 8, wrong))
