"""Level 3: exact on what trained networks are like, small where they have structure, and no stream is believed."""

import struct
import time

import numpy as np
import pytest
from atmc_reference import decode as reference_decode
from atmc_reference import manifest_of, seal
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from test_exporters_atmc_file import content_of, reference_content_of

from atmc_tool.compressed import CompressedModel, CompressedWeight, SparseTensor
from atmc_tool.errors import InputError
from exporters import entropy, level3
from exporters.atmc_file import decode_model, describe, encode_model
from exporters.entropy import FactorHeader
from exporters.kernels import Kernels, Shape, kernel_of


def smooth(rng: np.random.Generator, shape: tuple[int, ...]) -> NDArray[np.float64]:
    """Weights (m, n) like those of trained layers: kernels smooth, rows and columns of different sizes."""
    weight = rng.normal(size=shape)
    for axis in range(2, len(shape)):
        weight += 0.8 * np.roll(weight, 1, axis)
    weight *= rng.uniform(0.3, 2, shape[:1] + (1,) * (len(shape) - 1))
    weight *= rng.uniform(0.3, 2, (1, *shape[1:2]) + (1,) * (len(shape) - 2))
    return weight.reshape(shape[0], -1)


def pruned(weight: NDArray[np.float64], density: float, size: int) -> SparseTensor:
    """The largest weights (m, n), on `size` values of float16; as they are where it is 0."""
    weight = np.where(np.abs(weight) >= np.quantile(np.abs(weight), 1 - density), weight, 0)
    positions = np.flatnonzero(weight)
    values = weight.reshape(-1)[positions].astype(np.float32)
    if not size:
        return SparseTensor(weight.shape, positions, values)
    codebook = np.unique(np.quantile(values, (np.arange(size) + 0.5) / size).astype(np.float16)).astype(np.float32)
    codebook = codebook[codebook != 0]
    codes = np.abs(values[:, None] - codebook).argmin(axis=1).astype(np.uint8)
    return SparseTensor(weight.shape, positions, codebook[codes], codes, codebook)


def model_of(*factors: tuple[tuple[int, ...], SparseTensor]) -> CompressedModel:
    """A network of weights of these shapes with one factor each."""
    weights = {}
    for i, (shape, tensor) in enumerate(factors):
        main = CompressedWeight(shape, {}).main
        weights[f"w{i}"] = CompressedWeight(shape, {main: tensor})
    return CompressedModel(weights, {}, b"", {})


def trained(seed: int, shapes: list[tuple[int, ...]], density: float, size: int) -> CompressedModel:
    rng = np.random.default_rng(seed)
    return model_of(*((shape, pruned(smooth(rng, shape), density, size)) for shape in shapes))


def header_of(shape: tuple[int, ...], tensor: SparseTensor) -> FactorHeader:
    size = 0 if tensor.codebook is None else len(tensor.codebook)
    return FactorHeader("w.V", tensor.shape, tensor.kept, size, kernel_of(shape, "V"))


def coded_bytes(shape: tuple[int, ...], tensor: SparseTensor) -> int:
    """All streams of level 3 of one factor, before compression of those of level 1."""
    return sum(len(entropy.compress(part)) for part in level3.encode([tensor], [header_of(shape, tensor)], []).values())


def zero_order_bytes(tensor: SparseTensor) -> float:
    """Entropy of the mask and of the codes, and the codebook in float16."""
    assert tensor.codes is not None
    assert tensor.codebook is not None
    n, k = tensor.shape[0] * tensor.shape[1], tensor.kept
    shares = np.bincount(tensor.codes) / k
    codes = -k * sum(share * np.log2(share) for share in shares if share)
    mask = -k * np.log2(k / n) - (n - k) * np.log2(1 - k / n)
    return float(mask + codes) / 8 + 2 * len(tensor.codebook)


SHAPES: list[tuple[int, ...]] = [
    (8, 6, 3, 3),
    (6, 5, 5, 5),
    (9, 4, 7),
    (20, 16),
    (12, 12, 1, 1),
    (4, 3, 2, 2, 2),
    (2, 1, 9, 9),
]


@settings(max_examples=25)
@given(st.integers(0, 2**32), st.sampled_from([0.02, 0.1, 0.4, 0.9]), st.sampled_from([0, 1, 2, 5, 16, 200]))
def test_trained_networks_both_ways_and_by_a_second_decoder(seed: int, density: float, size: int) -> None:
    model = trained(seed, SHAPES, density, size)
    content = encode_model(model)
    assert content_of(decode_model(content)) == content_of(model)
    assert reference_decode(content) == reference_content_of(model)


