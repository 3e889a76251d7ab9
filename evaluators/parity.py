"""Whether the weights that a file decodes to are the weights that were compressed."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from google.protobuf.message import DecodeError
from numpy.typing import NDArray

from atmc_tool.attacks.classifier import Classifier
from atmc_tool.compressed import CompressedModel
from atmc_tool.errors import InputError
from evaluators.gate import Check

PRODUCT_TOLERANCE = 1e-6  # of the largest value: a product's sums may be taken in another order
LOGIT_TOLERANCE = 1e-5  # of the largest logit: sums over fewer channels are rounded otherwise


@dataclass(frozen=True)
class ExpectedWeights:
    """Arrays by the name of their value in the ONNX graph.

    exact:    must be decoded bit for bit: factors, and weights that are one factor
    products: weights U V + C that are computed, equal up to rounding
    """

    exact: Mapping[str, NDArray[Any]]
    products: Mapping[str, NDArray[Any]]

    @property
    def names(self) -> list[str]:
        """All names."""
        return [*self.exact, *self.products]


def expected_weights(model: CompressedModel) -> ExpectedWeights:
    """What the graph of `model` must decode to: the parameters it takes, and the stored factors of weights among them.

    A factor that multiplies an absent one is not needed, and not decoded.

    Raises:
        InputError: the graph in `model` is damaged.
    """
    try:
        parameters = [value.name for value in onnx.load_model_from_string(model.skeleton).graph.input[1:]]
    except DecodeError as error:
        raise InputError(f"the graph in the model is damaged: {error}") from error
    exact: dict[str, NDArray[Any]] = {name: model.rest[name] for name in parameters if name in model.rest}
    products: dict[str, NDArray[Any]] = {}
    for name in parameters:
        if name not in model.weights:
            continue
        weight = model.weights[name]
        stored = {factor: tensor.dense() for factor, tensor in weight.factors.items() if tensor.kept}
        if weight.main not in stored:
            stored = {factor: dense for factor, dense in stored.items() if factor == "C"}
        exact |= {f"{name}.{factor}": dense for factor, dense in stored.items()}
        (exact if len(stored) <= 1 else products)[name] = weight.dense()
    return ExpectedWeights(exact, products)


def parity(expected: ExpectedWeights, decoded: Mapping[str, NDArray[Any]]) -> Check:
    """Every expected array is decoded: same shape and type, same bits, or nearly the same value for a product."""
    differing: dict[str, str] = {}
    values = 0
    for name, array in {**expected.exact, **expected.products}.items():
        count, problem = _difference(array, decoded.get(name), name in expected.products)
        values += count
        if problem:
            differing[name] = problem
    evidence = {
        "tensors": len(expected.names),
        "products": len(expected.products),
        "differing_tensors": differing,
        "differing_values": values,
    }
    if differing:
        first, problem = next(iter(differing.items()))
        more = f", and {len(differing) - 1} more" if len(differing) > 1 else ""
        reason = f"{len(differing)} of {len(expected.names)} tensors differ: {first} ({problem}){more}"
        return Check("weight-parity", False, reason, evidence)
    reason = f"{len(expected.exact)} tensors equal bit for bit"
    if expected.products:
        reason += f", {len(expected.products)} products within {PRODUCT_TOLERANCE:g}"
    return Check("weight-parity", True, reason, evidence)


def same_logits(artefact: Classifier, whole: Classifier, images: NDArray[np.float32]) -> Check:
    """The artefact, from which channels were removed, and the whole network agree on images (n, C, H, W)."""
    expected = np.asarray(whole.logits(images))
    difference = float(np.abs(np.asarray(artefact.logits(images)) - expected).max())
    scale = max(1.0, float(np.abs(expected).max()))
    evidence = {"images": len(images), "difference": difference, "largest_logit": scale}
    same = difference <= LOGIT_TOLERANCE * scale  # so that NaN differs
    reason = f"logits of {len(images)} images differ from the whole network's by {difference:.1g}"
    return Check("removed-channels", same, reason, evidence)


def _difference(expected: NDArray[Any], decoded: NDArray[Any] | None, product: bool) -> tuple[int, str]:
    """Number of differing values and what differs, empty where nothing does."""
    if decoded is None:
        return expected.size, "missing"
    if (decoded.shape, decoded.dtype) != (expected.shape, expected.dtype):
        return expected.size, f"expected {expected.dtype} {expected.shape}, got {decoded.dtype} {decoded.shape}"
    if product:
        tolerance = PRODUCT_TOLERANCE * float(np.abs(expected).max(initial=0))
        different = ~(np.abs(decoded - expected) <= tolerance)  # so that NaN differs
    else:
        bits = f"u{expected.dtype.itemsize}"
        different = np.ascontiguousarray(expected).view(bits) != np.ascontiguousarray(decoded).view(bits)
    count = int(np.count_nonzero(different))
    return count, f"{count} of {expected.size} values" if count else ""
