"""The graph of a network without its weights: an ONNX model whose parameters are inputs. The only exporter with torch.

Torch's exporter alone hides batch norms behind casts and expansions, and onnxruntime then folds nothing. With the
parameters turned into inputs, onnxscript's optimiser cleans the graph and can bake no weight into it.
"""

import contextlib
import io
import itertools
import logging
import re
import traceback
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path

import onnx
import onnx_ir as ir
import onnxscript.optimizer
import torch
from onnx import AttributeProto, GraphProto, ModelProto
from torch import Tensor, nn

from atmc_tool.errors import AtmcError

OPSET = 21
IR_VERSION = 10
INPUT, OUTPUT, BATCH = "input", "logits", "N"
_PREFIX = "network."  # of the parameters' names while they are in the wrapper
_HINT = "rewrite it with tensor operations that ONNX has, for any batch size"


def trace_skeleton(
    network: nn.Module, image_shape: Sequence[int], n_classes: int, mean: Sequence[float], std: Sequence[float]
) -> bytes:
    """A serialised ONNX model of network((x − mean) / std) in evaluation mode; equal networks give equal bytes.

    The first input is `input`, float32 (N, C, H, W) in [0, 1]; the others are the parameters and buffers that the
    graph needs, named as in the state dict and in its order; one that has several names goes by the first.
    The output is `logits`, (N, n_classes). The network itself, its mode included, is left as it was.

    Raises:
        AtmcError: the network can't be exported; names the module and line, or the operator.
    """
    if INPUT in network.state_dict() or OUTPUT in network.state_dict():
        raise AtmcError(f"a parameter can't be exported under the name {INPUT!r} or {OUTPUT!r}", hint="rename it")
    modes = {module: module.training for module in network.modules()}
    try:
        with _silence():
            proto = _export(_Normalized(network, mean, std, n_classes), image_shape)
    except AtmcError:
        raise
    except Exception as error:  # any of torch's own, or of the user's code
        raise AtmcError(f"the network can't be exported to ONNX: {_reason(error, network)}", hint=_HINT) from error
    finally:
        for module, training in modes.items():
            module.training = training
    content: bytes = proto.SerializeToString(deterministic=True)
    return content


class _Normalized(nn.Module):
    """network((x − mean) / std), with the shape of its result checked."""

    def __init__(self, network: nn.Module, mean: Sequence[float], std: Sequence[float], n_classes: int) -> None:
        super().__init__()
        device = next((tensor.device for tensor in network.parameters()), torch.device("cpu"))
        self.network = network
        self.n_classes = n_classes
        self.shift = _channels(mean, device) if any(mean) else None
        self.scale = _channels(std, device) if any(value != 1 for value in std) else None
        self.example_device = device
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        if self.shift is not None:
            x = x - self.shift
        if self.scale is not None:
            x = x / self.scale
        logits = self.network(x)
        expected = f"one tensor of logits (N, {self.n_classes})"
        if not isinstance(logits, Tensor):
            raise AtmcError("the network can't be exported", expected=expected, got=type(logits).__name__)
        if logits.ndim != 2 or logits.shape[1] != self.n_classes:
            got = ", ".join(["N", *map(str, logits.shape[1:])])
            raise AtmcError("the network can't be exported", expected=expected, got=f"({got})")
        return logits


def _channels(values: Sequence[float], device: torch.device) -> Tensor:
    """(C, 1, 1), or a scalar where the channels are equal."""
    if len(set(values)) == 1:
        return torch.tensor(values[0], device=device)
    return torch.tensor(values, device=device).reshape(-1, 1, 1)


def _export(network: _Normalized, image_shape: Sequence[int]) -> ModelProto:
    # Two images: torch would take a batch of one for a constant.
    example = torch.zeros(2, *image_shape, device=network.example_device)
    batch = torch.export.Dim(BATCH)
    try:
        captured = torch.export.export(network, (example,), dynamic_shapes=({0: batch},), strict=False)
    except Exception as error:
        if not _fixes_the_batch(_chain(error)):
            raise
        # len(x) is a plain number where code is run; not where it is read
        captured = torch.export.export(network, (example,), dynamic_shapes=({0: batch},), strict=True)
    program = torch.onnx.export(
        captured, input_names=[INPUT], output_names=[OUTPUT], opset_version=OPSET, optimize=False, verbose=False
    )
    assert program is not None  # None only from the old exporter
    _free_parameters(program.model, network.network)
    onnxscript.optimizer.optimize(program.model)
    proto = ir.to_proto(program.model)
    _check(proto)
    _strip(proto)
    onnx.checker.check_model(proto, full_check=True)
    return proto


def _free_parameters(model: ir.Model, network: nn.Module) -> None:
    """Turn the initialisers that stand for entries of the state dict into inputs, in the state dict's order.

    They keep the prefix until the end, for a parameter may be called what torch calls some value of the graph.
    """
    state = network.state_dict(keep_vars=True)
    entries = {name: entry for name, entry in state.items() if isinstance(entry, Tensor)}
    inputs: dict[Tensor, ir.Value] = {}
    first = {tensor: name for name, tensor in reversed(entries.items())}
    for name, tensor in entries.items():
        value = model.graph.initializers.pop(_PREFIX + name, None)
        if value is None or not value.uses():
            continue
        if tensor in inputs:
            value.replace_all_uses_with(inputs[tensor])
            continue
        value.const_value = None
        value.name = _PREFIX + first[tensor]
        inputs[tensor] = value
    order = {_PREFIX + name: position for position, name in enumerate(entries)}
    model.graph.inputs.extend(sorted(inputs.values(), key=lambda value: order[value.name or ""]))


