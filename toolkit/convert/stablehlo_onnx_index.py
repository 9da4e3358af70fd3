"""StableHLO to ONNX: picking, placing and ordering elements.

Gather and scatter of StableHLO cut and place windows at computed positions. Here every element's place in the flattened tensor
is computed from the positions, which covers them all; picking whole rows, as embeddings do, is a Gather of its own.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from toolkit.convert import stablehlo
from toolkit.convert.onnx_graph import Graph, Tensor
from toolkit.convert.stablehlo_values import Unsupported, region_operator, shape_of, whole

_SCATTER = {"add": "add", "multiply": "mul", "maximum": "max", "minimum": "min"}


def _clamped_starts(graph: Graph, values: Any, limits: list[int]) -> Tensor:
    """Returns scalar positions as one ``[n] int64``, moved to where the window fits."""
    starts = [graph.reshape(graph.cast(whole(graph, value), np.int64), [1]) for value in values]
    if all(start.constant is not None for start in starts):
        joined = graph.constant(np.concatenate([start.constant for start in starts]))  # type: ignore[misc]  # asked above
    else:
        joined = graph.add("Concat", starts, [len(starts)], np.int64, axis=0)
    high = graph.elementwise("Min", [joined, graph.integers(*limits)], np.int64, np.minimum)
    return graph.elementwise("Max", [high, graph.constant(0, np.int64)], np.int64, np.maximum)


def _dynamic_slice(graph: Graph, operation: Any) -> Tensor:
    value, sizes = whole(graph, operation.operands[0]), stablehlo.numbers(operation, "slice_sizes")
    limits = [have - size for have, size in zip(value.shape, sizes, strict=True)]
    starts = _clamped_starts(graph, list(operation.operands)[1:], limits)
    ends = graph.elementwise("Add", [starts, graph.integers(*sizes)], np.int64, np.add)
    axes = graph.integers(*range(len(sizes)))
    return graph.add("Slice", [value, starts, ends, axes], sizes, value.dtype)


def _dynamic_update_slice(graph: Graph, operation: Any) -> Tensor:
    value, update = (whole(graph, operand) for operand in list(operation.operands)[:2])
    limits = [have - size for have, size in zip(value.shape, update.shape, strict=True)]
    starts = _clamped_starts(graph, list(operation.operands)[2:], limits)
    grid = np.stack(np.meshgrid(*map(np.arange, update.shape), indexing="ij"), axis=-1)
    places = graph.elementwise("Add", [graph.constant(grid, np.int64), starts], np.int64, np.add)
    return graph.add("ScatterND", [value, places, update], value.shape, value.dtype)


def _listed(text: str, key: str) -> list[int]:
    found = re.search(rf"{key} = \[([^\]]*)\]", text)
    return [int(axis) for axis in found[1].split(",")] if found else []


def _vector_axis(text: str) -> int:
    found = re.search(r"index_vector_dim = (\d+)", text)
    return int(found[1]) if found else 0


def _positions(graph: Graph, value: Any, text: str) -> Tensor:
    """Returns the positions with their coordinates along the last axis, ``[... x n] int64``."""
    found, axis = graph.cast(whole(graph, value), np.int64), _vector_axis(text)
    if axis == len(found.shape):
        return graph.reshape(found, (*found.shape, 1))
    return graph.transpose(found, [place for place in range(len(found.shape)) if place != axis] + [axis])


def _gather(graph: Graph, operation: Any) -> Tensor:
    text = str(operation.attributes["dimension_numbers"])
    value = whole(graph, operation.operands[0])
    positions = _positions(graph, operation.operands[1], text)
    sizes = stablehlo.numbers(operation, "slice_sizes")
    starts, gone = _listed(text, "start_index_map"), _listed(text, "collapsed_slice_dims")
    shape, windows = shape_of(operation.results[0]), _listed(text, "offset_dims")
    batch = _listed(text, "operand_batching_dims")
    whole_rows = [size for axis, size in enumerate(sizes) if axis not in gone] == [size for axis, size in enumerate(value.shape) if axis not in gone]
    outer = positions.shape[:-1]
    kept = [size for axis, size in enumerate(sizes) if axis not in gone + batch]
    axes = [axis for axis in range(len(shape)) if axis not in windows] + windows  # positions first, then the window
    if len(starts) == 1 and starts == gone and not batch and whole_rows:
        limited = _inside(graph, positions, [value.shape[starts[0]] - 1])
        front = graph.transpose(value, [starts[0], *(axis for axis in range(len(value.shape)) if axis != starts[0])])
        found = graph.add("Gather", [front, graph.reshape(limited, outer)], (*outer, *kept), value.dtype, axis=0)
    else:
        limits = [value.shape[axis] - sizes[axis] for axis in starts]
        cut = _Cut(value.shape, starts, sizes, gone, batch, _listed(text, "start_indices_batching_dims"))
        places = cut.places(graph, _inside(graph, positions, limits))
        flat = graph.reshape(value, [int(np.prod(value.shape))])
        found = graph.add("Gather", [flat, places], (*outer, *kept), value.dtype, axis=0)
    return graph.transpose(found, [axes.index(axis) for axis in range(len(shape))])


def _inside(graph: Graph, positions: Tensor, limits: list[int]) -> Tensor:
    high = graph.elementwise("Min", [positions, graph.integers(*limits)], np.int64, np.minimum)
    return graph.elementwise("Max", [high, graph.constant(0, np.int64)], np.int64, np.maximum)


@dataclass(frozen=True)
class _Cut:
    """Where windows lie in a tensor.

    Attributes:
        shape: The tensor's sizes.
        starts: The axes that the coordinates of a position belong to.
        sizes: The window's sizes along all axes.
        gone: Axes that the window leaves out.
        batch: Axes along which each position has its own part of the tensor.
        position_batch: The positions' axes for those.
    """

    shape: tuple[int, ...]
    starts: list[int]
    sizes: list[int]
    gone: list[int]
    batch: list[int]
    position_batch: list[int]

    @property
    def kept(self) -> list[int]:
        """The axes of the window."""
        return [axis for axis in range(len(self.shape)) if axis not in self.gone + self.batch]

    def places(self, graph: Graph, positions: Tensor) -> Tensor:
        """Returns each window element's place in the flattened tensor, ``[positions... x window...] int64``."""
        strides = [int(np.prod(self.shape[axis + 1 :])) for axis in range(len(self.shape))]
        outer = positions.shape[:-1]
        scaled = graph.elementwise("Mul", [positions, graph.integers(*(strides[axis] for axis in self.starts))], np.int64, np.multiply)
        if scaled.constant is not None:
            base = graph.constant(np.broadcast_to(scaled.constant, positions.shape).sum(-1))
        else:
            base = graph.add("ReduceSum", [scaled, graph.integers(len(outer))], outer, np.int64, keepdims=0)
        for axis, place in zip(self.batch, self.position_batch, strict=True):
            along = [outer[place] if number == place else 1 for number in range(len(outer))]
            steps = (np.arange(outer[place]) * strides[axis]).reshape(along)
            base = graph.elementwise("Add", [base, graph.constant(steps)], np.int64, np.add)
        window = np.zeros([1] * len(self.kept), np.int64)
        for number, axis in enumerate(self.kept):
            along = [self.sizes[axis] if place == number else 1 for place in range(len(self.kept))]
            window = window + (np.arange(self.sizes[axis]) * strides[axis]).reshape(along)
        spread = graph.reshape(base, [*outer, *([1] * len(self.kept))])
        return graph.elementwise("Add", [spread, graph.constant(window)], np.int64, np.add)


