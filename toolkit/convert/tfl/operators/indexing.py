"""Operators that take elements by their places, or put them there.

TFLite's ``GATHER`` takes rows of one axis: whatever picks by several numbers is brought to one number into a flattened tensor, which costs
nothing where the places are known.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from toolkit.convert.tfl import layout as layouts
from toolkit.convert.tfl.facts import COMMON
from toolkit.convert.tfl.graph import Graph, Tensor
from toolkit.convert.tfl.layout import Demand
from toolkit.convert.tfl.lower import Call, channels_first, either, operator
from toolkit.convert.tfl.operators.selecting import places_of
from toolkit.convert.tfl.program import FREE, TYPINGS, Node, Program, Type, Unsupported

_DELEGATED = {"float32", "int8"}
_SLICED_RANK = 5  # as far as the kernels of SLICE and STRIDED_SLICE go
# Reductions over places that are only known at run time compare every update with every place.
_MOST_COMPARED = 1 << 22
_COMBINED = {"add": "ADD", "mul": "MUL", "max": "MAXIMUM", "min": "MINIMUM"}
_REDUCED = {"mul": "REDUCE_PROD", "max": "REDUCE_MAX", "min": "REDUCE_MIN"}
_SCATTERING = "known sizes; mul, max and min at places that are computed only if they are few; truth values are not combined"


def take(graph: Graph, value: Tensor, places: Sequence[int] | np.ndarray, axis: int) -> Tensor:
    """Returns the elements of an axis at known places, none of them counted from the end: a slice where they are evenly apart."""
    found = np.asarray(places, np.int64)
    size = value.shape[axis]
    shape = (*value.shape[:axis], len(found), *value.shape[axis + 1 :])
    if size == FREE:
        raise Unsupported("takes elements of an axis whose size is free at run time")
    if np.array_equal(found, np.arange(size)):
        return value
    if value.data is not None:
        return graph.constant(np.take(value.data, found, axis))
    step = int(found[1] - found[0]) if len(found) > 1 else 1
    even = len(found) > 0 and step != 0 and np.all(np.diff(found) == step)
    if not even or value.rank > _SLICED_RANK:
        return graph.add("GATHER", [value, graph.integers(found)], shape, axis=axis, batchDims=0)
    bounds = [(0, length, 1) for length in value.shape]
    bounds[axis] = (int(found[0]), len(found), step)
    return sliced(graph, value, bounds)


def sliced(graph: Graph, value: Tensor, bounds: Sequence[tuple[int, int, int]]) -> Tensor:
    """Returns a block of a tensor of at most five axes: for each axis where it starts, how many elements it takes, and the step."""
    shape = [count for _, count, _ in bounds]
    if all(step == 1 or count == 1 for _, count, step in bounds):
        return graph.slice(value, [start for start, _, _ in bounds], shape)
    if value.dtype.name in _DELEGATED:
        value, bounds = _by_step(graph, value, bounds)
        if all(step == 1 or count == 1 for _, count, step in bounds):
            return graph.slice(value, [start for start, _, _ in bounds], shape)
    ends = [start + (count - 1) * step + (1 if step > 0 else -1) for start, count, step in bounds]
    # An end before the first element cannot be written down, as -1 is the last one; a free size has none either.
    open_ended = sum(1 << axis for axis, end in enumerate(ends) if end < 0 or shape[axis] == FREE)
    operands = [graph.integers(numbers) for numbers in ([start for start, _, _ in bounds], ends, [step for _, _, step in bounds])]
    masks = {"beginMask": 0, "endMask": open_ended, "ellipsisMask": 0, "newAxisMask": 0, "shrinkAxisMask": 0}
    return graph.add("STRIDED_SLICE", [value, *operands], shape, **masks)


def _by_step(graph: Graph, value: Tensor, bounds: Sequence[tuple[int, int, int]]) -> tuple[Tensor, list[tuple[int, int, int]]]:
    """Takes every n-th element as one column of rows of n, which delegates know, where the axis has whole rows."""
    left = list(bounds)
    for axis, (start, count, step) in enumerate(bounds):
        if value.rank < _SLICED_RANK and step > 1 and start < step and count * step == value.shape[axis]:
            rows = graph.reshape(value, (*value.shape[:axis], count, step, *value.shape[axis + 1 :]))
            starts = [start if place == axis + 1 else 0 for place in range(rows.rank)]
            column = graph.slice(rows, starts, (*rows.shape[: axis + 1], 1, *rows.shape[axis + 2 :]))
            value, left[axis] = graph.reshape(column, (*value.shape[:axis], count, *value.shape[axis + 1 :])), (0, count, 1)
    return value, left


def from_start(graph: Graph, places: Tensor, sizes: int | Sequence[int]) -> Tensor:
    """Returns places counted from the start, given the size of the axis, or of one axis for each column."""
    if any(size == FREE for size in np.reshape(sizes, -1)):
        raise Unsupported("picks from an axis whose size is free at run time")
    lengths = np.asarray(sizes, np.int32)
    if places.data is not None:
        return graph.constant(np.where(places.data < 0, places.data + lengths, places.data).astype(np.int32))
    return graph.binary("FLOOR_MOD", places, graph.constant(lengths))


def gathering(node: Node, program: Program) -> Demand:
    """One number or a list of them that are known are taken along an axis of any layout."""
    given, picks = program.type(node.inputs[0]).shape, len(program.type(node.inputs[1]).shape)
    axis = node.attributes.get("axis", 0) % len(given)
    known = node.inputs[1] in program.constants and node.inputs[0] in program.types
    if not known or picks > 1 or not layouts.can_be_last(given) or (picks == 0 and axis == 0):
        return channels_first(node, program)
    if picks == 1:
        return either(node, program)
    kept = axis > 1 and layouts.can_be_last(program.types[node.outputs[0]].shape)
    return Demand(None, (node.inputs[0],), (node.outputs[0],) if kept else ())


@operator("Gather", rule=gathering, dtypes=COMMON, limits="not from a free axis")
def _gather(call: Call) -> Tensor:
    graph, value, rank = call.graph, call.x(0), len(call.type(0).shape)
    axis = call.axis(call.attribute("axis", 0), rank)
    places = from_start(graph, call.x(1), value.shape[axis])
    wanted = (*value.shape[:axis], *places.shape, *value.shape[axis + 1 :])
    if places.data is not None:
        return graph.reshape(take(graph, value, places.data.reshape(-1), axis), wanted)
    return graph.add("GATHER", [value, places], wanted, axis=axis, batchDims=0)


@operator("GatherElements", dtypes=COMMON, limits="known sizes")
def _gather_elements(call: Call) -> Tensor:
    value = call.x(0)
    places = _flat_places(call, call.x(1), value.shape)
    return call.graph.reshape(_rows(call.graph, call.graph.reshape(value, (value.size,)), places), call.shape())


def _flat_places(call: Call, places: Tensor, shape: Sequence[int]) -> Tensor:
    """Returns, for places along the operator's axis that stand where their other numbers are, places in the flattened tensor."""
    graph, sizes = call.graph, call.known(shape, "an axis that it picks from")
    axis = call.attribute("axis", 0) % len(sizes)
    steps = _steps(sizes)
    known = np.indices(call.known(places.shape, "the number of its indices"), dtype=np.int64)
    offsets = sum((known[other] * steps[other] for other in range(len(sizes)) if other != axis), np.zeros(places.shape, np.int64))
    return _flat(graph, _sum(graph, from_start(graph, places, sizes[axis]), int(steps[axis]), offsets))