def _check(proto: ModelProto) -> None:
    """Raise where the graph is not one of standard operators from any number of images to as many rows of logits."""
    opset = {entry.domain: entry.version for entry in proto.opset_import}
    foreign = {f"{n.domain}.{n.op_type}" for graph in _graphs(proto.graph) for n in graph.node if n.domain}
    if foreign or proto.functions or opset[""] != OPSET:
        operators = ", ".join(sorted(foreign | {function.name for function in proto.functions})) or "some operators"
        raise AtmcError(f"the network can't be exported: {operators} have no form in ONNX opset {OPSET}", hint=_HINT)
    rows, images = (info.type.tensor_type.shape.dim[0] for info in (proto.graph.output[0], proto.graph.input[0]))
    if not images.dim_param or rows.dim_param != images.dim_param:
        raise AtmcError("the network can't be exported: it does not give a row of logits for each image", hint=_HINT)


def _strip(proto: ModelProto) -> None:
    """Leave nothing that the computation does not need: no names of torch's, paths, notes or defaults."""
    graphs = list(_graphs(proto.graph))
    batch = proto.graph.input[0].type.tensor_type.shape.dim[0].dim_param
    names = {INPUT: INPUT, OUTPUT: OUTPUT}
    names |= {info.name: info.name.removeprefix(_PREFIX) for info in proto.graph.input}
    taken = set(names.values())
    numbers = (str(number) for number in itertools.count() if str(number) not in taken)
    for name in (name for graph in graphs for name in _defined(graph) if name):
        names[name] = names.get(name) or next(numbers)
    for graph in graphs:
        graph.name = "network"
        graph.ClearField("value_info")
        graph.ClearField("metadata_props")
        for info in (*graph.input, *graph.output):
            info.ClearField("metadata_props")
            info.name = names.get(info.name, info.name)
            for dimension in info.type.tensor_type.shape.dim:
                if dimension.dim_param == batch:
                    dimension.dim_param = BATCH
        for tensor in graph.initializer:
            tensor.name = names.get(tensor.name, tensor.name)
            tensor.ClearField("doc_string")
            tensor.ClearField("metadata_props")
        for node in graph.node:
            for part in ("name", "doc_string", "metadata_props"):
                node.ClearField(part)
            node.input[:] = [names.get(name, name) for name in node.input]
            node.output[:] = [names.get(name, name) for name in node.output]
            defaults = onnx.defs.get_schema(node.op_type, OPSET, node.domain).attributes
            for attribute in reversed(list(node.attribute)):
                if _is_default(attribute, defaults[attribute.name].default_value):
                    node.attribute.remove(attribute)
    for part in ("doc_string", "metadata_props", "producer_version", "model_version", "domain"):
        proto.ClearField(part)
    proto.producer_name = "atmc-tool"
    proto.ir_version = IR_VERSION


def _defined(graph: GraphProto) -> Iterator[str]:
    yield from (tensor.name for tensor in graph.initializer)
    for node in graph.node:
        yield from node.output


def _is_default(attribute: AttributeProto, default: AttributeProto) -> bool:
    value = onnx.helper.get_attribute_value
    return attribute.type == default.type and bool(value(attribute) == value(default))


def _graphs(graph: GraphProto) -> Iterator[GraphProto]:
    """The graph and the graphs inside its nodes."""
    yield graph
    for node in graph.node:
        for attribute in node.attribute:
            for inner in (*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs):
                yield from _graphs(inner)


def _reason(error: BaseException, network: nn.Module) -> str:
    """What stopped the export, as one line: the operator that ONNX lacks, or the place in the network and why."""
    chain = _chain(error)
    messages = "\n".join(str(link) for link in chain)
    if operator := re.search(r"No ONNX function found for <OpOverload\(op='([^']+)'", messages):
        return f"ONNX has no operator for {operator[1]}"
    if _fixes_the_batch(chain):
        return "its code fixes the batch size"
    if any("DataDependent" in type(link).__name__ or "data-dependent" in str(link) for link in chain):
        return f"its control flow depends on the values of the image{_place(error, network)}"
    message = next((line.strip() for line in str(error).splitlines() if line.strip()), "")
    return f"{type(error).__name__}: {message.rstrip('.')}{_place(error, network)}"


def _chain(error: BaseException) -> list[BaseException]:
    """The exception and all that led to it."""
    chain: list[BaseException] = []
    cause: BaseException | None = error
    while cause is not None and cause not in chain:
        chain.append(cause)
        cause = cause.__cause__ or cause.__context__
    return chain


def _fixes_the_batch(chain: Sequence[BaseException]) -> bool:
    return any("Constraints violated" in str(link) for link in chain)


def _place(error: BaseException, network: nn.Module) -> str:
    """` in NAME (CLASS), FILE:LINE` of the innermost module and its line, as far as they are known."""
    names = {id(module): name for name, module in network.named_modules()}
    place = ""
    for frame, line in traceback.walk_tb(error.__traceback__):
        module = frame.f_locals.get(next(iter(frame.f_code.co_varnames), ""))
        if id(module) in names and frame.f_code.co_name == "forward":
            name = names[id(module)] or "the network"
            place = f" in {name} ({type(module).__name__}), {Path(frame.f_code.co_filename).name}:{line}"
    return place


@contextlib.contextmanager
def _silence() -> Iterator[None]:
    """Torch's exporter prints, logs and warns even where all is well; what matters is in its exceptions."""
    disabled = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with (
            contextlib.redirect_stdout(io.StringIO()),
            contextlib.redirect_stderr(io.StringIO()),
            warnings.catch_warnings(),
        ):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(disabled)
