"""Filters and channels that do nothing are taken out of a network, which computes the same and is smaller.

A channel does nothing where nobody reads it (all weights for it are zero) or where it is constant (its filter is
empty), for what a constant adds can be put elsewhere: into the bias of the layer that reads it, or, where zeros are
padded around it or there is no bias, into the weights for one constant channel that stays. Needs no torch.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import ModelProto

from atmc_tool.compressed import CompressedModel, CompressedWeight, SparseTensor, sparsify
from exporters.channel_graph import ChannelGraph, Channels, Kept, Reader, Slots, read_names
from exporters.channel_rules import RULES, summed, weighted
from exporters.skeleton_reading import read_skeleton

Mask = NDArray[np.bool_]
BLOCK = 4  # depthwise convolutions of other numbers of channels miss the fast kernels of onnxruntime


@dataclass(frozen=True)
class Removal:
    """What was taken out: filters of convolutions and outputs of linear layers, multiplications for one image."""

    removed: int
    filters: int
    multiplications: int
    dense_multiplications: int

    @property
    def times(self) -> float:
        """How many times fewer multiplications are left."""
        return self.dense_multiplications / max(1, self.multiplications)

    def __str__(self) -> str:
        return f"removed {self.removed:,} of {self.filters:,} filters, {self.times:.2f} times fewer multiplications"


def remove_channels(model: CompressedModel) -> tuple[CompressedModel, Removal | None]:
    """The network without the channels that do nothing, and what that took out; the same model and None if nothing.

    Logits are equal up to rounding. Weights keep their codes and codebooks; what constants add to weights stands in
    their C, as it is. Equal models give equal results.

    Raises:
        InputError: the graph in `model` is damaged.
    """
    proto = read_skeleton(model.skeleton)
    state = model.state()
    if not all(_fits(info, state) for info in proto.graph.input[1:]):
        return model, None  # for the exporter to refuse, which says what does not fit
    graph = ChannelGraph(proto, {info.name: state[info.name] for info in proto.graph.input[1:]})
    for node in proto.graph.node:
        if node.op_type not in RULES or not RULES[node.op_type](graph, node):
            graph.pin_all(node)
    graph.pin_value(proto.graph.output[0].name)
    kept = _select(graph)
    masks = {
        name: {axis: kept(slots) for axis, slots in axes.items() if not kept(slots).all()}
        for name, axes in graph.cuts.items()
    }
    masks = {name: axes for name, axes in masks.items() if axes}
    if not masks:
        return model, None
    columns, biases = _moved(graph, kept, state)
    weights = {
        name: _cut_weight(weight, masks.get(name, {}), columns.get(name)) for name, weight in model.weights.items()
    }
    rest = {
        name: _cut_array(_with_column(biases.get(name, array), columns.get(name)), masks.get(name, {}))
        for name, array in model.rest.items()
    }
    for edit in graph.edits:
        edit(kept)
    _mend(proto, {name: w.shape for name, w in weights.items()} | {name: array.shape for name, array in rest.items()})
    removal = _count(graph, kept)
    small = replace(
        model,
        weights=weights,
        rest=rest,
        skeleton=proto.SerializeToString(deterministic=True),
        manifest={**model.manifest, "removed": asdict(removal)},
    )
    return small, removal


def _fits(info: onnx.ValueInfoProto, state: Mapping[str, NDArray[Any]]) -> bool:
    sizes = tuple(d.dim_value for d in info.type.tensor_type.shape.dim)
    return info.name in state and state[info.name].shape == sizes


def _select(graph: ChannelGraph) -> Kept:
    """The fewest channels that can stay: those that must, and what those read, until nothing more is added."""
    labels, kept = graph.components()
    backwards = [(reader, reader.nonzero) for reader in reversed(graph.readers)]

    def stays(slots: Slots) -> Mask:
        return np.asarray(kept[labels[slots]])

    def keep(slots: Slots) -> None:
        kept[labels[slots]] = True

    def more() -> bool:
        """Whether one of these steps had anything to add; the later ones wait until the earlier have not."""
        before = kept.sum()
        for reader, weights in backwards:
            read = weights[stays(reader.outputs)].any(axis=0)
            keep(reader.inputs.slots[read & np.isnan(reader.inputs.constants)])
        if kept.sum() == before:
            for reader, weights in backwards:
                keep(_carrier(reader, weights, stays))
        if kept.sum() == before:
            for slots in graph.values():
                keep(slots[: 0 if stays(slots).any() else 1])  # no layer without channels
        if kept.sum() == before:
            for channels in graph.depthwise:
                keep(_filling(channels, stays))
        return bool(kept.sum() > before)

    while more():
        pass
    return stays


def _carrier(reader: Reader, nonzero: Mask, kept: Kept) -> Slots:
    """The slot of the constant channel that has to stay to stand for those that go, empty where none has to.

    The largest one, or one that stays and is not much smaller, for the others' weights are multiplied by quotients.
    """
    if reader.folds:
        return reader.inputs.slots[:0]
    size = np.abs(np.nan_to_num(reader.inputs.constants))
    stays = kept(reader.inputs.slots)
    goes = np.where(nonzero[kept(reader.outputs)].any(axis=0) & ~stays, size, 0)
    needed = goes.max(initial=0) > 2 * np.where(stays, size, 0).max(initial=0)
    return reader.inputs.slots[[np.argmax(goes)] if needed else []]


def _filling(channels: Channels, kept: Kept) -> Slots:
    """The slots that have to stay so that a depthwise convolution has channels in whole blocks; constant ones first."""
    stays = kept(channels.slots)
    if len(stays) % BLOCK:
        return channels.slots[:0]
    order = np.lexsort([np.isnan(channels.constants), stays])  # those that go first, the constant among them
    return channels.slots[order[: -int(stays.sum()) % BLOCK]]


@dataclass(frozen=True)
class _Column:
    """New weights for one input: float32 (outputs, places), at `index` of the weight's `axis`."""

    axis: int
    index: int
    values: NDArray[np.float32]

    def at(self, shape: tuple[int, ...]) -> tuple[slice | int, ...]:
        """Where they stand in a weight of this shape, whose remaining axes are outputs and places."""
        return tuple(self.index if axis == self.axis else slice(None) for axis in range(len(shape)))


