from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper

from atmc_tool.compressed import CompressedModel, CompressedWeight, sparsify
from atmc_tool.errors import InputError
from evaluators.parity import expected_weights, parity, same_logits


def sparse(rng: np.random.Generator, shape: tuple[int, int], density: float = 0.3) -> NDArray[np.float32]:
    values = rng.choice(np.float32([-0.5, -0.1, 0.2, 0.7]), shape)
    return np.where(rng.random(shape) < density, values, np.float32(0))


@pytest.fixture
def model() -> CompressedModel:
    rng = np.random.default_rng(0)
    plain = CompressedWeight((4, 2, 3, 3), {"V": sparsify(sparse(rng, (4, 18)), quantized=True)})
    tall = CompressedWeight(
        (30, 10),
        {
            "U": sparsify(sparse(rng, (30, 10)), quantized=True),
            "V": sparsify(sparse(rng, (10, 10)), quantized=False),
            "C": sparsify(np.zeros((30, 10), np.float32), quantized=False),
        },
    )
    rest = {
        "conv.bias": rng.normal(size=4).astype(np.float32),
        "bn.num_batches_tracked": np.array(7),
        "scalar": np.array(0.5, np.float32),
    }
    weights = {"conv.weight": plain, "fc.weight": tall, "unused": plain}
    taken = {"conv.weight": (4, 2, 3, 3), "fc.weight": (30, 10), "conv.bias": (4,), "scalar": ()}
    return CompressedModel(weights, rest, skeleton(taken), {})


def skeleton(parameters: dict[str, tuple[int, ...]]) -> bytes:
    """A graph that takes these parameters after its image."""
    values = [helper.make_tensor_value_info("input", TensorProto.FLOAT, ["N", 1, 8, 8])]
    values += [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in parameters.items()]
    return helper.make_model(helper.make_graph([], "skeleton", values, [])).SerializeToString()


def decode(model: CompressedModel) -> dict[str, NDArray[Any]]:
    """An independent decoding of `model`, its product summed in another order."""
    fc = model.weights["fc.weight"].factors
    u, v = fc["U"].dense(), fc["V"].dense()
    return {
        "conv.weight": model.weights["conv.weight"].factors["V"].dense().reshape(4, 2, 3, 3),
        "fc.weight": (u.astype(np.float64) @ (np.eye(10) + v)).astype(np.float32),
        "fc.weight.U": u,
        "fc.weight.V": v,
        "conv.bias": model.rest["conv.bias"].copy(),
        "scalar": model.rest["scalar"].copy(),
    }


def test_a_faithful_decoding_passes(model: CompressedModel) -> None:
    expected = expected_weights(model)
    decoded = decode(model)
    assert sorted(expected.names) == sorted(decoded)
    assert list(expected.products) == ["fc.weight"]
    check = parity(expected, decoded)
    assert check.passed
    assert check.evidence["differing_values"] == 0
    assert check.evidence["tensors"] == 6


@pytest.mark.parametrize("name", ["conv.weight", "fc.weight.V", "fc.weight.U", "conv.bias", "scalar"])
def test_one_last_bit_of_an_exact_tensor_is_found(model: CompressedModel, name: str) -> None:
    decoded = decode(model)
    flat = decoded[name].reshape(-1)
    flat[0] = np.nextafter(flat[0], np.float32(9))
    check = parity(expected_weights(model), decoded)
    assert check.passed is False
    assert check.evidence["differing_values"] == 1
    assert list(check.evidence["differing_tensors"]) == [name]
    assert name in check.reason


@pytest.mark.parametrize(("error", "passed"), [(1e-7, True), (1e-5, False), (np.nan, False)])
def test_a_product_may_differ_by_rounding_only(model: CompressedModel, error: float, passed: bool) -> None:
    decoded = decode(model)
    decoded["fc.weight"][3, 4] += np.float32(error * np.abs(decoded["fc.weight"]).max())
    assert parity(expected_weights(model), decoded).passed is passed


