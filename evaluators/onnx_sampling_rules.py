"""Gradient rule of GridSample, which reads an image at places that the graph may compute."""

from typing import NamedTuple

from onnx import NodeProto, TensorProto

from atmc_tool.errors import AtmcError
from evaluators.onnx_graph import GraphBuilder, attributes


class _Place(NamedTuple):
    """Where the places of a grid lie along one axis of the image; all values (N, 1, L), L places.

    near, far: the pixels before and after, floats; to_far: how far it is from the one towards the other, 0 to 1
    slope:     of the position, in pixels, with respect to the grid's number; 0 where it was clipped
    """

    near: str
    far: str
    to_far: str
    slope: str


def grid_sample(graph: GraphBuilder, node: NodeProto, d: str, position: int) -> str:
    """Each result is Σ over four pixels of weight · pixel, bilinear in the place; of the nearest mode, one pixel.

    dL/dx: d · weight added at the pixels. dL/dgrid: Σ over channels of d · pixel · the weight's slope.

    Raises:
        AtmcError: cubic interpolation, reflection, or images with a depth.
    """
    values, (x, grid) = attributes(node), node.input
    mode, padding = values.get("mode", "linear"), values.get("padding_mode", "zeros")
    if mode not in ("linear", "bilinear", "nearest") or padding == "reflection" or len(graph.shape(x)) != 4:
        raise AtmcError(
            f"no gradient rule for GridSample {node.name!r} with {mode}, {padding}", hint="use linear, zeros"
        )
    channels, *size = graph.sizes(x, (1, 2, 3))
    line, flat = graph.integers([0, 1, -1]), graph.integers([0, channels, -1])
    wide, tall = (
        _place(graph, graph.op("Reshape", graph.op("Gather", grid, graph.integers(i), axis=3), line), n, values)
        for i, n in ((0, size[1]), (1, size[0]))
    )
    given = graph.op("Reshape", d, flat)
    image = graph.op("Reshape", x, flat)
    shape = graph.op("Shape", given)
    zeros = graph.op("Expand", graph.floats(0, x), graph.op("Shape", image))
    result, slopes = zeros, [graph.op("Mul", place.slope, graph.floats(0, x)) for place in (wide, tall)]
    for across, sign_x in ((wide.near, -1), (wide.far, 1)):
        for down, sign_y in ((tall.near, -1), (tall.far, 1)):
            weight_x, weight_y = _weight(graph, wide, sign_x, x), _weight(graph, tall, sign_y, x)
            seen, index = _pixel(graph, across, down, size, x)
            index = graph.op("Expand", index, shape)
            if position == 0:
                weight = graph.op("Mul", graph.op("Mul", weight_x, weight_y), seen)
                part = graph.op("Mul", given, weight)
                result = graph.op("ScatterElements", result, index, part, axis=2, reduction="add")
                continue
            pixel = graph.op("GatherElements", image, index, axis=2)
            summed = graph.op("ReduceSum", graph.op("Mul", given, pixel), graph.integers([1]), keepdims=1)
            summed = graph.op("Mul", summed, seen)
            for i, (sign, other) in enumerate(((sign_x, weight_y), (sign_y, weight_x))):
                change = graph.op("Mul", graph.op("Mul", summed, other), graph.floats(sign, x))
                slopes[i] = graph.op("Add", slopes[i], change)
    if position == 0:
        return graph.op("Reshape", result, graph.op("Shape", x))
    both = [graph.op("Mul", total, place.slope) for total, place in zip(slopes, (wide, tall), strict=True)]
    joined = graph.op("Transpose", graph.op("Concat", *both, axis=1), perm=[0, 2, 1])
    return graph.op("Reshape", joined, graph.op("Shape", grid))


def _place(graph: GraphBuilder, numbers: str, size: int, values: dict[str, object]) -> _Place:
    """Numbers −1 … 1 of the grid, (N, 1, L), as places among `size` pixels."""
    aligned = bool(values.get("align_corners", 0))
    scale = (size - 1) / 2 if aligned else size / 2
    slope = graph.op("Expand", graph.floats(scale, numbers), graph.op("Shape", numbers))
    shifted = graph.op("Mul", graph.op("Add", numbers, graph.floats(1, numbers)), slope)
    at = shifted if aligned else graph.op("Sub", shifted, graph.floats(0.5, numbers))
    if values.get("padding_mode", "zeros") == "border":
        low, high = graph.floats(0, numbers), graph.floats(size - 1, numbers)
        inside = graph.op("And", graph.op("Greater", at, low), graph.op("Less", at, high))
        slope = graph.op("Mul", slope, graph.op("Cast", inside, to=graph.element_type(numbers)))
        at = graph.op("Clip", at, low, high)
    if values.get("mode", "linear") == "nearest":
        at, slope = graph.op("Round", at), graph.op("Mul", slope, graph.floats(0, numbers))
    near = graph.op("Floor", at)
    return _Place(near, graph.op("Add", near, graph.floats(1, numbers)), graph.op("Sub", at, near), slope)


def _weight(graph: GraphBuilder, place: _Place, sign: int, x: str) -> str:
    """Of the pixel before the place (sign −1) or after it."""
    return place.to_far if sign > 0 else graph.op("Sub", graph.floats(1, x), place.to_far)


def _pixel(graph: GraphBuilder, across: str, down: str, size: list[int], x: str) -> tuple[str, str]:
    """1 where the pixel is in the image, else 0; and its place in the flat image, int64."""
    zero, seen, kept = graph.floats(0, x), [], []
    for value, n in ((across, size[1]), (down, size[0])):
        last = graph.floats(n - 1, x)
        within = graph.op("And", graph.op("GreaterOrEqual", value, zero), graph.op("LessOrEqual", value, last))
        seen.append(graph.op("Cast", within, to=graph.element_type(x)))
        kept.append(graph.op("Clip", value, zero, last))
    place = graph.op("Add", graph.op("Mul", kept[1], graph.floats(size[1], x)), kept[0])
    return graph.op("Mul", *seen), graph.op("Cast", place, to=TensorProto.INT64)