def _moved(
    graph: ChannelGraph, kept: Kept, state: Mapping[str, NDArray[Any]]
) -> tuple[dict[str, _Column], dict[str, NDArray[np.float32]]]:
    """Weight → its column that takes in what constant channels added; bias → the bias that does. Rounded once."""
    columns: dict[str, _Column] = {}
    biases: dict[str, NDArray[np.float32]] = {}
    for reader in graph.readers:
        constants, stays = np.nan_to_num(reader.inputs.constants), kept(reader.inputs.slots)
        read = reader.nonzero[kept(reader.outputs)].any(axis=0)
        added = weighted(reader.kernels, np.where(stays | ~read, 0, constants))
        if not added.any():
            continue
        if reader.folds:
            biases[reader.bias] = (state[reader.bias] + summed(added)).astype(np.float32)
            continue
        index = int(np.argmax(np.where(stays, np.abs(constants), 0)))
        values = reader.kernels[:, index] + added / constants[index]
        columns[reader.weight] = _Column(reader.axis, index, values.astype(np.float32))
    return columns, biases


def _cut_weight(weight: CompressedWeight, masks: Mapping[int, Mask], column: _Column | None) -> CompressedWeight:
    """The weight at what stays, each factor cut; where that can't be, the whole weight as one factor of values."""
    if not masks and column is None:
        return weight
    shape = _shape(weight.shape, masks)
    small = CompressedWeight(shape, {})
    main, c = weight.factors.get(weight.main), weight.factors.get("C")
    side_name = "U" if weight.main == "V" else "V"
    side = weight.factors.get(side_name)
    factors = {name: tensor for name, tensor in ((small.main, main), ("C", c)) if tensor is not None}
    sides: dict[str, SparseTensor] = {}
    fits = column is None or (main is not None and main.codebook is not None)
    if main is not None and main.kept and side is not None and side.kept:
        cut_side = _cut_side(weight, main, side, masks)
        fits = fits and cut_side is not None and small.main == weight.main and (column is None or small.main == "V")
        sides = {} if cut_side is None else {side_name: cut_side}
    if not fits:
        dense = _cut_array(_with_column(weight.dense(), column), masks)
        return replace(small, factors={small.main: sparsify(dense.reshape(small.matrix_shape), quantized=False)})
    if column is None:
        cut = {name: _cut_sparse(tensor, weight.shape, masks) for name, tensor in factors.items()}
        return replace(small, factors={**sides, **cut})
    others = np.ones(weight.shape, np.bool_)
    others[column.at(weight.shape)] = False
    extra = np.zeros(weight.shape, np.float32) if c is None else c.dense().reshape(weight.shape)
    extra = _cut_array(_with_column(extra, column), masks).reshape(small.matrix_shape)
    cut = {name: _cut_sparse(tensor, weight.shape, masks, others.reshape(-1)) for name, tensor in factors.items()}
    return replace(small, factors={**sides, **cut, "C": sparsify(extra, quantized=False)})