def test_many_lanes_and_several_bands() -> None:
    """More symbols than one lane takes; more kernels in a factor than are looked at together."""
    model = trained(0, [(1100, 1000), (64, 64, 3, 3)], 0.01, 16)
    content = encode_model(model)
    assert content_of(decode_model(content)) == content_of(model)
    assert reference_decode(content) == reference_content_of(model)


def test_smooth_kernels_take_less_than_the_zero_order_entropy_and_shuffled_ones_hardly_more() -> None:
    rng = np.random.default_rng(0)
    shape = (64, 64, 3, 3)
    tensor = pruned(smooth(rng, shape), 0.05, 16)
    assert coded_bytes(shape, tensor) < 0.9 * zero_order_bytes(tensor)
    dense = rng.permutation(tensor.dense().reshape(-1))
    positions = np.flatnonzero(dense)
    assert tensor.codebook is not None
    codes = np.searchsorted(tensor.codebook, dense[positions]).astype(np.uint8)
    shuffled = SparseTensor(tensor.shape, positions, dense[positions], codes, tensor.codebook)
    assert coded_bytes(shape, shuffled) < 1.02 * zero_order_bytes(shuffled)


@pytest.mark.parametrize("axes", [(0,), (1,), (0, 1)])
def test_empty_filters_and_channels_cost_a_bit_each(axes: tuple[int, ...]) -> None:
    """Half of the filters or channels removed, the rest full: what is left to code are the codes."""
    rng = np.random.default_rng(0)
    weight = rng.choice([-1.0, 1.0], (64, 64, 3, 3))
    for axis in axes:
        weight[tuple([slice(None)] * axis + [rng.permutation(64)[:32]])] = 0
    tensor = pruned(weight.reshape(64, -1), 1, 2)
    kept = tensor.positions[tensor.values != 0]
    dense = tensor.dense().reshape(-1)[kept]
    tensor = SparseTensor(tensor.shape, kept, dense, (dense > 0).astype(np.uint8), np.array([-1, 1], np.float32))
    assert coded_bytes((64, 64, 3, 3), tensor) < tensor.kept / 8 * 1.01 + 8 * len(axes) + 40


def test_empty_columns_cost_a_bit_each() -> None:
    """The same positions of the same channels removed from all filters, as the structure `column` does."""
    rng = np.random.default_rng(0)
    columns = np.sort(rng.permutation(32 * 9)[:140])
    positions = (np.arange(48)[:, None] * 288 + columns).reshape(-1)
    codes = rng.integers(0, 2, len(positions)).astype(np.uint8)
    codebook = np.array([-1, 1], np.float32)
    model = model_of(((48, 32, 3, 3), SparseTensor((48, 288), positions, codebook[codes], codes, codebook)))
    content = encode_model(model)
    assert content_of(decode_model(content)) == content_of(model)
    assert reference_decode(content) == reference_content_of(model)
    assert describe(content)["streams"]["coded"]["stored_bytes"] < (len(positions) + 288) / 8 * 1.01 + 30


def test_what_level_1_codes_in_less_is_coded_as_there() -> None:
    """Every 37th element: gaps that repeat, which the model of level 3 knows nothing of."""
    positions = np.arange(5, 300 * 500, 37)
    codes = (np.arange(len(positions)) % 2).astype(np.uint8)
    codebook = np.array([-0.5, 0.25], np.float32)
    regular = SparseTensor((300, 500), positions, codebook[codes], codes, codebook)
    rng = np.random.default_rng(0)
    model = model_of(((300, 500), regular), ((8, 8, 3, 3), pruned(smooth(rng, (8, 8, 3, 3)), 0.2, 4)))
    content = encode_model(model)
    assert content_of(decode_model(content)) == content_of(model)
    streams = describe(content)["streams"]
    assert streams["gaps"]["stored_bytes"] + streams["codes"]["stored_bytes"] < 100
    assert streams["coded"]["stored_bytes"] < 150


def test_a_network_of_few_entries_has_hardly_any_overhead() -> None:
    model = trained(0, [(16, 1, 3, 3), (10, 64)], 0.1, 4)
    factors = [tensor for weight in model.weights.values() for tensor in weight.factors.values()]
    facts = describe(encode_model(model))
    assert facts["streams"]["coded"]["stored_bytes"] < sum(zero_order_bytes(tensor) for tensor in factors) * 1.05 + 12