def _scatter(graph: Graph, operation: Any) -> Tensor:
    """Windows that do not fit are left out, as JAX does: their elements go to one place behind the tensor, which is cut off."""
    text = str(operation.attributes["scatter_dimension_numbers"])
    if len(operation.results) != 1:
        raise Unsupported("scatter of several tensors", "has no ONNX counterpart")
    value, updates = whole(graph, operation.operands[0]), whole(graph, operation.operands[2])
    positions = _positions(graph, operation.operands[1], text)
    gone, batch = _listed(text, "inserted_window_dims"), _listed(text, "input_batching_dims")
    windows = _listed(text, "update_window_dims")
    kept = [axis for axis in range(len(value.shape)) if axis not in gone + batch]
    sizes = [1] * len(value.shape)
    for axis, window in zip(kept, windows, strict=True):
        sizes[axis] = updates.shape[window]
    starts = _listed(text, "scatter_dims_to_operand_dims")
    cut = _Cut(value.shape, starts, sizes, gone, batch, _listed(text, "scatter_indices_batching_dims"))
    total = int(np.prod(value.shape))
    limits = [value.shape[axis] - sizes[axis] for axis in starts]
    limited = _inside(graph, positions, limits)
    fits = graph.elementwise("Equal", [positions, limited], np.bool_, np.equal)
    if fits.constant is not None:
        fit = graph.constant(fits.constant.all(-1))
    else:
        number = graph.cast(fits, np.int32)
        fit = graph.cast(graph.add("ReduceMin", [number, graph.integers(len(fits.shape) - 1)], fits.shape[:-1], np.int32, keepdims=0), np.bool_)
    fit = graph.reshape(fit, [*fit.shape, *([1] * len(kept))])
    places = graph.elementwise("Where", [fit, cut.places(graph, limited), graph.constant(total, np.int64)], np.int64, np.where)
    order = [axis for axis in range(len(updates.shape)) if axis not in windows] + windows
    return _place(graph, value, places, graph.transpose(updates, order), _reduction(operation))


