"""An ONNX graph to read from and to add nodes to: names, types, shapes, values; and the part of it that one needs."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import onnx
from numpy.typing import ArrayLike, DTypeLike, NDArray
from onnx import AttributeProto, GraphProto, ModelProto, NodeProto, TensorProto, ValueInfoProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from atmc_tool.errors import AtmcError, InputError

# model → (number of images → each of the model's values when it runs on so many, which are others for each number)
Observe = Callable[[ModelProto], Callable[[int], Mapping[str, NDArray[Any]]]]

_FEW = 64  # elements of an observed value that may say something about shapes or axes


class GraphBuilder:
    """A copy of a model's graph with shapes inferred, to which nodes are added under names that never clash.

    Every node must be an operator, none a local function. `forward` holds the nodes that were there. `observe` is asked
    where onnx can't infer all shapes: code that reshapes by sizes that the graph computes leaves gaps.
    """

    def __init__(self, model: ModelProto, observe: Observe | None = None) -> None:
        self.model = _with_shapes(model)
        graph = self.model.graph
        constants = [] if observe is None or _all_shapes(graph) else _observe_into(graph, observe, model)
        self.forward = tuple(graph.node)
        self._infos = {info.name: info.type.tensor_type for info in _value_infos(graph)}
        self._values = {tensor.name: tensor for tensor in (*constants, *graph.initializer)}
        for node in self.forward:
            if node.op_type == "Constant" and "value" in attributes(node):
                self._values[node.output[0]] = attributes(node)["value"]
        self._taken = {name for part in _graphs(graph) for name in _names(part)}
        self._constants: dict[tuple[bytes, str, tuple[int, ...]], str] = {}

    def fresh(self, name: str) -> str:
        """`name`, or where the graph has it already, `name` with underscores after it."""
        while name in self._taken:
            name += "_"
        self._taken.add(name)
        return name

    def ops(self, kind: str, *inputs: str, n_outputs: int, **attributes: Any) -> list[str]:
        """Add a node; the names of its outputs."""
        stem = f"gradient/{kind}.{len(self.model.graph.node)}"
        outputs = [self.fresh(f"{stem}.{i}" if i else stem) for i in range(n_outputs)]
        self.model.graph.node.append(helper.make_node(kind, list(inputs), outputs, **attributes))
        return outputs

    def op(self, kind: str, *inputs: str, **attributes: Any) -> str:
        """Add a node of one output; the name of its output."""
        return self.ops(kind, *inputs, n_outputs=1, **attributes)[0]

    def constant(self, value: ArrayLike, dtype: DTypeLike) -> str:
        """The name of an initialiser that holds `value`; equal ones are shared."""
        array = np.array(value, dtype)
        key = (array.tobytes(), array.dtype.str, array.shape)
        if key not in self._constants:
            self._constants[key] = self.fresh(f"gradient/constant.{len(self._constants)}")
            self.model.graph.initializer.append(numpy_helper.from_array(array, self._constants[key]))
        return self._constants[key]

    def integers(self, value: ArrayLike) -> str:
        """The name of an int64 constant."""
        return self.constant(value, np.int64)

    def floats(self, value: ArrayLike, like: str) -> str:
        """The name of a constant of the element type of the value `like`."""
        return self.constant(value, helper.tensor_dtype_to_np_dtype(self.element_type(like)))

    def element_type(self, name: str) -> int:
        """TensorProto element type of the value; FLOAT where shape inference did not find it."""
        return self._infos[name].elem_type if name in self._infos else TensorProto.FLOAT

    def shape(self, name: str) -> tuple[int | str, ...]:
        """Dimensions of the value: numbers, or names for those that are known only when the graph runs.

        Raises:
            AtmcError: shape inference did not even find how many there are.
        """
        if name not in self._infos or not self._infos[name].HasField("shape"):
            raise AtmcError(f"the graph does not tell the shape of {name!r}, which its gradient needs")
        dimensions = self._infos[name].shape.dim
        return tuple(d.dim_value if d.HasField("dim_value") else d.dim_param for d in dimensions)

    def sizes(self, name: str, axes: Iterable[int]) -> list[int]:
        """The dimensions `axes` of the value, which must not depend on what the graph is fed.

        Raises:
            AtmcError: one of them does.
        """
        shape = self.shape(name)
        wanted = [shape[axis] for axis in axes]
        sizes = [size for size in wanted if isinstance(size, int)]
        if len(sizes) < len(wanted):
            got = "(" + ", ".join(str(size) or "?" for size in shape) + ")"
            raise AtmcError(f"the shape of {name!r} must be fixed but for the batch", got=got)
        return sizes

    def known(self, name: str) -> NDArray[Any]:
        """A value that does not depend on the images: stored, computed from what is stored, or seen to be constant.

        Raises:
            AtmcError: it does.
        """
        if name in self._values:
            return numpy_helper.to_array(self._values[name])
        part = subgraph(self.model, [name])
        stored = {tensor.name for tensor in part.graph.initializer}
        if any(info.name not in stored for info in part.graph.input):
            raise AtmcError(f"{name!r} must be a constant of the graph", hint="simplify the graph before you export it")
        values: Any = ReferenceEvaluator(part).run(None, {})
        return np.asarray(values[0])


def _with_shapes(model: ModelProto) -> ModelProto:
    """A copy of the model with all shapes that can be inferred.

    onnx (1.23) infers none through GroupNormalization, which keeps the shape; so it is inferred through Identity.
    """
    simple = ModelProto()
    simple.CopyFrom(model)
    for node in simple.graph.node:
        if node.op_type == "GroupNormalization":
            node.CopyFrom(helper.make_node("Identity", node.input[:1], node.output))
    inferred = onnx.shape_inference.infer_shapes(simple, data_prop=True)
    del inferred.graph.node[:]
    inferred.graph.node.extend(model.graph.node)
    return inferred


def _all_shapes(graph: GraphProto) -> bool:
    """Whether the shape of every value is known but for its first dimension, which may be the batch's."""
    infos = {info.name: info.type.tensor_type for info in _value_infos(graph)}
    types = [infos.get(name) for node in graph.node for name in node.output if name]
    return all(
        t is not None and t.HasField("shape") and all(d.HasField("dim_value") for d in t.shape.dim[1:]) for t in types
    )