def test_arrays_that_float16_holds_take_half() -> None:
    rng = np.random.default_rng(0)
    exact = rng.normal(size=1000).astype(np.float16).astype(np.float32)
    sizes = {}
    for name, array in (("half", exact), ("single", np.nextafter(exact, np.float32(1)))):
        model = CompressedModel({}, {"a": array, "b": np.arange(3)}, b"", {})
        content = encode_model(model)
        assert content_of(decode_model(content)) == content_of(model)
        sizes[name] = describe(content)["streams"]["rest"]["raw_bytes"]
    assert sizes == {"half": 2024, "single": 4024}


@pytest.mark.parametrize(
    ("shape", "factor", "kernel"),
    [
        ((8, 4, 3, 3), "V", (3, 3)),
        ((8, 4, 3, 3), "C", (3, 3)),
        ((8, 4, 3, 3), "U", (1, 1)),
        ((80, 4, 3, 3), "U", (3, 3)),
        ((8, 4, 2, 3, 5), "V", (6, 5)),
        ((8, 4, 7), "V", (1, 7)),
        ((8, 4, 16, 16), "V", (1, 1)),
        ((8, 4), "V", (1, 1)),
        ((8,), "U", (1, 1)),
    ],
)
def test_kernels_of_a_factor(shape: tuple[int, ...], factor: str, kernel: tuple[int, int]) -> None:
    assert kernel_of(shape, factor) == kernel


@given(st.integers(0, 2**32), st.integers(0, 120))
def test_entries_by_kernels_and_back(seed: int, kept: int) -> None:
    shape = Shape(4, 5, 2, 3)
    positions = np.sort(np.random.default_rng(seed).choice(120, kept, replace=False))
    kernels = Kernels.of(positions, shape)
    kernel, place = kernels.entries()
    assert (kernels.at[kernel] * 6 + place).tolist() == positions.tolist()
    assert kernels.filled.any(axis=0).all()


@pytest.mark.parametrize(("kernel", "density"), [((3, 3), 0.45), ((3, 3), 0.7), ((5, 5), 0.5), ((8, 8), 0.02)])
def test_no_more_symbols_than_are_stated(kernel: tuple[int, int], density: float) -> None:
    rng = np.random.default_rng(1)
    columns = 32 * kernel[0] * kernel[1]
    positions = np.flatnonzero(rng.random(32 * columns) < density)
    ones = np.ones(len(positions), np.float32)
    tensor = SparseTensor((32, columns), positions, ones, np.zeros(len(positions), np.uint8), np.ones(1, np.float32))
    kept = level3._kept(0, tensor, header_of((32, 32, *kernel), tensor))
    coded = level3._run([kept], {})[0].symbols()
    assert coded <= level3._most_symbols(kept.header, kept.shape, kept.held)


def test_what_might_be_too_many_symbols_for_one_lane_takes_more() -> None:
    """One entry in the same place of most kernels: few symbols, of which a reader could expect far more."""
    n = 270
    positions = 64 * np.flatnonzero(np.random.default_rng(0).random(n * n) < 0.89)
    ones = np.ones(len(positions), np.float32)
    tensor = SparseTensor((n, 64 * n), positions, ones, np.zeros(len(positions), np.uint8), np.ones(1, np.float32))
    model = model_of(((n, n, 8, 8), tensor))
    assert content_of(decode_model(encode_model(model))) == content_of(model)


GOOD = encode_model(trained(3, [(8, 6, 3, 3), (20, 16)], 0.2, 4))
MANIFEST = {key: value for key, value in manifest_of(GOOD).items() if key != "streams"}
CODED = level3.encode(
    [factor for weight in decode_model(GOOD).weights.values() for factor in weight.factors.values()],
    [
        FactorHeader("a", (8, 54), 87, 4, (3, 3)),
        FactorHeader("b", (20, 16), 64, 4),
    ],
    [],
)["coded"]


def sealed(coded: bytes, manifest: dict[str, object] | None = None, **contents: bytes) -> bytes:
    return seal(manifest or MANIFEST, {"coded": coded, **contents}, level="3")


def test_the_test_file_is_good_until_it_is_made_bad() -> None:
    assert content_of(decode_model(sealed(CODED))) == content_of(decode_model(GOOD))


def test_any_change_of_the_stream_is_refused_or_another_network() -> None:
    """The digests are right here; without them no change passes at all."""
    rng = np.random.default_rng(0)
    passed = 0
    for _ in range(400):
        damaged = bytearray(CODED)
        for place in rng.integers(0, len(CODED), rng.integers(1, 4)):
            damaged[place] = rng.integers(0, 256)
        if rng.random() < 0.3:
            del damaged[int(rng.integers(1, len(CODED))) :]
        begin = time.process_time()
        try:
            model = decode_model(sealed(bytes(damaged)))
        except InputError:
            continue
        finally:
            assert time.process_time() - begin < 2
        assert content_of(model) != content_of(decode_model(GOOD)) or bytes(damaged) == CODED
        passed += 1
    assert passed < 40


