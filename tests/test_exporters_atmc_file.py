"""`.atmc`: exact both ways, one specification and two decoders, and no damaged or hostile file is believed."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
from atmc_reference import decode as reference_decode
from golden.golden_models import golden_model
from hypothesis import example, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from safetensors import safe_open

from atmc_tool.compressed import CompressedModel, CompressedWeight, SparseTensor, sparsify
from atmc_tool.errors import AtmcError, InputError
from exporters.atmc_file import decode_model, describe, encode_model, encoded_bytes, read_atmc

GOLDEN = Path(__file__).parent / "golden"
GOLDEN_MODEL = golden_model(3)
DTYPES = ["float64", "float32", "float16", "int64", "int32", "int16", "int8"]
DTYPES += ["uint64", "uint32", "uint16", "uint8", "bool"]
SHAPES = [(1, 1), (7, 1), (5,), (1, 9), (4, 6), (6, 4), (3, 2, 3, 3), (40, 1, 3, 3), (2, 300), (300, 2)]
JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=6,
)


def random_floats(rng: np.random.Generator, n: int) -> NDArray[np.float32]:
    """Any finite float32 but zero: all exponents and subnormals, for the file must keep every bit."""
    values = rng.integers(0, 2**32, 2 * n + 40, dtype=np.uint32).view(np.float32)
    finite: NDArray[np.float32] = values[np.isfinite(values) & (values != 0)]
    return finite[:n]


def random_factor(rng: np.random.Generator, shape: tuple[int, int], kept: int, codebook_size: int) -> SparseTensor:
    positions = np.sort(rng.choice(shape[0] * shape[1], kept, replace=False)).astype(np.int64)
    if not codebook_size:
        return SparseTensor(shape, positions, random_floats(rng, kept))
    codebook = np.unique(random_floats(rng, codebook_size))
    codes = rng.integers(0, len(codebook), kept).astype(np.uint8)
    return SparseTensor(shape, positions, codebook[codes], codes, codebook)


@st.composite
def models(draw: st.DrawFn) -> CompressedModel:
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    names = draw(st.lists(st.text(min_size=1, max_size=12), unique=True, max_size=6))
    n_weights = draw(st.integers(0, min(3, len(names))))
    weights, rest = {}, {}
    for name in names[:n_weights]:
        weight = CompressedWeight(draw(st.sampled_from(SHAPES)), {})
        factors = {}
        for factor in draw(st.lists(st.sampled_from("UVC"), unique=True)):
            rows, columns = weight.factor_shape(factor)
            kept = draw(st.integers(0, rows * columns) | st.just(0))
            codebook_size = draw(st.sampled_from([0, 1, 2, 3, 4, 5, 16, 17, 128, 256]))
            factors[factor] = random_factor(rng, (rows, columns), kept, codebook_size)
        weights[name] = CompressedWeight(weight.shape, factors)
    for name in names[n_weights:]:
        dtype, shape = draw(st.sampled_from(DTYPES)), draw(st.sampled_from([(), (0,), (5,), (2, 0), (2, 3, 1)]))
        rest[name] = (random_floats(rng, int(np.prod(shape))) % 100).astype(dtype).reshape(shape)
    facts = draw(st.dictionaries(st.text(), JSON, max_size=3))
    return CompressedModel(weights, rest, draw(st.binary(max_size=60)), facts)


def bits(array: NDArray[Any] | None) -> tuple[str, tuple[int, ...], bytes] | None:
    return None if array is None else (array.dtype.str, array.shape, array.tobytes())


def content_of(model: CompressedModel) -> dict[str, Any]:
    """Everything in `model` as comparable values; arrays by their bits."""
    return {
        "weights": [
            (name, weight.shape, {factor: {k: bits(v) if k != "shape" else v for k, v in vars(tensor).items()}
                                  for factor, tensor in weight.factors.items()})
            for name, weight in model.weights.items()
        ],
        "rest": [(name, bits(array)) for name, array in model.rest.items()],
        "skeleton": model.skeleton,
        "manifest": model.manifest,
    }  # fmt: skip


def reference_content_of(model: CompressedModel) -> dict[str, Any]:
    """`model` in the form in which the reference decoder gives it."""
    known = {"float64": "F64", "float32": "F32", "float16": "F16", "bool": "BOOL"}

    def factor(tensor: SparseTensor) -> tuple[Any, ...]:
        codes = [None] * tensor.kept if tensor.codes is None else tensor.codes.tolist()
        values = [value.tobytes() for value in tensor.values.astype("<f4")]
        codebook = None if tensor.codebook is None else [value.tobytes() for value in tensor.codebook.astype("<f4")]
        return tensor.shape, list(zip(tensor.positions.tolist(), values, codes, strict=True)), codebook

    return {
        "weights": {
            name: (weight.shape, {name: factor(tensor) for name, tensor in weight.factors.items()})
            for name, weight in model.weights.items()
        },
        "rest": {
            name: (
                known.get(array.dtype.name, array.dtype.name.upper().replace("INT", "I").replace("UI", "U")),
                array.shape,
                array.astype(array.dtype.newbyteorder("<")).tobytes(),
            )
            for name, array in model.rest.items()
        },
        "skeleton": model.skeleton,
        "facts": model.manifest,
    }


@given(models())
@example(CompressedModel({}, {}, b"", {}))
@example(GOLDEN_MODEL)
def test_both_ways_are_exact_and_a_second_decoder_agrees(model: CompressedModel) -> None:
    content = encode_model(model)
    decoded = decode_model(content)
    assert content_of(decoded) == content_of(model)
    assert encode_model(decoded) == content
    assert reference_decode(content) == reference_content_of(model)
    assert encoded_bytes(model) == len(content)


@settings(max_examples=30)
@given(models())
def test_the_safetensors_library_reads_it(model: CompressedModel) -> None:
    streams = safetensors.numpy.load(encode_model(model))
    known = {"manifest", "skeleton", "rest", "coded", "values", "codes", "gaps"}
    assert "manifest" in streams
    assert streams.keys() <= known
    assert all(stream.dtype == np.uint8 and stream.size for stream in streams.values())


def test_a_stranger_sees_what_it_is(tmp_path: Path) -> None:
    (tmp_path / "model.atmc").write_bytes(encode_model(GOLDEN_MODEL))
    with safe_open(tmp_path / "model.atmc", "numpy") as file:
        metadata = file.metadata()
    assert (metadata["format"], metadata["version"], metadata["level"]) == ("atmc", "1", "3")
    assert "atmc-tool" in metadata["about"]


def test_arrays_of_a_read_model_can_be_written() -> None:
    """`torch.from_numpy` warns of arrays that can't."""
    model = decode_model(encode_model(GOLDEN_MODEL))
    arrays = list(model.rest.values())
    for weight in model.weights.values():
        arrays += [tensor.values for tensor in weight.factors.values()]
    assert all(array.flags.writeable for array in arrays)