def _steps(sizes: Sequence[int]) -> np.ndarray:
    """How far apart neighbours along each axis are in the flattened tensor."""
    return np.append(np.cumprod(np.asarray(sizes[1:], np.int64)[::-1])[::-1], 1).astype(np.int64)


def _sum(graph: Graph, places: Tensor, step: int, offsets: np.ndarray) -> Tensor:
    if places.data is not None:
        return graph.constant((places.data.astype(np.int64) * step + offsets).astype(np.int32))
    scaled = places if step == 1 else graph.binary("MUL", places, graph.constant(np.int32(step)))
    return scaled if not offsets.any() else graph.binary("ADD", scaled, graph.constant(offsets.astype(np.int32)))


def _flat(graph: Graph, value: Tensor) -> Tensor:
    return graph.reshape(value, (value.size,))


def _rows(graph: Graph, value: Tensor, places: Tensor) -> Tensor:
    """Returns rows of a tensor at places that are known or not."""
    if places.data is not None:
        return take(graph, value, places.data, 0)
    return graph.add("GATHER", [value, places], (*places.shape, *value.shape[1:]), axis=0, batchDims=0)


@operator("GatherND", dtypes=COMMON, limits="known sizes")
def _gather_nd(call: Call) -> Tensor:
    value, batch = call.x(0), call.attribute("batch_dims", 0)
    if not batch and call.type(1).shape[-1] == 1:  # rows by one number each, of which there may be any number
        rows = call.graph.reshape(call.x(1), call.type(1).shape[:-1])
        return _rows(call.graph, value, from_start(call.graph, rows, value.shape[0]))
    places, picked = _row_places(call, call.x(1), value.shape, batch)
    rows = call.graph.reshape(value, (int(np.prod(value.shape[:picked])), *value.shape[picked:]))
    return call.graph.reshape(_rows(call.graph, rows, places), call.shape())


