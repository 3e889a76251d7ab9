"""What is known of the channels of a network's values while its graph is read: the book that the rules write into.

A channel is an index of axis 1 of a value (N, C, …). Channels that can only go together, such as both operands' of an
addition, have one slot. Needs no torch.
"""

import itertools
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, helper, numpy_helper, shape_inference

from atmc_tool.errors import InputError

MOST_SLOTS = 2**24  # of a network: a small hostile graph could ask for any number

Slots = NDArray[np.int64]
Kept = Callable[[Slots], NDArray[np.bool_]]  # slots → which of them stay


@dataclass(frozen=True)
class Channels:
    """The channels of a value.

    slots:     int64 (C,): channels of equal slots stay or go together
    constants: float64 (C,): what a channel is at every place of every image; NaN where that may vary
    """

    slots: Slots
    constants: NDArray[np.float64]


@dataclass(frozen=True)
class Reader:
    """A convolution without groups or a linear layer: each output is a weighted sum of all inputs.

    kernels: float32 (outputs, inputs, places of the kernel)
    padded:  zeros are put around the input, so that a constant channel does not give a constant
    weight:  its name, and its axis of inputs
    bias:    its name, empty where there is none
    """

    inputs: Channels
    outputs: Slots
    kernels: NDArray[np.float32]
    padded: bool
    weight: str
    axis: int
    bias: str

    @property
    def nonzero(self) -> NDArray[np.bool_]:
        """(outputs, inputs): whether some weight is not zero."""
        return np.asarray(self.kernels.any(axis=2), np.bool_)

    @property
    def folds(self) -> bool:
        """Whether what constant inputs add can go into the bias."""
        return bool(self.bias) and not self.padded


@dataclass(frozen=True)
class Work:
    """A layer's multiplications for one image: outputs · inputs · `each`; `inputs` is None where groups fix them."""

    outputs: Slots
    inputs: Slots | None
    each: int


