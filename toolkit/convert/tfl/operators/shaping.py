"""Operators that move values without computing any."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from toolkit.convert.tfl import layout as layouts
from toolkit.convert.tfl.facts import COMMON, NUMBERS, WIDE
from toolkit.convert.tfl.graph import Graph, Tensor
from toolkit.convert.tfl.layout import Demand
from toolkit.convert.tfl.lower import Call, carried, channels_first, channels_last, either, operator
from toolkit.convert.tfl.operators.indexing import sliced, take
from toolkit.convert.tfl.program import FREE, Node, Program, Unsupported

_SLICED = {"float32", "int8", "bool"}  # the last because SPLIT has no kernel for it
_MOST_JOINED = 5
_ENDLESS = 2**31 - 1


def reshaping(node: Node, program: Program) -> Demand:
    """A reshape works in both layouts where batch and channels stay, as then only spatial axes are merged or split."""
    if node.inputs[0] not in program.types:
        return channels_first(node, program)
    before, after = program.types[node.inputs[0]].shape, program.types[node.outputs[0]].shape
    if layouts.can_be_last(before) and layouts.can_be_last(after) and before[:2] == after[:2]:
        return Demand(None, (node.inputs[0],), (node.outputs[0],))
    return channels_first(node, program)


@operator("Reshape", "Flatten", "Squeeze", "Unsqueeze", rule=reshaping, limits="constant sizes or axes")
def _reshape(call: Call) -> Tensor:
    return call.graph.reshape(call.x(0), call.shape())


def transposing(node: Node, program: Program) -> Demand:
    """A transpose that only moves the channels is none: what is read in one layout is given in the other."""
    name, result = node.inputs[0], node.outputs[0]
    if name in program.types and layouts.can_be_last(program.types[name].shape):
        rank = len(program.types[name].shape)
        order = tuple(node.attributes.get("perm") or reversed(range(rank)))
        if order == layouts.last_order(rank):
            return Demand("last", (name,), (result,), moves=True)
        if order == tuple(int(axis) for axis in np.argsort(layouts.last_order(rank))):
            return Demand("first", (name,), (result,), moves=True)
    return channels_first(node, program)


@operator("Transpose", rule=transposing)
def _transpose(call: Call) -> Tensor:
    value, rank = call.x(0), len(call.type(0).shape)
    order = call.attribute("perm") or list(reversed(range(rank)))
    demand = transposing(call.node, call.program)
    return value if demand.moves else call.graph.transpose(value, order)


@operator("Concat", rule=either, dtypes=WIDE)
def _concat(call: Call) -> Tensor:
    rank = len(call.result().shape)
    return call.graph.add("CONCATENATION", call.xs(), call.shape(), axis=call.axis(call.attribute("axis"), rank))


@operator("Slice", rule=either, limits="constant bounds; no part of a free axis")
def _slice(call: Call) -> Tensor:
    value, rank = call.x(0), len(call.type(0).shape)
    starts, ends = call.numbers(1, "starts"), call.numbers(2, "ends")
    axes = call.numbers(3, "axes") or range(len(starts))
    steps = call.numbers(4, "steps") or [1] * len(starts)
    bounds = [(0, size, 1) for size in value.shape]
    for start, end, step, axis in zip(starts, ends, steps, axes, strict=True):
        place = call.axis(axis, rank)
        if value.shape[place] == FREE:
            value = _slice_free(call, value, place, (start, end, step))
        else:
            bounds[place] = _bounds(value.shape[place], start, end, step)
    if rank <= 5:
        made = sliced(call.graph, value, bounds)
    else:
        made = value
        for place, (start, count, step) in enumerate(bounds):
            made = made if count == FREE else take(call.graph, made, start + np.arange(count) * step, place)
    made.quantization = value.quantization
    return made


def _slice_free(call: Call, value: Tensor, place: int, bounds: tuple[int, int, int]) -> Tensor:
    """Takes a part of an axis whose size is free; how much that is only the kernel knows."""
    graph, (start, end, step) = call.graph, bounds
    if (start, step) == (0, 1) and end >= _ENDLESS:
        return value
    if step < 1 or value.rank > 5 or call.shape()[place] != FREE:
        raise Unsupported("takes a part of an axis whose size is free at run time")
    limits = (int(np.clip(one, -_ENDLESS, _ENDLESS)) if axis == place else 0 for one in (start, end) for axis in range(value.rank))
    starts, ends = np.array(list(limits)).reshape(2, value.rank)
    steps = [step if axis == place else 1 for axis in range(value.rank)]
    whole = sum(1 << axis for axis in range(value.rank) if axis != place)
    masks = {"beginMask": whole, "endMask": whole, "ellipsisMask": 0, "newAxisMask": 0, "shrinkAxisMask": 0}
    return graph.add("STRIDED_SLICE", [value, *(graph.integers(one) for one in (starts, ends, steps))], value.shape, **masks)


def _bounds(size: int, start: int, end: int, step: int) -> tuple[int, int, int]:
    """Returns start, number of elements and step of a slice of one axis, as ONNX, and Python, cut them off at its ends."""
    places = range(*slice(start, end, step).indices(size))
    return places.start if len(places) else 0, len(places), step


@operator("Split", rule=either, dtypes=COMMON, limits="constant sizes; not along a free axis")
def _split(call: Call) -> list[Tensor]:
    graph, value, rank = call.graph, call.x(0), len(call.type(0).shape)
    axis = call.axis(call.attribute("axis", 0), rank)
    sizes = _parts(call, value.shape[axis])
    shapes = [(*value.shape[:axis], size, *value.shape[axis + 1 :]) for size in sizes]
    if len(sizes) == 1:
        return [value]
    starts = np.cumsum([0, *sizes])
    if 0 in sizes or value.dtype.name in _SLICED:  # slices are delegated, splits are not
        made = [take(graph, value, np.arange(start, start + size), axis) for start, size in zip(starts, sizes, strict=False)]
    elif len(set(sizes)) == 1:
        made = graph.add_many("SPLIT", [graph.constant(np.int32(axis)), value], [(shape, value.dtype) for shape in shapes], numSplits=len(sizes))
    else:
        operands = [value, graph.integers(sizes), graph.constant(np.int32(axis))]
        made = graph.add_many("SPLIT_V", operands, [(shape, value.dtype) for shape in shapes], numSplits=len(sizes))
    for one in made:
        one.quantization = value.quantization
    return made


def _parts(call: Call, size: int) -> list[int]:
    """Returns the sizes that an axis is split into: equal ones, the last smaller where it must be, if none are given."""
    if size == FREE:
        raise Unsupported("splits an axis whose size is free at run time")
    given = call.numbers(1, "split")
    if given:
        return list(given)
    count = call.attribute("num_outputs", len(call.node.outputs))
    part = -(-size // count)
    return [min(part, max(0, size - part * number)) for number in range(count)]


@operator("Pad", rule=either, dtypes=COMMON, limits="constant pads; not along a free axis; crops in the mode constant alone")
def _pad(call: Call) -> Tensor:
    graph, value, rank = call.graph, call.x(0), len(call.type(0).shape)
    mode, given = call.attribute("mode", "constant"), call.numbers(1, "pads")
    axes = call.numbers(3, "axes") or range(rank)
    edges = [(0, 0)] * rank
    for number, axis in enumerate(axes):
        edges[call.axis(axis, rank)] = (given[number], given[len(given) // 2 + number])
    if any(size == FREE and any(edge) for size, edge in zip(value.shape, edges, strict=True)):
        raise Unsupported("pads an axis whose size is free at run time")
    if mode == "constant":
        return _pad_constant(graph, value, edges, call.number(2, "value", 0))
    if any(min(edge) < 0 for edge in edges):
        raise Unsupported(f"crops in mode {mode}")
    return _pad_copies(graph, value, edges, mode)


def _pad_constant(graph: Graph, value: Tensor, edges: Sequence[tuple[int, int]], content: float) -> Tensor:
    if value.dtype == np.bool_:
        return graph.cast(_pad_constant(graph, graph.cast(value, np.int32), edges, content), np.bool_)
    for axis, (before, after) in enumerate(edges):
        if min(before, after) < 0:
            value = take(graph, value, np.arange(max(0, -before), value.shape[axis] - max(0, -after)), axis)
    grown = [(max(0, before), max(0, after)) for before, after in edges]
    if value.rank <= 5:
        return graph.pad(value, grown, content)
    for axis, (before, after) in enumerate(grown):  # the kernel knows five axes
        if before or after:
            value = _pad_folded(graph, value, axis, (before, after), content)
    return value


def _pad_folded(graph: Graph, value: Tensor, axis: int, edge: tuple[int, int], content: float) -> Tensor:
    """Pads one axis of a tensor of many: those before it are merged, and those after it."""
    inner = int(np.prod(value.shape[axis + 1 :]))
    outer = FREE if FREE in value.shape else int(np.prod(value.shape[:axis]))
    made = graph.pad(graph.reshape(value, (outer, value.shape[axis], inner)), [(0, 0), edge, (0, 0)], content)
    return graph.reshape(made, (*value.shape[:axis], made.shape[1], *value.shape[axis + 1 :]))


def _pad_copies(graph: Graph, value: Tensor, edges: Sequence[tuple[int, int]], mode: str) -> Tensor:
    """Pads with what is in the tensor: mirrored, its edge, or its other end."""
    if not np.any(edges):
        return value
    mirrored = mode == "reflect" and all(max(edge) < abs(size) for edge, size in zip(edges, value.shape, strict=True) if any(edge))
    if mirrored and value.rank <= 4 and value.dtype != np.bool_:
        shape = [size if size == FREE else size + sum(edge) for size, edge in zip(value.shape, edges, strict=True)]
        return graph.add("MIRROR_PAD", [value, graph.integers(np.asarray(edges))], shape, mode=0)
    for axis, edge in enumerate(edges):
        if any(edge):
            value = take(graph, value, np.pad(np.arange(value.shape[axis]), edge, mode=mode), axis)  # type: ignore[call-overload]
    return value


@operator("Expand", rule=either, dtypes=WIDE, limits="a constant shape; nothing is repeated as often as there are samples")
def _expand(call: Call) -> Tensor:
    rank = len(call.result().shape)
    value = call.spread(call.x(0), rank, given=len(call.type(0).shape) == rank)
    full = call.graph.reshape(value, (1,) * (rank - value.rank) + value.shape)
    if any(size == FREE != have for size, have in zip(call.shape(), full.shape, strict=True)):
        raise Unsupported("repeats something as often as there are samples")
    return tiled(call.graph, full, [1 if size == have else size for size, have in zip(call.shape(), full.shape, strict=True)])


@operator("Tile", rule=either, dtypes=WIDE, limits="constant repeats; not along a free axis")
def _tile(call: Call) -> Tensor:
    return tiled(call.graph, call.x(0), call.ordered(call.numbers(1, "repeats")))


def tiled(graph: Graph, value: Tensor, times: Sequence[int]) -> Tensor:
    """Returns a tensor repeated along its axes."""
    if all(count == 1 for count in times):
        return value
    if any(size == FREE and count != 1 for size, count in zip(value.shape, times, strict=True)):
        raise Unsupported("repeats an axis whose size is free at run time")
    shape = [size * count for size, count in zip(value.shape, times, strict=True)]
    repeated = [axis for axis, count in enumerate(times) if count > 1]
    if len(repeated) == 1 and times[repeated[0]] <= _MOST_JOINED:  # which is delegated, as TILE is not
        return graph.add("CONCATENATION", [value] * times[repeated[0]], shape, axis=repeated[0])
    return graph.add("TILE", [value, graph.integers(times)], shape)


@operator("DepthToSpace", "SpaceToDepth", rule=channels_last, dtypes=NUMBERS)
def _blocks(call: Call) -> Tensor:
    graph, value, block = call.graph, call.x(0), call.attribute("blocksize")
    # In this mode ONNX counts the places of a block fastest, but the kernels the channels.
    swapped = call.attribute("mode", "DCR") == "CRD"
    if call.node.kind == "SpaceToDepth":
        made = graph.add("SPACE_TO_DEPTH", [value], call.shape(), blockSize=block)
        return take(graph, made, np.arange(made.shape[3]).reshape(block * block, -1).T.reshape(-1), 3) if swapped else made
    if swapped:
        value = take(graph, value, np.arange(value.shape[3]).reshape(-1, block * block).T.reshape(-1), 3)
    return graph.add("DEPTH_TO_SPACE", [value], call.shape(), blockSize=block)


@operator("EyeLike", limits="known sizes")
def _eye(call: Call) -> Tensor:
    rows, columns = call.known(call.result().shape, "a size of the matrix")
    return call.graph.constant(np.eye(rows, columns, call.attribute("k", 0), carried(call.result().dtype)))


@operator("Trilu", limits="a constant k; matrices of a known size")
def _trilu(call: Call) -> Tensor:
    graph, value = call.graph, call.x(0)
    above = call.attribute("upper", 1)
    offset = call.number(1, "k", 0)
    ones = np.ones(call.known(value.shape[-2:], "a size of the matrix"), bool)
    kept = np.triu(ones, offset) if above else np.tril(ones, offset)
    if kept.all():
        return value
    low = value if value.rank <= 4 else graph.reshape(value, (FREE if value.shape[0] == FREE else int(np.prod(value.shape[:-2])), *value.shape[-2:]))
    # No product, which would make NaN of an infinity.
    operands = [graph.constant(kept.reshape((1,) * (low.rank - 2) + kept.shape)), low, graph.constant(0, value.dtype)]
    return graph.reshape(graph.add("SELECT_V2", operands, low.shape, value.dtype), value.shape)


@operator("OneHot", typed=2, dtypes=COMMON, limits="constant depth and values")
def _one_hot(call: Call) -> Tensor:
    graph, depth = call.graph, int(call.constant(1).reshape(-1)[0])
    places = graph.cast(call.x(0), np.int32)
    below = graph.binary("LESS", places, graph.constant(np.int32(0)), np.bool_)
    moved = graph.binary("ADD", places, graph.constant(np.int32(depth)))
    counted = graph.add("SELECT_V2", [below, moved, places], places.shape, np.int32)
    off, on = call.constant(2).astype(carried(call.result().dtype))
    axis = call.attribute("axis", -1)
    operands = [counted, graph.constant(np.int32(depth)), graph.constant(on), graph.constant(off)]
    return graph.add("ONE_HOT", operands, call.shape(), on.dtype, axis=axis if axis >= 0 else axis + len(call.shape()))


@operator("ReverseSequence", dtypes=NUMBERS)
def _reverse_sequence(call: Call) -> Tensor:
    time, batch = call.attribute("time_axis", 0), call.attribute("batch_axis", 1)
    return call.graph.add("REVERSE_SEQUENCE", [call.x(0), call.x(1)], call.shape(), seqDim=time, batchDim=batch)


def measuring(node: Node, program: Program) -> Demand:
    """The sizes of a tensor are known in any layout."""
    return Demand(None, channels_first(node, program).inputs, ()) if channels_first(node, program).inputs else channels_first(node, program)


@operator("Shape", "Size", rule=measuring)
def _measure(call: Call) -> Tensor:
    """Sizes that are free at run time; all others are known before."""
    graph, value = call.graph, call.stored(0)
    sizes = graph.add("SHAPE", [value], (value.rank,), np.int32, outType=2)  # schema.TensorType.INT32
    if call.node.kind == "Size":
        return graph.add("REDUCE_PROD", [sizes, graph.integers([0])], (), keepDims=False)
    places = np.argsort(call.order(value.rank))
    return take(graph, sizes, places[call.attribute("start", 0) : call.attribute("end")], 0)