def _reduction(operation: Any) -> str:
    inner = [found.operation.name for found in operation.regions[0].blocks[0].operations]
    kind = region_operator(operation)
    if len(inner) > 1 and kind not in _SCATTER:
        raise Unsupported("scatter by a function of its own", "has no ONNX counterpart")
    return _SCATTER.get(kind, "none")


def _place(graph: Graph, value: Tensor, places: Tensor, updates: Tensor, reduction: str) -> Tensor:
    total, count = int(np.prod(value.shape)), int(np.prod(updates.shape))
    spare = graph.constant(np.zeros(1, value.dtype))
    data = graph.add("Concat", [graph.reshape(value, [total]), spare], [total + 1], value.dtype, axis=0)
    flat = graph.reshape(graph.expand(places, updates.shape), [count])
    found = graph.add("ScatterElements", [data, flat, graph.reshape(updates, [count])], [total + 1], value.dtype, axis=0, reduction=reduction)
    return graph.reshape(graph.slice(found, [0], [total], [1]), value.shape)


def _sort(graph: Graph, operation: Any) -> list[Tensor]:
    """Sorts by the first tensor; equal elements keep their order, as the specification of TopK has it."""
    block = operation.regions[0].blocks[0]
    compares = [inner.operation for inner in block.operations if inner.operation.name == "stablehlo.compare"]
    direction = str(compares[-1].attributes["comparison_direction"]).split()[-1].rstrip(">") if compares else ""
    keys = set(list(block.arguments)[2:])
    if direction not in ("LT", "GT") or any(value in keys for inner in block.operations for value in inner.operation.operands):
        raise Unsupported("sort by a function of its own or by several keys", "has no ONNX counterpart")
    values = [whole(graph, value) for value in operation.operands]
    axis = operation.attributes["dimension"].value
    size = graph.integers(values[0].shape[axis])
    key = graph.cast(values[0], np.int32) if values[0].dtype == np.bool_ else values[0]
    outputs = [(key.shape, key.dtype), (key.shape, np.int64)]
    ordered, places = graph.add_many("TopK", [key, size], outputs, axis=axis, largest=int(direction == "GT"), sorted=1)
    rest = [graph.add("GatherElements", [value, places], value.shape, value.dtype, axis=axis) for value in values[1:]]
    return [graph.cast(ordered, values[0].dtype), *rest]


OPERATORS: dict[str, Callable[[Graph, Any], Tensor | list[Tensor]]] = {
    "dynamic_slice": _dynamic_slice,
    "dynamic_update_slice": _dynamic_update_slice,
    "gather": _gather,
    "scatter": _scatter,
    "sort": _sort,
}
