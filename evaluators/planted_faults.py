"""Faults planted into an honest ONNX classifier, to prove that the gate fails each of them for the right reason.

The faults that mask gradients are of the kinds that Athalye et al. 2018 (arXiv:1802.00420) name.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import GraphProto, ModelProto, TensorProto, ValueInfoProto, helper, numpy_helper

from atmc_tool.errors import InputError

LARGE_LOGITS = 1000.0
INPUT_LEVELS = 9
LOGIT_STEP = 0.25
NOISE = 0.08
MEAN, STD = 0.5, 0.25  # of a normalisation that is applied twice


@dataclass(frozen=True)
class Fault:
    """A way to spoil a classifier.

    plant:  the model → a spoiled copy; InputError where the model has nothing of the kind
    caught: the checks any of which is the right reason to fail it
    """

    what: str
    plant: Callable[[ModelProto], ModelProto]
    caught: frozenset[str]


def scale_logits(model: ModelProto) -> ModelProto:
    """Logits × 1000: the cross-entropy saturates, and its gradient is exactly zero almost everywhere."""
    return _after(model, lambda graph, z: _node(graph, "Mul", z, _constant(graph, LARGE_LOGITS)))


def round_input(model: ModelProto) -> ModelProto:
    """The input rounded to 9 levels: the derivative is zero almost everywhere."""

    def rounded(graph: GraphProto, x: str) -> str:
        levels = _constant(graph, INPUT_LEVELS - 1)
        return _node(graph, "Div", _node(graph, "Round", _node(graph, "Mul", x, levels)), levels)

    return _before(model, rounded)


def floor_logits(model: ModelProto) -> ModelProto:
    """Logits floored to quarters: as `round_input` at the other end."""

    def floored(graph: GraphProto, z: str) -> str:
        step = _constant(graph, LOGIT_STEP)
        return _node(graph, "Mul", _node(graph, "Floor", _node(graph, "Div", z, step)), step)

    return _after(model, floored)


def add_noise(model: ModelProto) -> ModelProto:
    """Noise of standard deviation 0.08 on the input: an attack that does not average over it aims beside."""

    def noisy(graph: GraphProto, x: str) -> str:
        return _node(graph, "Add", x, _node(graph, "RandomNormalLike", x, scale=NOISE))

    return _before(model, noisy)


def add_softmax(model: ModelProto) -> ModelProto:
    """Probabilities for logits: where the network is sure, a loss of them has no gradient."""
    return _after(model, lambda graph, z: _node(graph, "Softmax", z, axis=1))


def normalize_twice(model: ModelProto) -> ModelProto:
    """(x − 0.5) / 0.25 before the network, which normalises by itself."""

    def normalized(graph: GraphProto, x: str) -> str:
        return _node(graph, "Div", _node(graph, "Sub", x, _constant(graph, MEAN)), _constant(graph, STD))

    return _before(model, normalized)


def swap_channels(model: ModelProto) -> ModelProto:
    """Channels in the reverse order, BGR for RGB.

    Raises:
        InputError: the images have one channel.
    """
    if _channels(model) < 2:
        raise InputError("images of one channel have none to swap")
    return _reversed(model, 1)


def mirror_images(model: ModelProto) -> ModelProto:
    """Images upside down, as where rows are read from the bottom."""
    return _reversed(model, 2)


def shuffle_weights(model: ModelProto) -> ModelProto:
    """The weights of another network: every stored array of floats, codebooks too, in a random order.

    Raises:
        InputError: the file stores no floats.
    """
    spoiled, rng = _copy(model), np.random.default_rng(0)
    for tensor, values in _floats(spoiled):
        _replace(tensor, rng.permutation(values.reshape(-1)).reshape(values.shape))
    return spoiled


def nudge_weight(model: ModelProto) -> ModelProto:
    """One stored number of the largest parameter in floats changed in its last bit: no accuracy shows that.

    Raises:
        InputError: the file stores no floats.
    """
    spoiled = _copy(model)
    tensor, values = max(_floats(spoiled), key=lambda pair: pair[1].size)
    flat = values.reshape(-1).copy()
    at = int(np.abs(flat).argmax())
    flat[at] = np.nextafter(flat[at], flat.dtype.type(0))
    _replace(tensor, flat.reshape(values.shape))
    return spoiled


GRADIENTS = frozenset({"gradients", "white-box", "large-eps", "white-box-strongest"})
BEHAVIOUR = frozenset(
    {
        "same-logits",
        "normalisation",
        "clean-drop",
        "robust-drop",
        "clean-loss",
        "robust-loss",
        "min-clean",
        "min-robust",
    }
)

FAULTS: Mapping[str, Fault] = {
    "logits × 1000": Fault("logits multiplied by 1000", scale_logits, GRADIENTS),
    "input rounded": Fault("the input rounded to 9 levels", round_input, GRADIENTS),
    "logits floored": Fault("logits floored to quarters", floor_logits, GRADIENTS),
    "input noise": Fault("noise of 0.08 added to the input", add_noise, frozenset({"determinism"})),
    "softmax": Fault("probabilities instead of logits", add_softmax, frozenset({"logits"})),
    "normalised twice": Fault("a second normalisation before the network", normalize_twice, BEHAVIOUR),
    "swapped channels": Fault("channels in the reverse order", swap_channels, BEHAVIOUR),
    "mirrored images": Fault("images upside down", mirror_images, BEHAVIOUR),
    "other weights": Fault("the stored weights in a random order", shuffle_weights, BEHAVIOUR | {"weight-parity"}),
    "one weight": Fault("one stored weight changed in its last bit", nudge_weight, frozenset({"weight-parity"})),
}


def _copy(model: ModelProto) -> ModelProto:
    copy = ModelProto()
    copy.CopyFrom(model)
    return copy


def _before(model: ModelProto, make: Callable[[GraphProto, str], str]) -> ModelProto:
    """A copy whose nodes read what `make` adds to the graph, given the image's name, for the image."""
    spoiled = _copy(model)
    graph, image = spoiled.graph, _image(spoiled).name
    readers = list(graph.node)
    del graph.node[:]
    made = make(graph, image)
    for node in readers:
        node.input[:] = [made if name == image else name for name in node.input]
    graph.node.extend(readers)
    return spoiled