class ChannelGraph:
    """Slots and constants of every value seen so far, what reads them, and what has to be cut with them.

    proto: the skeleton, checked; edits change its nodes
    state: name → dense array of every parameter that the graph takes
    """

    def __init__(self, proto: ModelProto, state: Mapping[str, NDArray[Any]]) -> None:
        self.proto = proto
        self.readers: list[Reader] = []
        self.works: list[Work] = []
        self.depthwise: list[Channels] = []  # the inputs of each depthwise convolution
        self.cuts: dict[str, dict[int, Slots]] = {}  # parameter → axis → slots of its indices
        self.edits: list[Callable[[Kept], None]] = []
        self._state = state
        self._values: dict[str, Channels] = {}
        self._pinned: list[Slots] = []
        self._joined: list[tuple[Slots, Slots]] = []
        self._n_slots = 0
        inferred = shape_inference.infer_shapes(proto, data_prop=True).graph
        self._shapes = {
            info.name: tuple(d.dim_value if d.HasField("dim_value") else None for d in info.type.tensor_type.shape.dim)
            for info in (*inferred.input, *inferred.value_info, *inferred.output)
            if info.type.tensor_type.HasField("shape")
        }
        self._constants = {tensor.name: tensor for tensor in proto.graph.initializer}
        self._uses = Counter(read_names(proto.graph))
        self._names = (f"cut.{number}" for number in itertools.count() if f"cut.{number}" not in self._known())

    def _known(self) -> set[str]:
        return {*self._shapes, *self._constants, *self._uses}

    def shape(self, name: str) -> tuple[int | None, ...] | None:
        """Sizes of a value, None where one is not fixed; None where not even their number is known."""
        return self._shapes.get(name)

    def parameter(self, name: str) -> NDArray[Any] | None:
        """The array of the parameter `name`, None where it is no parameter or is read in several places."""
        return self._state.get(name) if self._uses[name] == 1 else None

    def constant(self, name: str) -> NDArray[Any] | None:
        """The array of a constant of the graph, None where it is none."""
        return numpy_helper.to_array(self._constants[name]) if name in self._constants else None

    def static(self, name: str) -> NDArray[Any] | None:
        """A parameter or a constant, wherever it is read; None for what depends on the image or is computed."""
        return self._state[name] if name in self._state else self.constant(name)

    def new(self, count: int) -> Slots:
        """`count` slots that nothing has yet.

        Raises:
            InputError: more than any network's graph has.
        """
        self._n_slots += count
        if self._n_slots > MOST_SLOTS:
            raise InputError("the graph in the model has too many channels", expected=f"at most {MOST_SLOTS}")
        return np.arange(self._n_slots - count, self._n_slots)

    def channels(self, name: str) -> Channels | None:
        """The channels of a value; ones that stay where no rule has followed it, None where it has no fixed number."""
        if name not in self._values:
            shape = self.shape(name)
            if shape is None or len(shape) < 2 or not shape[1] or name in self._state or name in self._constants:
                return None
            slots = self.new(shape[1])
            self.pin(slots)
            self._values[name] = Channels(slots, np.full(shape[1], np.nan))
        return self._values[name]

    def define(self, name: str, slots: Slots, constants: NDArray[np.float64]) -> None:
        """What a rule has found out about the value `name`; constants that are not finite count as varying."""
        self._values[name] = Channels(slots, np.where(np.isfinite(constants), constants, np.nan))

    def pin(self, slots: Slots) -> None:
        """These stay."""
        self._pinned.append(slots)

    def join(self, first: Slots, second: Slots) -> None:
        """Each of `first` stays or goes with its partner in `second`."""
        self._joined.append((first, second))

    def cut(self, parameter: str, axis: int, slots: Slots) -> None:
        """The parameter's indices along `axis` go with these slots."""
        self.cuts.setdefault(parameter, {})[axis] = slots

    def pin_all(self, node: NodeProto) -> None:
        """No rule can follow `node`: all that it reads stays, inside of its own graphs too."""
        for name in (*node.input, *(name for graph in subgraphs(node) for name in read_names(graph))):
            if name in self._values:
                self.pin(self._values[name].slots)

    def pin_value(self, name: str) -> None:
        """All channels of the value stay."""
        if name in self._values:
            self.pin(self._values[name].slots)

    def values(self) -> Iterator[Slots]:
        """The slots of every value."""
        return (value.slots for value in self._values.values())

    def components(self) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
        """(n_slots,) → the first slot that each stays or goes with, and whether that one is known to stay."""
        labels = np.arange(self._n_slots)
        if self._joined:
            a, b = (np.concatenate(side) for side in zip(*self._joined, strict=True))
            while not np.array_equal(labels[a], labels[b]):
                smaller = np.minimum(labels[a], labels[b])
                for side in (a, b):
                    np.minimum.at(labels, labels[side], smaller)
                labels = labels[labels]
        kept = np.zeros(self._n_slots, np.bool_)
        for slots in self._pinned:
            kept[labels[slots]] = True
        return labels, kept

    def replace_constant(self, node: NodeProto, position: int, array: NDArray[Any]) -> None:
        """Let `node` read `array` there instead: others may read the constant that it has read."""
        name = next(self._names)
        self.proto.graph.initializer.append(numpy_helper.from_array(array, name))
        node.input[position] = name


def attribute(node: NodeProto, name: str, default: Any) -> Any:
    """The value of a node's attribute, `default` where it is not stated."""
    return next((helper.get_attribute_value(part) for part in node.attribute if part.name == name), default)


def subgraphs(node: NodeProto) -> Iterator[GraphProto]:
    """The graphs inside of a node."""
    for part in node.attribute:
        yield from ([part.g] if part.HasField("g") else [])
        yield from part.graphs


def read_names(graph: GraphProto) -> Iterator[str]:
    """Every name that the graph's nodes or its outputs read, once for each time."""
    yield from (info.name for info in graph.output)
    for node in graph.node:
        yield from node.input
        for inner in subgraphs(node):
            yield from read_names(inner)


def is_float(array: NDArray[Any] | None) -> bool:
    """Whether it is there and float32."""
    return array is not None and array.dtype == helper.tensor_dtype_to_np_dtype(TensorProto.FLOAT)