def test_the_order_of_facts_and_factors_does_not_change_the_bytes() -> None:
    weights = {
        name: CompressedWeight(weight.shape, dict(reversed(list(weight.factors.items()))))
        for name, weight in GOLDEN_MODEL.weights.items()
    }
    facts = dict(reversed(list(GOLDEN_MODEL.manifest.items())))
    turned = CompressedModel(weights, GOLDEN_MODEL.rest, GOLDEN_MODEL.skeleton, facts)
    assert encode_model(turned) == encode_model(GOLDEN_MODEL)


@pytest.mark.parametrize("level", [1, 3])
def test_the_golden_files_load_for_ever(level: int) -> None:
    content, model = (GOLDEN / f"level{level}.atmc").read_bytes(), golden_model(level)
    assert content_of(decode_model(content)) == content_of(model)
    assert reference_decode(content) == reference_content_of(model)
    assert describe(content)["level"] == level


def test_a_file_from_before_any_release_is_refused_with_a_way_out() -> None:
    content = encode_model(GOLDEN_MODEL).replace(b'"level":"3"', b'"level":"2"', 1)
    with pytest.raises(InputError, match=r"unknown format level: expected 1 or 3.*before 0\.1\.0: compress again"):
        decode_model(content)


def layer(rng: np.random.Generator, shape: tuple[int, ...], density: float, *factors: str) -> CompressedWeight:
    weight = CompressedWeight(shape, {})
    filled = {}
    for factor in factors:
        rows, columns = weight.factor_shape(factor)
        kept = round(rows * columns * density) if factor == weight.main else 0
        filled[factor] = random_factor(rng, (rows, columns), kept, 16 if kept else 0)
    return CompressedWeight(shape, filled)