def test_a_graph_of_plain_weights_holds_products_as_another_processor_rounds_them(model: CompressedModel) -> None:
    """As `export --format dense` writes it; a single factor is no way to be judged by the looser rule."""
    decoded = {name: array for name, array in decode(model).items() if not name.startswith("fc.weight.")}
    expected = expected_weights(model)
    decoded["fc.weight"] = np.nextafter(model.weights["fc.weight"].dense(), np.float32(9))
    check = parity(expected, decoded)
    assert check.passed
    assert (check.evidence["tensors"], check.evidence["products"]) == (4, 1)
    decoded["fc.weight.U"] = decode(model)["fc.weight.U"]
    assert list(parity(expected, decoded).evidence["differing_tensors"]) == ["fc.weight.V"]
    del decoded["fc.weight.U"]
    decoded["fc.weight"][3, 4] *= 1.001
    decoded["fc.weight"][3, 4] += 0.001
    assert list(parity(expected, decoded).evidence["differing_tensors"]) == ["fc.weight"]


def test_a_product_that_the_export_made_one_factor_of_may_differ_by_rounding_only(model: CompressedModel) -> None:
    """As where channels were removed and the processor that verifies sums in another order."""
    dense = model.weights["fc.weight"].dense()
    alone = CompressedWeight(dense.shape, {"U": sparsify(dense - np.eye(30, 10, dtype=np.float32), quantized=False)})
    made = replace(model, weights=model.weights | {"fc.weight": alone})
    decoded = decode(model)
    for error, passed in ((0.5e-6, True), (2e-6, False)):
        decoded["fc.weight"] = (alone.dense() + error * np.abs(alone.dense()).max()).astype(np.float32)
        assert parity(expected_weights(made, model), decoded).passed is passed
        assert parity(expected_weights(made), decoded).passed is False


def test_negative_zero_is_not_zero(model: CompressedModel) -> None:
    decoded = decode(model)
    zeros = np.argwhere(decoded["conv.weight"] == 0)
    decoded["conv.weight"][tuple(zeros[0])] = -0.0
    assert parity(expected_weights(model), decoded).passed is False


def test_missing_misshaped_and_mistyped_tensors(model: CompressedModel) -> None:
    decoded = decode(model)
    del decoded["conv.bias"]
    decoded["conv.weight"] = decoded["conv.weight"].reshape(4, 18)
    decoded["fc.weight.U"] = decoded["fc.weight.U"].astype(np.float64)
    differing = parity(expected_weights(model), decoded).evidence["differing_tensors"]
    assert set(differing) == {"conv.bias", "conv.weight", "fc.weight.U"}
    assert differing["conv.bias"] == "missing"
    assert "(4, 18)" in differing["conv.weight"]
    assert "float64" in differing["fc.weight.U"]


def test_one_changed_codebook_value_is_found(model: CompressedModel) -> None:
    """The negative control of the gate: the file was made of another codebook."""
    changed = decode(model)
    changed_values = changed["conv.weight"] == np.float32(0.2)
    changed["conv.weight"][changed_values] = np.float32(0.21)
    check = parity(expected_weights(model), changed)
    assert check.passed is False
    assert check.evidence["differing_values"] == changed_values.sum()


def test_a_factor_of_an_absent_one_is_not_asked_for(model: CompressedModel) -> None:
    empty = sparsify(np.zeros((4, 18), np.float32), quantized=True)
    side = sparsify(np.ones((4, 4), np.float32), quantized=True)
    weight = CompressedWeight((4, 2, 3, 3), {"U": side, "V": empty, "C": model.weights["unused"].factors["V"]})
    changed = replace(model, weights={**model.weights, "conv.weight": weight})
    expected = expected_weights(changed)
    assert [name for name in expected.names if name.startswith("conv.weight")] == ["conv.weight"]
    np.testing.assert_array_equal(expected.exact["conv.weight"], model.weights["conv.weight"].dense())


def test_a_damaged_graph_is_bad_input(model: CompressedModel) -> None:
    with pytest.raises(InputError, match="damaged"):
        expected_weights(replace(model, skeleton=model.skeleton[:-3]))


def test_a_network_of_other_classes_has_other_logits() -> None:
    class Zeros:
        def __init__(self, classes: int) -> None:
            self.classes = classes

        def logits(self, images: NDArray[np.float32]) -> NDArray[np.float32]:
            return np.zeros((len(images), self.classes), np.float32)

    images = np.zeros((4, 1, 8, 8), np.float32)
    assert same_logits(Zeros(10), Zeros(10), images).passed  # type: ignore[arg-type]
    check = same_logits(Zeros(10), Zeros(7), images)  # type: ignore[arg-type]
    assert check.passed is False
    assert "(4, 7), got (4, 10)" in check.reason