def one_factor(fields: list[tuple[int, int]], shape: list[int], kept: int, words: bytes = b"", size: int = 0) -> bytes:
    """A file of one factor V without codebook, whose `coded` begins with one lane, default weights and these fields."""
    number, at = 0, 0
    for value, width in [(0, 8), *fields]:
        number |= value << at
        at += width
    manifest = {"weights": [{"name": "w", "shape": shape, "factors": {"V": [kept, size]}}], "rest": [], "facts": {}}
    values = np.ones(kept, "<f4").view(np.uint8).reshape(-1, 4).T.tobytes()
    return sealed(number.to_bytes(-(-at // 8), "little") + words, manifest, **({} if size else {"values": values}))


FULL = struct.pack("<2H", 0, 0)
"""The words of no symbols."""


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (sealed(b""), "'streams.coded.bytes'"),
        (sealed(CODED[:1]), "ends inside its fields"),
        (sealed(CODED + b"\0\0"), "does not end where its symbols end"),
        (sealed(CODED + b"\0"), "whole word"),
        (sealed(CODED, codebooks=bytes(16)), "'codebooks'.*expected 0 bytes"),
        (sealed(CODED, gaps=b"\0"), "expected 0 gaps, got 1"),
        (sealed(CODED, codes=b"\0"), "'codes' has another size"),
        (sealed(CODED, rest=b"\0"), "'rest'.*expected 0 bytes"),
        (one_factor([(0, 1), (0, 1), (1, 1), (3, 2), (0, 0)], [2, 4], 6, FULL), "in fewer than 4"),
        (one_factor([(0, 1), (1, 1), (1, 1), (0, 1), (1, 0)], [2, 3], 2, FULL), "can't have 2 entries"),
        (one_factor([(1, 1)], [2, 3], 6, FULL), "codes nothing"),
        (one_factor([(1, 1), (1, 1)], [2, 3], 6), "unused bits"),
        (one_factor([(0, 1), (0, 1), (0, 1), (0, 11)], [4096, 4096], 2048, FULL), "too few entries"),
        (one_factor([(0, 1), (1, 1), (1, 1)], [2**20, 2**10], 1, FULL), "too few entries"),
        (one_factor([(0, 1), (0, 1), (0, 1)], [1, 2**23], 2**16, FULL), "too many symbols"),
        (one_factor([(1, 1), (0, 2), (0, 31)], [2, 3], 0, size=2), "ends inside"),
        (one_factor([(0, 1), (0, 1), (0, 15)], [2, 3], 0, size=1), "zero or not finite"),
        (one_factor([(0, 1), (2, 2), (31744, 15), (0, 5)], [2, 3], 0, size=2), "ends inside|not finite"),
        (one_factor([(0, 1), (3, 2), (5, 15), (0, 5), (1, 1)], [2, 3], 0, size=2), "too many negative"),
        (one_factor([(1, 1), (0, 1), (2**30, 31)], [2, 3], 0, size=1), "16 are enough"),
    ],
)
def test_hostile_streams_are_refused_in_one_line(content: bytes, message: str) -> None:
    begin = time.process_time()
    with pytest.raises(InputError, match=message) as caught:
        decode_model(content)
    assert "\n" not in str(caught.value)
    assert time.process_time() - begin < 1


def test_a_full_factor_has_no_symbols() -> None:
    model = decode_model(one_factor([(0, 1), (0, 1), (0, 1)], [2, 3], 6, FULL))
    assert model.weights["w"].dense().tolist() == [[1, 1, 1], [1, 1, 1]]


def test_weights_are_fitted_where_kernels_are_unlike_the_usual_ones() -> None:
    """Entries on the diagonal: neighbours above and to the left are empty, which the usual weights do not expect."""
    rng = np.random.default_rng(0)
    weight = smooth(rng, (32, 32, 3, 3)).reshape(32, 32, 3, 3) * (0.05 + np.eye(3))
    tensor = pruned(weight.reshape(32, -1), 0.15, 4)
    header = header_of((32, 32, 3, 3), tensor)
    kept = level3._kept(0, tensor, header)
    weights = level3._fit([kept])
    assert "here" in weights
    usual, own = (level3._run([kept], chosen)[0].cost() for chosen in ({}, weights))
    assert own + sum(len(found) for found in weights.values()) < 0.9 * usual