def digits_like(*factors: str) -> CompressedModel:
    """The size of the digits network: 52,768 weights, 5 % kept, 4 bits, biases."""
    rng = np.random.default_rng(0)
    shapes = {"conv1": (32, 1, 3, 3), "conv2": (64, 32, 3, 3), "fc1": (128, 256), "fc2": (10, 128)}
    weights = {f"{name}.weight": layer(rng, shape, 0.05, *factors) for name, shape in shapes.items()}
    rest = {f"{name}.bias": rng.normal(size=shape[0]).astype(np.float32) for name, shape in shapes.items()}
    return CompressedModel(weights, rest, b"", {})


def test_size_of_a_small_network() -> None:
    """Gaps and codes of 2,638 entries at 5 % have about 2,860 bytes of entropy, biases and codebooks 1,192."""
    assert encoded_bytes(digits_like("U", "V")) < 5350


def test_an_empty_factor_costs_no_more_than_its_name() -> None:
    without, with_c = encoded_bytes(digits_like("U", "V")), encoded_bytes(digits_like("U", "V", "C"))
    assert with_c - without <= sum(len(f"{name}.weight.C") for name in ("conv1", "conv2", "fc1", "fc2"))


def test_every_flipped_bit_is_found() -> None:
    content = encode_model(golden_model(1))
    for position in range(len(content)):
        for bit in range(8):
            damaged = bytearray(content)
            damaged[position] ^= 1 << bit
            with pytest.raises(InputError):
                decode_model(bytes(damaged))


def test_every_cut_and_any_addition_is_found() -> None:
    content = encode_model(GOLDEN_MODEL)
    for length in range(len(content)):
        with pytest.raises(InputError):
            decode_model(content[:length])
    with pytest.raises(InputError):
        decode_model(content + b"\0")


def test_a_damaged_stream_is_named() -> None:
    content = bytearray(encode_model(GOLDEN_MODEL))
    content[-1] ^= 1
    with pytest.raises(InputError, match="damaged: stream 'gaps'"):
        decode_model(bytes(content))


def test_read_atmc_names_the_file(tmp_path: Path) -> None:
    path = tmp_path / "model.atmc"
    with pytest.raises(InputError, match=r"model\.atmc"):
        read_atmc(path)
    with pytest.raises(InputError, match="can't read"):
        read_atmc(tmp_path)
    path.write_bytes(b"")
    with pytest.raises(InputError, match=r"model\.atmc can't be used: file is too short"):
        read_atmc(path)
    path.write_bytes(encode_model(GOLDEN_MODEL))
    assert content_of(read_atmc(path)) == content_of(GOLDEN_MODEL)


def one_factor(tensor: SparseTensor) -> CompressedModel:
    return CompressedModel({"w": CompressedWeight((2, 3), {"V": tensor})}, {}, b"", {})


def test_networks_that_diverged_are_not_written() -> None:
    bad = SparseTensor((2, 3), np.array([1]), np.array([np.nan], np.float32))
    with pytest.raises(AtmcError, match=r"w\.V has values that are NaN or infinite.*diverged"):
        encode_model(one_factor(bad))
    with pytest.raises(AtmcError, match="b has values that are NaN or infinite"):
        encode_model(CompressedModel({}, {"b": np.array([np.inf], np.float16)}, b"", {}))