def _row_places(call: Call, places: Tensor, shape: Sequence[int], batch: int) -> tuple[Tensor, int]:
    """Brings places of several numbers to one number each; returns them and how many axes they pick from, the batch's included."""
    graph, width = call.graph, call.known(places.shape, "the number of its indices")[-1]
    sizes = call.known(shape[: batch + width], "an axis that it picks from")
    steps = _steps(sizes)
    counted = from_start(graph, places, sizes[batch:])
    own = steps[batch:].astype(np.int32)
    if counted.data is not None:
        flat = graph.constant((counted.data.astype(np.int64) * own).sum(-1).astype(np.int32))
    else:
        scaled = counted if np.all(own == 1) else graph.binary("MUL", counted, graph.constant(own))
        flat = graph.add("SUM", [scaled, graph.integers([places.rank - 1])], places.shape[:-1], keepDims=False)
    known = np.indices(places.shape[:batch], dtype=np.int64)
    offsets = sum((known[axis] * steps[axis] for axis in range(batch)), np.zeros(places.shape[:batch], np.int64))
    return _flat(graph, _sum(graph, flat, 1, offsets.reshape(offsets.shape + (1,) * (flat.rank - batch)))), batch + width


@operator("ScatterElements", "Scatter", dtypes=COMMON, limits=_SCATTERING)
def _scatter_elements(call: Call) -> Tensor:
    value, updates = call.x(0), call.x(2)
    places = _flat_places(call, call.x(1), value.shape)
    made = _scattered(call, _flat(call.graph, value), places, _flat(call.graph, updates))
    return call.graph.reshape(made, call.shape())


@operator("ScatterND", dtypes=COMMON, limits=_SCATTERING)
def _scatter_nd(call: Call) -> Tensor:
    graph, value, updates = call.graph, call.x(0), call.x(2)
    places, picked = _row_places(call, call.x(1), value.shape, 0)
    rest = call.known(value.shape[picked:], "an axis that it writes to")
    width = int(np.prod(rest))
    rows = graph.reshape(value, (int(np.prod(value.shape[:picked])), width))
    made = _scattered(call, rows, places, graph.reshape(updates, (places.size, width)))
    return graph.reshape(made, call.shape())


def _scattered(call: Call, value: Tensor, places: Tensor, updates: Tensor) -> Tensor:
    """Puts updates into a list of numbers or of rows."""
    graph, how = call.graph, call.attribute("reduction", "none")
    if value.dtype == np.bool_:
        if how != "none":
            raise Unsupported(f"combines truth values by {how}")
        return graph.cast(_scattered_into(call, graph.cast(value, np.int32), places, graph.cast(updates, np.int32), how), np.bool_)
    return _scattered_into(call, value, places, updates, how)


def _scattered_into(call: Call, value: Tensor, places: Tensor, updates: Tensor, how: str) -> Tensor:
    graph = call.graph
    if places.data is not None:
        return _scattered_known(graph, value, places.data, updates, how)
    column = graph.reshape(places, (places.size, 1))
    if how in ("none", "add"):
        spread = graph.add("SCATTER_ND", [column, updates, graph.integers(value.shape)], value.shape, updates.dtype)
        return (
            graph.binary("ADD", value, spread)
            if how == "add"
            else graph.add("SELECT_V2", [_written(graph, column, value), spread, value], value.shape, value.dtype)
        )
    return graph.binary(_COMBINED[how], value, _reduced(graph, column, value, updates, how))


def _written(graph: Graph, places: Tensor, value: Tensor) -> Tensor:
    """Returns for each row whether something is written there."""
    ones = graph.constant(np.ones(places.shape[0], np.int32))
    counts = graph.add("SCATTER_ND", [places, ones, graph.integers(value.shape[:1])], value.shape[:1], np.int32)
    found = graph.binary("GREATER", counts, graph.constant(np.int32(0)), np.bool_)
    return graph.reshape(found, (value.shape[0],) + (1,) * (value.rank - 1))


