from collections.abc import Callable

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from numpy.typing import NDArray
from onnx import ModelProto, numpy_helper
from onnx.parser import parse_model

from atmc_tool.errors import InputError
from evaluators.planted_faults import FAULTS, nudge_weight, swap_channels

MODEL = """
<ir_version: 8, opset_import: ["": 18]>
small (float[N, 3, 4, 4] input) => (float[N, 5] logits)
<float[5, 48] weight, float[5] bias>
{
  flat = Flatten <axis = 1> (input)
  logits = Gemm <transB = 1> (flat, weight, bias)
}
"""
IMAGES = np.random.default_rng(1).random((6, 3, 4, 4), np.float32)


@pytest.fixture
def model() -> ModelProto:
    rng = np.random.default_rng(0)
    made = parse_model(MODEL)
    for name, shape in (("weight", (5, 48)), ("bias", (5,))):
        made.graph.initializer.append(numpy_helper.from_array(rng.normal(size=shape).astype(np.float32), name))
    return made


def logits(model: ModelProto, images: NDArray[np.float32] = IMAGES) -> NDArray[np.float32]:
    onnx.checker.check_model(model, full_check=True)
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    found: NDArray[np.float32] = session.run(["logits"], {"input": images})[0]
    return found


def softmax(z: NDArray[np.float32]) -> NDArray[np.float32]:
    e = np.exp(z - z.max(axis=1, keepdims=True))
    return e / e.sum(axis=1, keepdims=True)


ON_OUTPUT: dict[str, Callable[[NDArray[np.float32]], NDArray[np.float32]]] = {
    "logits × 1000": lambda z: z * 1000,
    "logits floored": lambda z: np.floor(z * 4) / 4,
    "softmax": softmax,
}
ON_INPUT: dict[str, Callable[[NDArray[np.float32]], NDArray[np.float32]]] = {
    "input rounded": lambda x: np.rint(x * 8) / np.float32(8),
    "normalised twice": lambda x: (x - np.float32(0.5)) / np.float32(0.25),
    "swapped channels": lambda x: np.ascontiguousarray(x[:, ::-1]),
    "mirrored images": lambda x: np.ascontiguousarray(x[:, :, ::-1]),
}


@pytest.mark.parametrize("name", [*ON_OUTPUT, *ON_INPUT])
def test_a_fault_does_what_it_says(model: ModelProto, name: str) -> None:
    honest = model.SerializeToString()
    planted = logits(FAULTS[name].plant(model))
    expected = ON_OUTPUT[name](logits(model)) if name in ON_OUTPUT else logits(model, ON_INPUT[name](IMAGES))
    np.testing.assert_allclose(planted, expected, rtol=1e-5, atol=1e-5)
    assert model.SerializeToString() == honest


def test_noise_is_new_in_every_run(model: ModelProto) -> None:
    noisy = FAULTS["input noise"].plant(model)
    session = ort.InferenceSession(noisy.SerializeToString(), providers=["CPUExecutionProvider"])
    first, second = (session.run(["logits"], {"input": IMAGES})[0] for _ in range(2))
    assert np.abs(first - second).max() > 0.01


def test_other_weights_are_the_same_numbers_elsewhere(model: ModelProto) -> None:
    honest, spoiled = (
        {tensor.name: numpy_helper.to_array(tensor) for tensor in each.graph.initializer}
        for each in (model, FAULTS["other weights"].plant(model))
    )
    assert not np.array_equal(honest["weight"], spoiled["weight"])
    for name, values in honest.items():
        np.testing.assert_array_equal(np.sort(values, axis=None), np.sort(spoiled[name], axis=None))


def test_one_weight_is_one_bit(model: ModelProto) -> None:
    honest, spoiled = (
        numpy_helper.to_array(each.graph.initializer[0]).view(np.uint32) for each in (model, nudge_weight(model))
    )
    assert np.count_nonzero(honest != spoiled) == 1
    assert np.abs(honest.astype(np.int64) - spoiled).max() == 1


def test_gray_images_have_no_channels_to_swap(model: ModelProto) -> None:
    model.graph.input[0].type.tensor_type.shape.dim[1].dim_value = 1
    with pytest.raises(InputError, match="none to swap"):
        swap_channels(model)
