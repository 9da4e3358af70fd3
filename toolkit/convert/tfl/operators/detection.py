"""Operators of detection nets, which take an image at places that other layers compute: RoiAlign and DeformConv."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from toolkit.convert.tfl.graph import Graph, Tensor
from toolkit.convert.tfl.lower import Call, operator
from toolkit.convert.tfl.operators.matmul import fully_connected
from toolkit.convert.tfl.program import Unsupported


@dataclass(frozen=True)
class _Corner:
    """For each place one of the two elements around it along an axis, and what that counts."""

    index: Tensor
    weight: Tensor


def _number(graph: Graph, kind: str, value: Tensor, number: float) -> Tensor:
    return graph.binary(kind, value, graph.constant(number, value.dtype))


def _truth(graph: Graph, kind: str, left: Tensor, right: Tensor) -> Tensor:
    """Returns a comparison as zeros and ones."""
    return graph.cast(graph.binary(kind, left, right, np.bool_), np.float32)


def _clipped(graph: Graph, value: Tensor, most: float) -> Tensor:
    return _number(graph, "MINIMUM", _number(graph, "MAXIMUM", value, 0), most)


def _picked(graph: Graph, rows: Tensor, base: Tensor, corners: Sequence[_Corner], width: int) -> Tensor:
    """Gathers one corner of each place and multiplies it by its weight: ``[places x channels]``."""
    vertical, horizontal = corners
    place = graph.binary("ADD", graph.binary("ADD", _number(graph, "MUL", vertical.index, width), horizontal.index), base)
    weight = graph.binary("MUL", vertical.weight, horizontal.weight)
    flat = graph.reshape(place, (place.size,))
    found = graph.add("GATHER", [rows, flat], (place.size, rows.shape[1]), axis=0, batchDims=0)
    return graph.binary("MUL", found, graph.reshape(weight, (weight.size, 1)))


@operator("RoiAlign", limits="a sampling_ratio other than 0; sizes that are not free")
def _roi_align(call: Call) -> Tensor:
    graph, value, boxes = call.graph, call.x(0), call.x(1)
    batch, channels, height, width = call.known(value.shape, "the size of its image")
    (count, _) = call.known(boxes.shape, "the number of its boxes")
    grid, mode = call.attribute("sampling_ratio", 0), call.attribute("mode", "avg")
    if grid <= 0:
        raise Unsupported("takes as many samples as a box has elements, which depends on the data; set sampling_ratio")
    sizes = call.attribute("output_height", 1), call.attribute("output_width", 1)
    tall, wide = (size * grid for size in sizes)
    corners = []
    for axis, (size, length, shape) in enumerate(((sizes[0], height, (count, tall, 1)), (sizes[1], width, (count, 1, wide)))):
        pair = _box_corners(graph, _samples(call, boxes, 1 - axis, size, grid), length)
        corners.append([_Corner(*(_grid(graph, part, shape, tall, wide) for part in (one.index, one.weight))) for one in pair])
    rows = graph.reshape(graph.transpose(value, (0, 2, 3, 1)), (batch * height * width, channels))
    base = _grid(graph, _number(graph, "MUL", graph.cast(call.x(2), np.int32), height * width), (count, 1, 1), tall, wide)
    parts = [_picked(graph, rows, base, pair, width) for pair in itertools.product(*corners)]
    made = parts[0]
    for part in parts[1:]:  # of the greatest ONNX takes that of the weighted elements, not of their sums
        made = graph.binary("ADD" if mode == "avg" else "MAXIMUM", made, part)
    split = graph.reshape(made, (count * sizes[0], grid, sizes[1], grid, channels))
    kind, axes = "MEAN" if mode == "avg" else "REDUCE_MAX", graph.integers([1, 3])
    whole = graph.add(kind, [split, axes], (count * sizes[0], sizes[1], channels), keepDims=False)
    return graph.transpose(graph.reshape(whole, (count, *sizes, channels)), (0, 3, 1, 2))


def _grid(graph: Graph, value: Tensor, shape: Sequence[int], tall: int, wide: int) -> Tensor:
    """Repeats something for all samples of each box."""
    full = (shape[0], tall, wide)
    return graph.binary("ADD", graph.reshape(value, shape), graph.constant(np.zeros(full), value.dtype))


def _samples(call: Call, boxes: Tensor, axis: int, size: int, grid: int) -> Tensor:
    """Returns where the samples of each box are along an axis: ``[boxes x samples]``."""
    graph, scale = call.graph, call.attribute("spatial_scale", 1.0)
    half = call.node.version >= 16 and call.attribute("coordinate_transformation_mode", "half_pixel") == "half_pixel"
    low, high = (graph.slice(boxes, (0, place), (boxes.shape[0], 1)) for place in (axis, axis + 2))
    low, high = (_number(graph, "ADD", _number(graph, "MUL", one, scale), -0.5 if half else 0.0) for one in (low, high))
    span = graph.binary("SUB", high, low)
    span = span if half else _number(graph, "MAXIMUM", span, 1.0)
    parts = ((np.arange(size * grid) + 0.5) / (size * grid)).astype(np.float32)
    return graph.binary("ADD", graph.binary("MUL", span, graph.constant(parts[None])), low)


def _box_corners(graph: Graph, where: Tensor, size: int) -> list[_Corner]:
    """Places just outside count as the edge, those farther out not at all."""
    near = graph.binary("EQUAL", where, _number(graph, "MINIMUM", _number(graph, "MAXIMUM", where, -1.0), float(size)), np.bool_)
    counts, inside = graph.cast(near, np.float32), _clipped(graph, where, size - 1.0)
    below = graph.unary("FLOOR", inside)
    part = graph.binary("SUB", inside, below)
    above = _number(graph, "MINIMUM", _number(graph, "ADD", below, 1.0), size - 1.0)
    rest = graph.binary("SUB", graph.constant(np.float32(1)), part)
    weights = (graph.binary("MUL", one, counts) for one in (rest, part))
    return [_Corner(graph.cast(one, np.int32), weight) for one, weight in zip((below, above), weights, strict=True)]


@operator("DeformConv", limits="sizes that are not free")
def _deform_conv(call: Call) -> Tensor:
    graph, value, filters, offsets = call.graph, call.x(0), call.x(1), call.x(2)
    batch, channels, height, width = call.known(value.shape, "the size of its image")
    if value.rank != 4:
        raise Unsupported("convolves something that is no image")
    outputs, tall, wide = call.shape()[1:]
    kernel, groups, sets = filters.shape[2:], call.attribute("group", 1), call.attribute("offset_group", 1)
    taps, share = int(np.prod(kernel)), channels // sets
    image = graph.reshape(value, (batch * sets, share, height * width))
    rows = graph.reshape(graph.transpose(image, (0, 2, 1)), (batch * sets * height * width, share))
    split = graph.reshape(offsets, (batch * sets, taps, 2, tall * wide))
    axes = [_offset_corners(call, split, axis, size, (tall, wide), kernel) for axis, size in enumerate((height, width))]
    base = np.repeat(np.arange(batch * sets, dtype=np.int32) * height * width, taps * tall * wide)
    first = graph.constant(base.reshape(batch * sets, taps, tall * wide))
    parts = [_picked(graph, rows, first, pair, width) for pair in itertools.product(*axes)]
    made = parts[0]
    for part in parts[1:]:
        made = graph.binary("ADD", made, part)
    if call.has(4):
        made = graph.binary("MUL", made, graph.reshape(call.x(4), (made.shape[0], 1)))
    ordered = graph.transpose(graph.reshape(made, (batch, sets, taps, tall * wide, share)), (0, 3, 1, 4, 2))
    columns = graph.reshape(ordered, (batch * tall * wide, channels * taps))
    found = _grouped(graph, columns, graph.reshape(filters, (outputs, -1 if not filters.size else filters.size // outputs)), groups)
    if call.has(3):
        found = graph.binary("ADD", found, call.x(3))
    return graph.transpose(graph.reshape(found, (batch, tall, wide, outputs)), (0, 3, 1, 2))


def _grouped(graph: Graph, columns: Tensor, filters: Tensor, groups: int) -> Tensor:
    """Multiplies each group of columns by its filters: ``[places x outputs]``."""
    if groups == 1:
        return fully_connected(graph, columns, filters, None)
    inputs, outputs = columns.shape[1] // groups, filters.shape[0] // groups
    made = []
    for group in range(groups):
        part = graph.slice(columns, (0, group * inputs), (columns.shape[0], inputs))
        own = graph.constant(filters.data[group * outputs : (group + 1) * outputs]) if filters.data is not None else None
        made.append(fully_connected(graph, part, own or graph.slice(filters, (group * outputs, 0), (outputs, inputs)), None))
    return graph.add("CONCATENATION", made, (columns.shape[0], filters.shape[0]), axis=1)


def _offset_corners(call: Call, offsets: Tensor, axis: int, size: int, given: Sequence[int], kernel: Sequence[int]) -> list[_Corner]:
    """Returns the elements around each place, of which those outside of the image count nothing: ``[samples x taps x places]``."""
    graph, rank = call.graph, 2
    stride = (call.attribute("strides") or [1] * rank)[axis]
    dilation = (call.attribute("dilations") or [1] * rank)[axis]
    before = (call.attribute("pads") or [0] * 2 * rank)[axis]
    taps, places = (np.indices(one)[axis].reshape(-1) for one in (kernel, given))
    fixed = (taps[:, None] * dilation + places * stride - before).astype(np.float32)
    own = graph.slice(offsets, (0, 0, axis, 0), (*offsets.shape[:2], 1, offsets.shape[3]))
    where = graph.binary("ADD", graph.reshape(own, (offsets.shape[0], *fixed.shape)), graph.constant(fixed[None]))
    below = graph.unary("FLOOR", where)
    part = graph.binary("SUB", where, below)
    corners = []
    for place, weight in ((below, graph.binary("SUB", graph.constant(np.float32(1)), part)), (_number(graph, "ADD", below, 1.0), part)):
        inside = _clipped(graph, place, size - 1.0)
        counts = _truth(graph, "EQUAL", place, inside)
        corners.append(_Corner(graph.cast(inside, np.int32), graph.binary("MUL", weight, counts)))
    return corners
