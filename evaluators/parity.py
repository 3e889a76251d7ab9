"""Whether the weights that a file decodes to are the weights that were compressed."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from google.protobuf.message import DecodeError
from numpy.typing import NDArray

from atmc_tool.attacks.classifier import Classifier
from atmc_tool.compressed import CompressedModel, CompressedWeight
from atmc_tool.errors import InputError
from evaluators.gate import Check

PRODUCT_TOLERANCE = 1e-6  # of the largest value: a product's sums may be taken in another order
LOGIT_TOLERANCE = 1e-5  # of the largest logit: sums over fewer channels are rounded otherwise


@dataclass(frozen=True)
class ExpectedWeights:
    """Arrays by the name of their value in the ONNX graph.

    exact:    must be decoded bit for bit: weights that are one factor, and everything else that is no product
    products: weights U V + C that the graph or the export computes, equal up to rounding
    factors:  name of a product that the graph computes → its factors by name, which must be decoded bit for bit, unless
              the graph holds plain weights and none of them
    """

    exact: Mapping[str, NDArray[Any]]
    products: Mapping[str, NDArray[Any]]
    factors: Mapping[str, Mapping[str, NDArray[Any]]]

    @property
    def names(self) -> list[str]:
        """All names that a graph may have."""
        factors = (name for parts in self.factors.values() for name in parts)
        return [*self.exact, *factors, *self.products]


def expected_weights(model: CompressedModel, source: CompressedModel | None = None) -> ExpectedWeights:
    """What the graph of `model` must decode to: the parameters it takes, and the factors of products among them.

    A factor that multiplies an absent one is not needed, and not decoded.

    source: the network that the export made `model` of; where it made one factor of a product, another processor may
            have summed in another order

    Raises:
        InputError: the graph in `model` is damaged.
    """
    try:
        parameters = [value.name for value in onnx.load_model_from_string(model.skeleton).graph.input[1:]]
    except DecodeError as error:
        raise InputError(f"the graph in the model is damaged: {error}") from error
    exact: dict[str, NDArray[Any]] = {name: model.rest[name] for name in parameters if name in model.rest}
    products: dict[str, NDArray[Any]] = {}
    factors: dict[str, dict[str, NDArray[Any]]] = {}
    for name in (name for name in parameters if name in model.weights):
        weight = model.weights[name]
        needed = _needed(weight)
        if len(needed) > 1:
            products[name] = weight.dense()
            factors[name] = {f"{name}.{factor}": weight.factors[factor].dense() for factor in needed}
        elif source is not None and name in source.weights and len(_needed(source.weights[name])) > 1:
            products[name] = weight.dense()
        else:
            exact[name] = weight.dense()
    return ExpectedWeights(exact, products, factors)


def _needed(weight: CompressedWeight) -> list[str]:
    """The factors that W depends on."""
    stored = [factor for factor, tensor in weight.factors.items() if tensor.kept]
    return stored if weight.main in stored else [factor for factor in stored if factor == "C"]


def parity(expected: ExpectedWeights, decoded: Mapping[str, NDArray[Any]]) -> Check:
    """Every expected array is decoded: same shape and type, same bits, or nearly the same value for a product."""
    exact, products = dict(expected.exact), expected.products
    for factors in expected.factors.values():  # a graph of plain weights has none of them
        exact |= factors if not decoded.keys().isdisjoint(factors) else {}
    differing: dict[str, str] = {}
    values = 0
    for name, array in {**exact, **products}.items():
        count, problem = _difference(array, decoded.get(name), name in products)
        values += count
        if problem:
            differing[name] = problem
    tensors = len(exact) + len(products)
    evidence = {
        "tensors": tensors,
        "products": len(products),
        "differing_tensors": differing,
        "differing_values": values,
    }
    if differing:
        first, problem = next(iter(differing.items()))
        more = f", and {len(differing) - 1} more" if len(differing) > 1 else ""
        reason = f"{len(differing)} of {tensors} tensors differ: {first} ({problem}){more}"
        return Check("weight-parity", False, reason, evidence)
    reason = f"{len(exact)} tensors equal bit for bit"
    if products:
        reason += f", {len(products)} products within {PRODUCT_TOLERANCE:g}"
    return Check("weight-parity", True, reason, evidence)


def same_logits(artefact: Classifier, whole: Classifier, images: NDArray[np.float32]) -> Check:
    """The artefact, whose graph the export changed, and the whole network agree on images (n, C, H, W)."""
    expected, found = (np.asarray(classifier.logits(images)) for classifier in (whole, artefact))
    if found.shape != expected.shape:
        return Check("same-logits", False, f"expected logits of shape {expected.shape}, got {found.shape}")
    difference = float(np.abs(found - expected).max())
    scale = max(1.0, float(np.abs(expected).max()))
    evidence = {"images": len(images), "difference": difference, "largest_logit": scale}
    same = difference <= LOGIT_TOLERANCE * scale  # so that NaN differs
    reason = f"logits of {len(images)} images differ from the whole network's by {difference:.1g}"
    return Check("same-logits", same, reason, evidence)


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