def _reduced(graph: Graph, places: Tensor, value: Tensor, updates: Tensor, how: str) -> Tensor:
    """Returns the product or the extreme of all updates of each row, and what changes nothing for rows without any."""
    if updates.size * value.shape[0] > _MOST_COMPARED:
        raise Unsupported(f"combines by {how} at so many places, known at run time only")
    neutral = graph.constant(_neutral(how, value.dtype))
    shape = (updates.shape[0], value.shape[0], *value.shape[1:])
    hits = graph.binary("EQUAL", places, graph.constant(np.arange(value.shape[0], dtype=np.int32)[None]), np.bool_)
    spread = graph.reshape(updates, (updates.shape[0], 1, *updates.shape[1:]))
    chosen = graph.add("SELECT_V2", [graph.reshape(hits, (*hits.shape, *(1,) * (value.rank - 1))), spread, neutral], shape, value.dtype)
    return graph.add(_REDUCED[how], [chosen, graph.integers([0])], value.shape, keepDims=False)


def _neutral(how: str, dtype: np.dtype) -> np.ndarray:  # type: ignore[type-arg]
    if how in ("add", "mul"):
        return np.asarray(0 if how == "add" else 1, dtype)
    if dtype.kind == "f":
        return np.asarray(-np.inf if how == "max" else np.inf, dtype)
    limits = np.iinfo(dtype)
    return np.asarray(limits.min if how == "max" else limits.max, dtype)


def _scattered_known(graph: Graph, value: Tensor, places: np.ndarray, updates: Tensor, how: str) -> Tensor:
    """Every element of the result has one known source; of updates that meet, one is combined after the other."""
    rows = value.shape[0]
    if how == "none":
        sources = np.arange(rows)
        sources[places] = rows + np.arange(len(places))
        joined = graph.add("CONCATENATION", [value, updates], (rows + len(places), *value.shape[1:]), axis=0)
        return take(graph, joined, sources, 0)
    neutral = graph.constant(np.full((1, *value.shape[1:]), _neutral(how, value.dtype)))
    padded = graph.add("CONCATENATION", [updates, neutral], (len(places) + 1, *value.shape[1:]), axis=0)
    left = np.arange(len(places))
    while len(left):
        _, first = np.unique(places[left], return_index=True)
        sources = np.full(rows, len(places))
        sources[places[left[first]]] = left[first]
        value = graph.binary(_COMBINED[how], value, take(graph, padded, sources, 0))
        left = np.delete(left, first)
    return value


def _compressed(node: Node, program: Program) -> list[Type]:
    """Types a Compress, whose condition ONNX's inference does not look at; the size is free where that is computed."""
    known = node.inputs[1] in program.constants
    given, count = program.type(node.inputs[0]), int(np.count_nonzero(program.constants[node.inputs[1]])) if known else FREE
    if not known and FREE in given.shape:
        raise Unsupported("picks from a tensor whose size is free at run time by a condition that is computed")
    if "axis" not in node.attributes:
        return [Type(given.dtype, (count,))]
    axis = node.attributes["axis"] % len(given.shape)
    return [Type(given.dtype, (*given.shape[:axis], count, *given.shape[axis + 1 :]))]


TYPINGS["Compress"] = _compressed


def compressing(node: Node, program: Program) -> Demand:
    """Along an axis any layout will do."""
    return either(node, program) if "axis" in node.attributes else channels_first(node, program)


@operator("Compress", rule=compressing, dtypes=COMMON, limits="not from a free axis; with a condition that is computed the number of results is free")
def _compress(call: Call) -> Tensor:
    value, axis = call.x(0), call.attribute("axis")
    if not call.is_constant(1):
        flat, place = (_flat(call.graph, value), 0) if axis is None else (value, call.axis(axis, value.rank))
        rows = call.graph.reshape(places_of(call.graph, call.x(1)), (FREE,))
        return call.graph.add("GATHER", [flat, rows], call.shape(), axis=place, batchDims=0)
    places = np.flatnonzero(call.constant(1))
    if axis is None:
        call.known(value.shape, "an axis that it picks from")
        return take(call.graph, _flat(call.graph, value), places, 0)
    return take(call.graph, value, places, call.axis(axis, value.rank))