def _cut_side(
    weight: CompressedWeight, main: SparseTensor, side: SparseTensor, masks: Mapping[int, Mask]
) -> SparseTensor | None:
    """The factor that multiplies `main`, at what stays; None where it mixes what goes into what stays."""
    stays = np.ones(weight.shape, np.bool_)
    for axis, mask in masks.items():
        stays &= np.expand_dims(mask, tuple(set(range(stays.ndim)) - {axis}))
    by_rows = weight.main == "V"  # U combines rows of V, or V columns of U
    along = np.asarray(stays.reshape(weight.matrix_shape).any(axis=int(by_rows)), np.bool_)
    used = np.zeros(len(along), np.bool_)
    used[main.positions // main.shape[1] if by_rows else main.positions % main.shape[1]] = True
    ends = np.divmod(side.positions, len(along))
    into, of = ends if by_rows else ends[::-1]
    if (along[into] & ~along[of] & used[of]).any():
        return None
    return _cut_sparse(side, (len(along), len(along)), {0: along, 1: along})


def _shape(shape: tuple[int, ...], masks: Mapping[int, Mask]) -> tuple[int, ...]:
    return tuple(int(masks[axis].sum()) if axis in masks else size for axis, size in enumerate(shape))


def _cut_sparse(
    tensor: SparseTensor, shape: tuple[int, ...], masks: Mapping[int, Mask], chosen: Mask | None = None
) -> SparseTensor:
    """The entries at what stays, and among the `chosen` positions; the tensor has the elements of `shape`."""
    stay = np.ones(tensor.kept, np.bool_) if chosen is None else chosen[tensor.positions]
    places = list(np.unravel_index(tensor.positions, shape))
    for axis, mask in masks.items():
        stay &= mask[places[axis]]
        places[axis] = np.cumsum(mask)[places[axis]] - 1
    small = _shape(shape, masks)
    positions = np.ravel_multi_index([place[stay] for place in places], small).astype(np.int64)
    codes = None if tensor.codes is None else tensor.codes[stay]
    return SparseTensor(
        CompressedWeight(small, {}).matrix_shape, positions, tensor.values[stay], codes, tensor.codebook
    )


def _cut_array(array: NDArray[Any], masks: Mapping[int, Mask]) -> NDArray[Any]:
    for axis, mask in masks.items():
        array = np.compress(mask, array, axis)
    return array


def _with_column(array: NDArray[Any], column: _Column | None) -> NDArray[Any]:
    if column is None:
        return array
    array = array.copy()
    place = array[column.at(array.shape)]
    array[column.at(array.shape)] = column.values.reshape(place.shape)
    return array


def _mend(proto: ModelProto, shapes: Mapping[str, tuple[int, ...]]) -> None:
    """State the new shapes of the parameters, and leave out constants that are no longer read."""
    for info in proto.graph.input[1:]:
        for dimension, size in zip(info.type.tensor_type.shape.dim, shapes[info.name], strict=True):
            dimension.dim_value = size
    proto.graph.ClearField("value_info")
    read = set(read_names(proto.graph))
    for tensor in [tensor for tensor in proto.graph.initializer if tensor.name not in read]:
        proto.graph.initializer.remove(tensor)


def _count(graph: ChannelGraph, kept: Kept) -> Removal:
    def total(stays: Kept) -> tuple[int, int]:
        outputs = [int(stays(work.outputs).sum()) for work in graph.works]
        inputs = [1 if work.inputs is None else int(stays(work.inputs).sum()) for work in graph.works]
        return sum(outputs), sum(o * i * w.each for o, i, w in zip(outputs, inputs, graph.works, strict=True))

    (filters, dense), (left, multiplications) = total(lambda slots: np.ones(len(slots), np.bool_)), total(kept)
    return Removal(filters - left, filters, multiplications, dense)
