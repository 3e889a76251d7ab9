"""Nodes and constants of an ONNX graph under construction: short names that never clash, equal constants shared."""

import itertools
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import NodeProto, TensorProto, helper, numpy_helper

from exporters.onnx_functions import DOMAIN


class GraphBuilder:
    """Collects `nodes`, `initializers` and names of `functions`; values without a meaning are named by numbers."""

    def __init__(self, taken: Iterable[str] = ()) -> None:
        """`taken`: names that must not be given to new values."""
        self.nodes: list[NodeProto] = []
        self.initializers: list[TensorProto] = []
        self.functions: set[str] = set()
        self._shared: dict[bytes, str] = {}
        names = frozenset(taken)
        self._names = (str(number) for number in itertools.count() if str(number) not in names)

    def node(self, operator: str, *inputs: str, name: str = "", **attributes: Any) -> str:
        """Add a node of one output, called `name` where that is given; the output's name."""
        name = name or next(self._names)
        self.nodes.append(helper.make_node(operator, inputs, [name], **attributes))
        return name

    def split(self, value: str, names: Sequence[str]) -> None:
        """Cut the first dimension into as many equal parts, called `names`."""
        self.nodes.append(helper.make_node("Split", [value], names, num_outputs=len(names)))

    def call(self, function: str, *inputs: str, name: str = "", **attributes: Any) -> str:
        """Add a node of the local function, as `node` does."""
        self.functions.add(function)
        return self.node(function, *inputs, name=name, domain=DOMAIN, **attributes)

    def constant(self, array: NDArray[Any], name: str = "") -> str:
        """The name of an initialiser that holds `array`; a new one called `name` where that is given."""
        return self._initializer(numpy_helper.from_array(np.ascontiguousarray(array).reshape(array.shape)), name)

    def size(self) -> int:
        """Bytes of all nodes and initialisers in the file, each with its tag and its length."""
        sizes: list[int] = [node.ByteSize() for node in self.nodes]
        sizes += [tensor.ByteSize() for tensor in self.initializers]
        return sum(size + 1 + max(1, -(-size.bit_length() // 7)) for size in sizes)

    def _initializer(self, tensor: TensorProto, name: str = "") -> str:
        shorten_integers(tensor)
        key = tensor.SerializeToString(deterministic=True)
        if name or key not in self._shared:
            tensor.name = name or next(self._names)
            self.initializers.append(tensor)
            self._shared.setdefault(key, tensor.name)
        return tensor.name if name else self._shared[key]


def shorten_integers(tensor: TensorProto) -> None:
    """Store signed integers of 32 or 64 bits in as many bytes as each needs, where that takes fewer bytes in all."""
    if tensor.data_type not in (TensorProto.INT32, TensorProto.INT64):
        return
    numbers = numpy_helper.to_array(tensor).ravel().tolist()
    short = TensorProto(data_type=tensor.data_type, dims=tensor.dims, name=tensor.name)
    (short.int32_data if tensor.data_type == TensorProto.INT32 else short.int64_data).extend(numbers)
    if short.ByteSize() < tensor.ByteSize():
        tensor.CopyFrom(short)


def pack(fields: NDArray[np.integer], width: int) -> NDArray[np.uint8]:
    """uint8 (w, 1, g): n fields below 2^w, w ≤ 8, padded to 8·g. Bit q of byte (p, 0, i) is bit p of field q·g + i."""
    padded = np.append(fields.astype(np.uint8), np.zeros(-len(fields) % 8, np.uint8)).reshape(8, -1)
    planes = [np.packbits(padded >> np.uint8(bit) & np.uint8(1), axis=0, bitorder="little") for bit in range(width)]
    return np.stack(planes)