def test_what_no_reader_would_take_is_not_written() -> None:
    with pytest.raises(AtmcError, match=r"a type that can't be stored.*complex64"):
        encode_model(CompressedModel({}, {"b": np.zeros(1, np.complex64)}, b"", {}))
    with pytest.raises(AtmcError, match="can't be stored: tensors are too large"):
        encode_model(CompressedModel({"w": CompressedWeight((2**16, 2**16), {})}, {}, b"", {}))
    with pytest.raises(AtmcError, match="can't be stored: manifest names the tensor 'w' twice"):
        encode_model(CompressedModel({"w": CompressedWeight((1, 1), {})}, {"w": np.zeros(1)}, b"", {}))


@pytest.mark.parametrize("facts", [{"a": float("nan")}, {"a": {1, 2}}, {"a": b"bytes"}, {1: "a", "b": 2}])
def test_facts_that_are_not_json_are_not_written(facts: dict[Any, Any]) -> None:
    with pytest.raises((ValueError, TypeError)):
        encode_model(CompressedModel({}, {}, b"", facts))


def test_broken_factors_are_not_written() -> None:
    bad = SparseTensor((2, 3), np.array([3, 1]), np.array([1, 2], np.float32))
    with pytest.raises(ValueError, match=r"w\.V has positions that do not increase"):
        encode_model(one_factor(bad))
    with pytest.raises(ValueError, match=r"w\.V has shape"):
        encode_model(one_factor(SparseTensor((3, 2), np.array([1]), np.array([1], np.float32))))


def test_the_description_adds_up() -> None:
    model = digits_like("U", "V", "C")
    content = encode_model(model)
    facts = describe(content)
    assert json.loads(json.dumps(facts)) == facts
    assert sum(stream["stored_bytes"] for stream in facts["streams"].values()) == len(content)
    assert facts["totals"]["file_bytes"] == len(content)
    assert facts["totals"]["weights"] == 52_768
    kept = {name: sum(f.kept for f in weight.factors.values()) for name, weight in model.weights.items()}
    assert {layer["name"]: layer["kept"] for layer in facts["layers"]} == kept
    assert facts["totals"]["kept"] == sum(kept.values())
    assert facts["totals"]["density"] == sum(kept.values()) / 52_768
    shares = sum(layer["stored_bytes"] for layer in facts["layers"])
    assert 0 <= facts["streams"]["coded"]["stored_bytes"] - shares < 50  # weights of the model, states of the lanes


def test_the_description_of_the_golden_file() -> None:
    model = golden_model(1)
    facts = describe(encode_model(model))
    conv, tall, plain = facts["layers"]
    assert conv["shape"] == [4, 2, 3, 3]
    assert (conv["weights"], conv["kept"], conv["density"]) == (72, 9, 9 / 72)
    assert [conv["factors"][name]["bits"] for name in "UVC"] == [1, 3, 32]
    assert [conv["factors"][name]["codebook"] for name in "UVC"] == [1, 5, 0]
    assert conv["nominal_bits"] == (2 * 1 + 32 * 1) + (5 * 3 + 32 * 5) + 2 * 32
    assert tall["nominal_bits"] == 4 * 5 + 32 * 17
    assert plain["nominal_bits"] == 32 * 2 + 2 * 32
    assert facts["totals"]["nominal_bits"] == sum(layer["nominal_bits"] for layer in facts["layers"])
    assert facts["rest"][0] == {"name": "conv.bias", "dtype": "F32", "shape": [4], "bytes": 16}
    assert (facts["format"], facts["version"], facts["level"]) == ("atmc", 1, 3)
    assert facts["manifest"] == model.manifest
    assert set(facts["digests"]) == {"file", "root", *facts["streams"]} - {"header", "manifest"}


def test_empty_filters_and_channels_are_named() -> None:
    weight = np.zeros((4, 3, 2, 2), np.float32)
    weight[1, 0, 0, 1], weight[3, 2, 1, 1] = 1, 2
    weights = {"conv.weight": CompressedWeight((4, 3, 2, 2), {"V": sparsify(weight.reshape(4, -1), quantized=False)})}
    (layer,) = describe(encode_model(CompressedModel(weights, {}, b"", {})))["layers"]
    assert layer["empty_filters"] == [0, 2]
    assert layer["empty_channels"] == [1]