def _observe_into(graph: GraphProto, observe: Observe, model: ModelProto) -> list[TensorProto]:
    """Put observed shapes into `graph`; its integers that are the same for two images and for three others.

    A dimension that differs depends on the batch, and gets no number.
    """
    values_for = observe(model)
    two, three = (
        {name: (v.dtype, v.shape, v.tobytes() if v.size <= _FEW else b"") for name, v in values_for(n).items()}
        for n in (2, 3)
    )  # one after the other, so that only one run's values are in memory
    del graph.value_info[:]
    same = []
    for name, (dtype, shape, content) in two.items():
        _, shape_of_three, content_of_three = three[name]
        if len(shape) == len(shape_of_three):
            dimensions = [a if a == b else "batch" for a, b in zip(shape, shape_of_three, strict=True)]
            kind = helper.np_dtype_to_tensor_dtype(dtype)
            graph.value_info.append(helper.make_tensor_value_info(name, kind, dimensions))
        if content and dtype.kind == "i" and (shape, content) == (shape_of_three, content_of_three):
            same.append(numpy_helper.from_array(np.frombuffer(content, dtype).reshape(shape), name))
    return same


def opset(model: ModelProto) -> int:
    """Version of the standard operators that the model imports; 0 where it imports none."""
    return next((entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")), 0)


def attributes(node: NodeProto) -> dict[str, Any]:
    """Attribute name → value: int, float, str, list, tensor or graph."""
    values = {a.name: helper.get_attribute_value(a) for a in node.attribute}
    return {name: value.decode() if isinstance(value, bytes) else value for name, value in values.items()}


def reads(node: NodeProto) -> set[str]:
    """Names of the values that the node reads, those its subgraphs take from outside among them."""
    inner = [part for attribute in node.attribute for graph in _attribute_graphs(attribute) for part in _graphs(graph)]
    return {*node.input, *(name for part in inner for child in part.node for name in child.input)} - {""}


def subgraph(model: ModelProto, outputs: Sequence[str]) -> ModelProto:
    """The part of the model that computes the values `outputs`, with the inputs that it needs.

    Raises:
        InputError: the model has no value of such a name.
    """
    needed, nodes = set(outputs), []
    for node in reversed(model.graph.node):
        if not needed.isdisjoint(node.output):
            needed |= reads(node)
            nodes.append(node)
    infos = {info.name: info for info in _value_infos(model.graph)}
    if missing := [name for name in outputs if name not in infos]:
        raise InputError("the ONNX graph lacks a value", got=", ".join(missing))
    initializers = [tensor for tensor in model.graph.initializer if tensor.name in needed]
    graph = helper.make_graph(
        nodes[::-1],
        model.graph.name,
        [info for info in model.graph.input if info.name in needed],
        [infos[name] for name in outputs],
        initializers,
    )
    graph.sparse_initializer.extend(t for t in model.graph.sparse_initializer if t.values.name in needed)
    part = helper.make_model(graph, ir_version=model.ir_version, opset_imports=model.opset_import)
    part.functions.extend(model.functions)
    return part


def _attribute_graphs(attribute: AttributeProto) -> list[GraphProto]:
    return [*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs]


def _graphs(graph: GraphProto) -> Iterator[GraphProto]:
    """The graph and all graphs inside its nodes."""
    yield graph
    for node in graph.node:
        for attribute in node.attribute:
            for inner in _attribute_graphs(attribute):
                yield from _graphs(inner)


def _names(graph: GraphProto) -> Iterator[str]:
    """All names in use: of values, initialisers and nodes."""
    yield from (info.name for info in _value_infos(graph))
    for node in graph.node:
        yield from (node.name, *node.input, *node.output)


def _value_infos(graph: GraphProto) -> Iterator[ValueInfoProto]:
    """What is known of each value; of initialisers too."""
    for tensor in graph.initializer:
        yield helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims)
    yield from (*graph.value_info, *graph.input, *graph.output)
