"""Gradients through QuantizeLinear and DequantizeLinear: straight through inside the range, none outside."""

from functools import cache

import numpy as np
import pytest
import torch
from compressed_networks import CARD, compressed_network, digits_network, random_images
from onnx_models import SHAPE, batch, classifier

from atmc_tool.attacks.classifier import Loss
from atmc_tool.compressed import CompressedModel
from atmc_tool.errors import AtmcError
from atmc_tool.models import find_architecture
from evaluators.classifier import OrtClassifier, parse_onnx
from exporters.int8 import int8_onnx
from exporters.onnx_file import build_onnx

PAIR = "q = QuantizeLinear{how} (x, s, z)\ny = DequantizeLinear{how} (q, s, z)"


def gradient(model: object, loss: Loss) -> np.ndarray:
    images, labels = batch()
    return OrtClassifier(model, "cpu", 1).logits_and_gradient(images, labels, loss)[1]  # type: ignore[arg-type]


@pytest.mark.parametrize("loss", ["cross_entropy", "margin"])
@pytest.mark.parametrize(("dtype", "low"), [(np.int8, -128), (np.uint8, 0), (np.int16, -32768), (np.uint16, 0)])
def test_a_fine_pair_has_the_gradient_of_the_clip_that_it_is(dtype: type, low: int, loss: Loss) -> None:
    """Steps so fine that rounding hardly moves the logits; a range that part of the values of x leaves."""
    levels = 2 ** (8 * np.dtype(dtype).itemsize)
    scale, zero = np.float32(0.4 / levels), low + levels // 3
    pair = classifier(PAIR.format(how=""), {"s": scale, "z": np.array(zero, dtype)})
    ends = [np.float32((low - 0.5 - zero) * scale), np.float32((low + levels - 0.5 - zero) * scale)]
    clip = classifier("y = Clip (x, low, high)", {"low": ends[0], "high": ends[1]})
    expected = gradient(clip, loss)
    assert 0.1 < np.mean(expected == 0) < 0.9
    np.testing.assert_allclose(gradient(pair, loss), expected, atol=2e-3 * np.abs(expected).max())


@pytest.mark.parametrize("axis", [1, -1])
def test_a_scale_for_each_channel(axis: int) -> None:
    size = (3, *SHAPE)[axis]
    scales = np.linspace(1e-3, 4e-3, size, dtype=np.float32)
    zeros = np.arange(size).astype(np.int8)
    pair = classifier(PAIR.format(how=f"<axis={axis}>"), {"s": scales, "z": zeros})
    shape = [-1 if i == axis % 4 else 1 for i in range(4)]
    low, high = (((end - zeros) * scales).astype(np.float32).reshape(shape) for end in (-128.5, 127.5))
    clip = classifier("m = Max (x, low)\ny = Min (m, high)", {"low": low, "high": high})
    expected = gradient(clip, "margin")
    np.testing.assert_allclose(gradient(pair, "margin"), expected, atol=1e-5)


def test_scales_of_the_two_that_differ_scale_the_gradient() -> None:
    zero = np.array(0, np.int8)
    pair = classifier(
        "q = QuantizeLinear (x, s, z)\ny = DequantizeLinear (q, t, z)",
        {"s": np.float32(0.01), "t": np.float32(0.03), "z": zero},
    )
    scaled = classifier("y = Mul (x, three)", {"three": np.float32(3)})
    np.testing.assert_allclose(gradient(pair, "margin"), gradient(scaled, "margin"), rtol=1e-5)


def test_blocks_have_no_rule() -> None:
    body = "f0 = Flatten (x)\nq = QuantizeLinear <axis=1, block_size=72> (f0, s, z)\n"
    body += "y = DequantizeLinear <axis=1, block_size=72> (q, s, z)"
    constants = {"s": np.full((3, 2), 0.01, np.float32), "z": np.zeros((3, 2), np.int8)}
    with pytest.raises(AtmcError, match="no gradient rule for DequantizeLinear in blocks"):
        gradient(classifier(body, constants), "margin")


@cache
def residual() -> CompressedModel:
    architecture = find_architecture("resnet18-4")
    assert architecture is not None
    torch.manual_seed(0)
    card = CARD.model_copy(update={"image_shape": (3, 16, 16)})
    return compressed_network(architecture.build(), card, keep=0.5)


@pytest.mark.parametrize("make", [digits_network, residual])
@pytest.mark.parametrize("loss", ["cross_entropy", "margin"])
def test_the_gradient_of_an_int8_network_is_nearly_that_of_the_float_one(make: object, loss: Loss) -> None:
    model: CompressedModel = make()  # type: ignore[operator]
    shape = tuple(model.manifest["card"]["image_shape"])
    images = random_images(shape, 32)
    rounded = parse_onnx(int8_onnx(model, "0" * 64, random_images(shape, 64, seed=1), {}))
    plain = OrtClassifier(build_onnx(model, "0" * 64, dense=True), "cpu", 1)
    labels = plain.logits(images).argmax(1)
    expected = plain.logits_and_gradient(images, labels, loss)[1].ravel()
    got = OrtClassifier(rounded, "cpu", 1).logits_and_gradient(images, labels, loss)[1].ravel()
    cosine = got @ expected / np.linalg.norm(got) / np.linalg.norm(expected)
    assert cosine > 0.9, cosine
    assert np.linalg.norm(got) == pytest.approx(np.linalg.norm(expected), rel=0.2)