def _after(model: ModelProto, make: Callable[[GraphProto, str], str]) -> ModelProto:
    """A copy whose output is what `make` adds to the graph, given the name of the former output."""
    spoiled = _copy(model)
    graph, logits = spoiled.graph, spoiled.graph.output[0].name
    former = f"{logits}/honest"
    for node in graph.node:
        node.input[:] = [former if name == logits else name for name in node.input]
        node.output[:] = [former if name == logits else name for name in node.output]
    made = make(graph, former)
    last = next(node for node in graph.node if made in node.output)
    last.output[:] = [logits if name == made else name for name in last.output]
    return spoiled


def _reversed(model: ModelProto, axis: int) -> ModelProto:
    def make(graph: GraphProto, x: str) -> str:
        parts = [_integers(graph, value) for value in (-1, -(2**62), axis, -1)]
        return _node(graph, "Slice", x, *parts)

    return _before(model, make)


def _image(model: ModelProto) -> ValueInfoProto:
    stored = {tensor.name for tensor in model.graph.initializer}
    image: ValueInfoProto = next(info for info in model.graph.input if info.name not in stored)
    return image


def _channels(model: ModelProto) -> int:
    return int(_image(model).type.tensor_type.shape.dim[1].dim_value)


def _node(graph: GraphProto, kind: str, *inputs: str, **attributes: Any) -> str:
    name = f"fault/{kind}.{len(graph.node)}"
    graph.node.append(helper.make_node(kind, list(inputs), [name], **attributes))
    return name


def _constant(graph: GraphProto, value: float) -> str:
    return _stored(graph, np.array(value, np.float32))


def _integers(graph: GraphProto, value: int) -> str:
    return _stored(graph, np.array([value], np.int64))


def _stored(graph: GraphProto, value: NDArray[Any]) -> str:
    name = f"fault/constant.{len(graph.initializer)}"
    graph.initializer.append(numpy_helper.from_array(value, name))
    return name


def _floats(model: ModelProto) -> list[tuple[TensorProto, NDArray[Any]]]:
    stored = [t for t in model.graph.initializer if t.data_type in (TensorProto.FLOAT, TensorProto.FLOAT16)]
    if not stored:
        raise InputError("the file stores no floats")
    return [(tensor, numpy_helper.to_array(tensor)) for tensor in stored]


def _replace(tensor: TensorProto, values: NDArray[Any]) -> None:
    tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
